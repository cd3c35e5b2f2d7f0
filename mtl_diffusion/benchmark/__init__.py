"""Speed: our training step and its parts, and our sampler beside plain solvers."""
