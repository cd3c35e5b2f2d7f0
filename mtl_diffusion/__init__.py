"""One small denoiser, conditioned on task tokens, that generates, inpaints and edits."""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mtl_diffusion.config import TrainConfig
    from mtl_diffusion.loop import train
    from mtl_diffusion.pipeline.pipeline import MultiTaskPipeline
    from mtl_diffusion.pipeline.task import Choice, Hint, Task

__version__ = "0.2.0"
__all__ = ["Choice", "Hint", "MultiTaskPipeline", "Task", "TrainConfig", "train"]

_HOMES = {
    "Choice": "pipeline.task",
    "Hint": "pipeline.task",
    "MultiTaskPipeline": "pipeline.pipeline",
    "Task": "pipeline.task",
    "TrainConfig": "config",
    "train": "loop",
}


def __getattr__(name: str):
    # On demand: most of them need torch, which `mtl-diffusion train --help` should not wait for.
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
