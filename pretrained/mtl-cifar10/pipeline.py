"""The code is in pipeline_28645139.py."""

from .pipeline_28645139 import MultiTaskPipeline  # noqa
