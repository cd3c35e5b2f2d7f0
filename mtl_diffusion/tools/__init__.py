"""Helpers: distributed, files, flags, flops, names, rng, tensors, yaml_reader."""
