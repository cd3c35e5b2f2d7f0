"""Small helpers without any diffusion: random numbers, tensors, FLOPs, files, processes."""
