"""Whether a model uses its task token: held-out loss with the right, each wrong and no token."""

from collections.abc import Mapping
from typing import Any

import torch
from tqdm.auto import tqdm

from ..data.images import ImageDataset
from ..pipeline.pipeline import MultiTaskPipeline
from ..training.losses import LEVELS
from .measure import loss_of
from .report import markdown


def compare_tokens(
    pipe: MultiTaskPipeline, data: ImageDataset, num_images: int, seed: int
) -> dict[str, Any]:
    """Measures every task of a pipeline with every token, and with none ("null").

    Each token sees the same images, noise, masks and strengths. So the excess is a mean of
    differences image by image, and its standard error is that of this mean.

    Args:
        data: held-out images.

    Returns:
        "levels", the names of K noise levels; "right", task -> (K,) losses with the right token;
        and "excess", "task, token" -> (K, 2): how much more loss the task has with another token,
        in percent of the loss with the right one, and the standard error of that.

    Raises:
        ValueError: the model doesn't know a class of the data.
    """
    if unknown := set(data.class_names) - set(pipe.class_names):
        raise ValueError(f"dataset_name: the model doesn't know its classes {', '.join(unknown)}")
    ids = pipe.vocabulary.tasks | {"null": pipe.vocabulary.null}
    losses = {
        token: loss_of(pipe, data, num_images, ids[token], seed)
        for token in tqdm([*pipe.tasks, "null"], desc="Tokens")
    }
    right, excess = {}, {}
    for task in pipe.tasks:
        by_token = {token: torch.stack([*found[task].values()]) for token, found in losses.items()}
        mine = by_token.pop(task)  # (K, N)
        mean = mine.mean(1, keepdim=True)
        right[task] = mean.flatten().tolist()
        for token, others in by_token.items():
            more = 100 * (others - mine) / mean
            error = more.std(1) / more.shape[1] ** 0.5
            excess[f"{task}, {token}"] = torch.stack([more.mean(1), error], 1).tolist()
    return {"levels": [*LEVELS], "right": right, "excess": excess}


def table(found: Mapping[str, Any]) -> str:
    """The excess as Markdown, a column for each noise level."""
    rows = [
        [name, *(f"{more:+.1f} ± {error:.1f}" for more, error in cells)]
        for name, cells in found["excess"].items()
    ]
    return markdown(["task, token", *found["levels"]], rows)
