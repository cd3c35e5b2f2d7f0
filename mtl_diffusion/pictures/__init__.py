"""Grids of images, and plots."""
