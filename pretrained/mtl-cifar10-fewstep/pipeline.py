"""The code is in pipeline_ab0a46f5.py."""

from .pipeline_ab0a46f5 import MultiTaskPipeline  # noqa
