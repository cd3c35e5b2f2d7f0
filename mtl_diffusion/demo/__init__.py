"""A page in the browser to try a pipeline on; a Space carries copies of these files.

They import torch, PIL and gradio, and each other relatively. The pipeline is handed to them.
"""
