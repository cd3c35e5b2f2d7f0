"""Models that differ in how they were trained, compared; those that are missing are trained."""
