"""The code is in pipeline_a2ba3e83.py."""

from .pipeline_a2ba3e83 import MultiTaskPipeline  # noqa
