"""Speed: a training step and its parts, sampling, and training scripts side by side."""
