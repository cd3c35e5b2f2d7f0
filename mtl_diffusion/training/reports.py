"""Validation: held-out losses and grids of samples, logged and written to files."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
from accelerate.tracking import GeneralTracker
from accelerate.utils import gather_object
from PIL.Image import Image
from torch import Tensor

from ..config import TrainConfig
from ..pictures.grids import task_picture
from ..pipeline.pipeline import MultiTaskPipeline
from ..tools.distributed import any_process, io_errors_logged
from ..tools.files import write_text
from .run import Run
from .validation import held_out_loss


def validation_due(config: TrainConfig, done: int) -> bool:
    """Whether the run validates after so many steps."""
    return done == config.max_train_steps or done % config.validation_steps == 0


def validate(run: Run, step: int, only_if_missing: bool = False) -> None:
    """Held-out loss by task and noise level, and a grid a task: logged, and written to files.

    The processes share the images, and then the grids.
    """
    path = Path(run.config.output_dir) / "validation" / f"step-{step}.json"
    accelerator, main = run.accelerator, run.accelerator.is_main_process
    if only_if_missing and any_process(main and path.exists()):
        return
    with run.pipeline() as pipe:
        losses = held_out_loss(
            run.unwrapped,
            pipe.unet,
            replace(run.mixture, pairs=run.held_out_pairs),
            run.held_out,
            run.config.validation_images,
            rank=accelerator.process_index,
            world=accelerator.num_processes,
        )
        pictures = _pictures(run, pipe)
    losses = accelerator.reduce(losses, "sum")
    if main:
        with io_errors_logged("the validation could not be written"):
            _write(run, step, path, losses, pictures)
    accelerator.wait_for_everyone()


def _pictures(run: Run, pipe: MultiTaskPipeline) -> dict[str, Image]:
    """Task -> its grid, on all processes. Each process draws every world-th task."""
    accelerator, shown, drawn = run.accelerator, run.held_out.spread(8), []
    pipe.set_progress_bar_config(disable=True)
    for name in pipe.tasks[accelerator.process_index :: accelerator.num_processes]:
        images = replace(shown, images=shown.conditions.get(name, shown.images)).arrays
        picture = task_picture(pipe, name, images, shown.labels.tolist(), run.config.seed)
        drawn.append((name, picture))
    return dict(gather_object(drawn))


def _write(
    run: Run,
    step: int,
    path: Path,
    losses: dict[str, dict[str, Tensor]],
    pictures: dict[str, Image],
) -> None:
    """Logs curves and pictures, and writes files, the JSON last: it marks a complete validation."""
    path.parent.mkdir(exist_ok=True)
    table, curves = {}, {}
    for task, levels in losses.items():
        table[task] = {level: round(loss.mean().item(), 5) for level, loss in levels.items()}
        curves |= {f"held_out/{task}/sigma_{level}": loss for level, loss in table[task].items()}
    run.accelerator.log(curves, step=step)
    for name, picture in pictures.items():
        picture.save(path.parent / f"step-{step}-{name}.png")
    for tracker in run.accelerator.trackers:
        _log_pictures(tracker, {f"samples/{name}": p for name, p in pictures.items()}, step)
    number = min(run.config.validation_images, len(run.held_out))
    facts = {"step": step, "num_images": number, "loss": table}
    write_text(path, json.dumps(facts, indent=2) + "\n")


def _log_pictures(tracker: GeneralTracker, pictures: dict[str, Image], step: int) -> None:
    """Logs the grids through the interface of the tracker; those of accelerate differ."""
    if tracker.name == "trackio":  # it has none
        import trackio

        tracker.log({name: trackio.Image(picture) for name, picture in pictures.items()}, step=step)
    elif tracker.name == "wandb":
        tracker.log_images({name: [picture] for name, picture in pictures.items()}, step=step)
    else:
        pixels = {name: np.asarray(picture)[None] for name, picture in pictures.items()}
        tracker.log_images(pixels, step=step, dataformats="NHWC")
