"""The code is in pipeline_9487b34e.py."""

from .pipeline_9487b34e import MultiTaskPipeline  # noqa
