"""The code is in pipeline_b3c37ab1.py."""

from .pipeline_b3c37ab1 import MultiTaskPipeline  # noqa
