"""The settings of a run: fields, limits and the command line. No torch is imported."""

from .fields import (
    TYPES,
    ConfigError,
    TrainConfig,
    differences,
    listed,
    resolved,
    show,
    suggestion,
    to_dict,
)

__all__ = [
    "TYPES",
    "ConfigError",
    "TrainConfig",
    "differences",
    "listed",
    "resolved",
    "show",
    "suggestion",
    "to_dict",
]
