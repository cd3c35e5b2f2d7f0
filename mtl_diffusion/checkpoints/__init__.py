"""The state of a run written to disk, and restored from there."""
