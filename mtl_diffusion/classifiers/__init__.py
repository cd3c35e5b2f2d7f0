"""Image classifiers: what figures are measured with, and what alignment learns from."""
