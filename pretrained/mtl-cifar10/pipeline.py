"""The code is in pipeline_61a9488a.py."""

from .pipeline_61a9488a import MultiTaskPipeline  # noqa
