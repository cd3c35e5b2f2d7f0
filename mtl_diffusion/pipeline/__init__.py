"""What ships with a model, and nothing else: an exported pipeline carries copies of these files.

They import torch, diffusers, transformers, PIL and numpy, and each other relatively.
"""
