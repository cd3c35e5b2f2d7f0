"""The code is in pipeline_c04bb20b.py."""

from .pipeline_c04bb20b import MultiTaskPipeline  # noqa
