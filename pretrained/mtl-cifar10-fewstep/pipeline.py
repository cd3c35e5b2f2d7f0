"""The code is in pipeline_2f742f93.py."""

from .pipeline_2f742f93 import MultiTaskPipeline  # noqa
