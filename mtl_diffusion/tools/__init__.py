"""Helpers: distributed, fields, files, flags, flops, names, rng, tensors, yaml_reader."""
