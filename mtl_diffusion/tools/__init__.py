"""Helpers: distributed, files, flags, memory, names, rng, tensors, yaml_reader."""
