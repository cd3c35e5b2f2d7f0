"""Figures, plots and pictures of how well an exported pipeline does each of its tasks."""
