"""The code is in pipeline_e216dd7b.py."""

from .pipeline_e216dd7b import MultiTaskPipeline  # noqa
