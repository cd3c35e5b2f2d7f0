"""The code is in pipeline_25ba52dd.py."""

from .pipeline_25ba52dd import MultiTaskPipeline  # noqa
