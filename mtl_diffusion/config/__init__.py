"""The settings of a run: fields, limits and the command line. No torch is imported."""

from .fields import TrainConfig as TrainConfig
from .fields import show as show
from .values import ConfigError as ConfigError
from .values import check as check
from .values import checked as checked
from .values import differences as differences
from .values import from_dict as from_dict
from .values import resolved as resolved
from .values import to_dict as to_dict
