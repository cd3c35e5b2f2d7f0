"""The settings of a run: fields, limits and the command line. No torch is imported."""

from ..tools.fields import show
from .fields import ConfigError, TrainConfig
from .written import differences, resolved, to_dict

__all__ = ["ConfigError", "TrainConfig", "differences", "resolved", "show", "to_dict"]
