"""The parts of a training step and of a run: model, tasks, losses, averages, validation."""
