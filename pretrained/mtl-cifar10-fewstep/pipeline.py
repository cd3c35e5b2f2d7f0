"""The code is in pipeline_d1feaca1.py."""

from .pipeline_d1feaca1 import MultiTaskPipeline  # noqa
