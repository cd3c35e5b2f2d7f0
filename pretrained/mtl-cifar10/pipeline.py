"""The code is in pipeline_3559fcb8.py."""

from .pipeline_3559fcb8 import MultiTaskPipeline  # noqa
