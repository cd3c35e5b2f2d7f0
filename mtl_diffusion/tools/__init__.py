"""Helpers: distributed, files, flags, names, rng, tensors, yaml_reader."""
