"""Speed: training and sampling, side by side with diffusers' own script and solvers."""
