"""Small helpers: random numbers, tensors, an ODE solver, FLOPs, files, processes."""
