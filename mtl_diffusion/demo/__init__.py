"""A page in the browser to try a pipeline on; a Space carries copies of these files.

They import torch, PIL and gradio, each other and ../pipeline/rgb.py relatively. The pipeline is
handed to them.
"""
