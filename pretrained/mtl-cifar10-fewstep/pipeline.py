"""The code is in pipeline_21ee06fd.py."""

from .pipeline_21ee06fd import MultiTaskPipeline  # noqa
