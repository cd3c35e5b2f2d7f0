"""The code is in pipeline_74e04bb7.py."""

from .pipeline_74e04bb7 import MultiTaskPipeline  # noqa
