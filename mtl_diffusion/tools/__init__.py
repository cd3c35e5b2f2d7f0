"""Small helpers, a file each: distributed, fields, files, flags, flops, names, rgb, rng, tensors, yaml_reader."""
