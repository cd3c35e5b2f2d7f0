"""The code is in pipeline_78fd0015.py."""

from .pipeline_78fd0015 import MultiTaskPipeline  # noqa
