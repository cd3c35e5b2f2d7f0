"""Small helpers: random numbers, tensors, FLOPs, files, names, flags, processes."""
