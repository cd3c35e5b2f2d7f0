"""The pipeline and its tasks: the code that an exported model carries, and nothing else.

They import torch, diffusers, transformers, safetensors, PIL and numpy, and each other as
`from .file import name`. An export has them as one file, which source.py makes of them.
"""
