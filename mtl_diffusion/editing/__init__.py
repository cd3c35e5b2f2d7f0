"""Whole edits by a model of many steps: what a model of few steps learns to answer at once."""
