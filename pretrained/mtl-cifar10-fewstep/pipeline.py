"""The code is in pipeline_0ab9c6f1.py."""

from .pipeline_0ab9c6f1 import MultiTaskPipeline  # noqa
