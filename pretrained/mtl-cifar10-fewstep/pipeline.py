"""The code is in pipeline_95008ab4.py."""

from .pipeline_95008ab4 import MultiTaskPipeline  # noqa
