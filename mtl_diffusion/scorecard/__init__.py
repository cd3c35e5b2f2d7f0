"""How good an exported pipeline is at each of its tasks: figures, plots and pictures."""
