"""Helpers: distributed, fields, files, flags, flops, names, rgb, rng, tensors, yaml_reader."""
