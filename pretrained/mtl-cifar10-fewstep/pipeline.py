"""The code is in pipeline_c172bf95.py."""

from .pipeline_c172bf95 import MultiTaskPipeline  # noqa
