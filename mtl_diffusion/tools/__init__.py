"""Small helpers that know nothing of diffusion: random numbers, tensors, files, processes."""
