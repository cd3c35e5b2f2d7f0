"""Baselines and the likelihood: what needs nothing but a denoiser D(x, sigma)."""
