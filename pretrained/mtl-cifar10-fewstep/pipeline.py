"""The code is in pipeline_e34343c9.py."""

from .pipeline_e34343c9 import MultiTaskPipeline  # noqa
