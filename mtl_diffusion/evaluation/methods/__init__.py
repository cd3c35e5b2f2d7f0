"""Baselines: what needs nothing but a denoiser D(x, sigma).

Everywhere:
    D, source, target: denoisers, see denoisers.py; source has the class of the image, or none, and
        target the class that is requested.
    image: (B, 3, H, W) float32 in [-1, 1]. What is returned is like it, and not clipped.
    sigmas: falling noise levels, the last one 0.
    generators: one for each image, so that results don't depend on the batch.
"""
