"""Image classifiers, for the evaluation and for the alignment loss."""
