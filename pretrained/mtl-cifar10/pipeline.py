"""The code is in pipeline_8409980d.py."""

from .pipeline_8409980d import MultiTaskPipeline  # noqa
