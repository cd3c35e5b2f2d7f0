"""Rows of a dataset to batches of images and labels, from memory or as a stream."""
