"""The code is in pipeline_7711f609.py."""

from .pipeline_7711f609 import MultiTaskPipeline  # noqa
