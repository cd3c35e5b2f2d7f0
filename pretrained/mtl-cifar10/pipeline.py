"""The code is in pipeline_d7317d9c.py."""

from .pipeline_d7317d9c import MultiTaskPipeline  # noqa
