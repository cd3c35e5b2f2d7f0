"""The code is in pipeline_02131228.py."""

from .pipeline_02131228 import MultiTaskPipeline  # noqa
