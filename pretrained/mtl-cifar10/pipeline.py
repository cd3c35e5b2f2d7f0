"""The code is in pipeline_b27bd364.py."""

from .pipeline_b27bd364 import MultiTaskPipeline  # noqa
