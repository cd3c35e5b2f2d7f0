"""The code is in pipeline_12f0445c.py."""

from .pipeline_12f0445c import MultiTaskPipeline  # noqa
