"""The settings of a run: fields, limits and the command line. No torch is imported."""

from .fields import ConfigError, TrainConfig, differences, resolved, show, to_dict

__all__ = ["ConfigError", "TrainConfig", "differences", "resolved", "show", "to_dict"]
