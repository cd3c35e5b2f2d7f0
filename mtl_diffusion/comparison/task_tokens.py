"""Whether a model uses its task token: held-out loss with the right, each wrong and no token."""

from pathlib import Path

import numpy as np
from tqdm.auto import tqdm

from ..data.images import ImageDataset
from ..pictures.plots import signed_matrix
from ..pipeline.pipeline import TASKS, MultiTaskPipeline
from ..training.validation import held_out_loss

NULL = "null"
# task -> token -> noise level -> "loss", "excess" over the right token's, and "standard_error"
Table = dict[str, dict[str, dict[str, dict[str, float]]]]


def compare_tokens(
    pipe: MultiTaskPipeline, data: ImageDataset, num_images: int, seed: int, alike: bool
) -> Table:
    """The losses of every task with every token, the right one first.

    Each token sees the same images, noise, masks and strengths. So the excess is a mean of
    differences image by image, and its standard error is that of this mean.

    Args:
        data: held-out images.
        alike: see `held_out_loss`.

    Raises:
        ValueError: the model doesn't know a class of the data.
    """
    if unknown := set(data.class_names) - set(pipe.class_names):
        raise ValueError(f"dataset_name: the model doesn't know its classes {', '.join(unknown)}")
    data = data.relabelled(pipe.class_names)
    losses = {
        token or NULL: held_out_loss(
            pipe.unet,
            pipe.scheduler,
            [TASKS[name] for name in pipe.tasks],
            pipe.vocabulary,
            data,
            num_images,
            seed,
            task_token=token,
            alike=alike,
            device=pipe.device,
        )
        for token in tqdm([*pipe.tasks, None], desc="Tokens")
    }
    table: Table = {}
    for i, task in enumerate(pipe.tasks):
        right = losses[task].by_image[i]  # (K, N)
        table[task] = {}
        for token in [task, *(token for token in losses if token != task)]:
            excess = losses[token].by_image[i] - right
            error = excess.std(1) / excess.shape[1] ** 0.5
            table[task][token] = {
                level: {
                    "loss": round(losses[token].model[i, k].item(), 5),
                    "excess": round(excess[k].mean().item(), 5),
                    "standard_error": round(error[k].item(), 5),
                }
                for k, level in enumerate(losses[NULL].levels)
            }
    return table


def markdown(table: Table) -> str:
    """The loss with the right token, and the excess of the others, by noise level."""
    levels = list(next(iter(next(iter(table.values())).values())))
    lines = [f"| task | token | {' | '.join(levels)} |", f"|---|---|{'---|' * len(levels)}"]
    for task, tokens in table.items():
        for token, entries in tokens.items():
            cells = [
                f"{e['loss']:.4f}"
                if token == task
                else f"{e['excess']:+.4f} +- {e['standard_error']:.4f}"
                for e in entries.values()
            ]
            kind = "right" if token == task else "none" if token == NULL else f"wrong: {token}"
            lines.append(f"| {task} | {kind} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def plot(table: Table, path: Path) -> None:
    """A heat map: the excess of each other token, in percent of the loss with the right one."""
    rows, excess, error = [], [], []
    for task, tokens in table.items():
        right = np.array([entry["loss"] for entry in tokens[task].values()])
        for token, entries in tokens.items():
            if token != task:
                rows.append(f"{task}, token {token}")
                excess.append([e["excess"] for e in entries.values()] / right)
                error.append([e["standard_error"] for e in entries.values()] / right)
    levels = list(next(iter(next(iter(table.values())).values())))
    label = "more loss than with the right token, %"
    signed_matrix(100 * np.array(excess), 100 * np.array(error), rows, levels, label, path)
