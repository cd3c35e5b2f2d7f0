"""Small helpers, a file each: distributed, files, flags, flops, names, rng, tensors."""
