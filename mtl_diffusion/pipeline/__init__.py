"""What ships with a model, and nothing else: an exported pipeline carries this code.

They import torch, diffusers, transformers, safetensors, PIL and numpy, and each other as
`from .file import name`. An export has them as one file, which source.py makes of them.
"""
