"""Validation: held-out losses and grids of samples, logged and written to files."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
from accelerate.utils import gather_object
from PIL.Image import Image

from ..config import TrainConfig
from ..pictures.grids import task_picture
from ..tools.distributed import any_process, io_errors_logged
from ..tools.files import write_text
from .run import Run
from .validation import HeldOutLoss, held_out_loss


def validation_due(config: TrainConfig, done: int) -> bool:
    """Whether the run validates after so many steps."""
    return done == config.max_train_steps or done % config.validation_steps == 0


def validate(run: Run, step: int, only_if_missing: bool = False) -> None:
    """Held-out loss by task and noise level, and a grid a task: logged, and written to files.

    The processes share the images, and then the grids.
    """
    path = Path(run.config.output_dir) / "validation" / f"step-{step}.json"
    main = run.accelerator.is_main_process
    if only_if_missing and any_process(main and path.exists()):
        return
    held_out, pictures = _losses(run), _pictures(run)
    if main:
        with io_errors_logged("the validation could not be written"):
            write_validation(run, step, path, held_out, pictures)
    run.accelerator.wait_for_everyone()


def write_validation(
    run: Run, step: int, path: Path, held_out: HeldOutLoss, pictures: dict[str, Image]
) -> None:
    """Writes pictures and curves, and the JSON file last, which marks a complete validation."""
    path.parent.mkdir(exist_ok=True)
    run.accelerator.log(
        {
            f"held_out/{task}/sigma_{level}": loss
            for task, levels in held_out.table().items()
            for level, loss in levels.items()
        },
        step=step,
    )
    for name, picture in pictures.items():
        picture.save(path.parent / f"step-{step}-{name}.png")
    log_pictures(run, pictures, step)
    table = {"step": step, "num_images": held_out.num_images, "loss": held_out.table()}
    write_text(path, json.dumps(table, indent=2) + "\n")


def _losses(run: Run) -> HeldOutLoss:
    accelerator = run.accelerator
    mine = held_out_loss(
        run.best_unet,
        run.scheduler,
        run.mixture.tasks,
        run.vocabulary,
        run.held_out,
        run.config.validation_images,
        device=accelerator.device,
        rank=accelerator.process_index,
        world=accelerator.num_processes,
        objective=run.unwrapped,
        pairs=run.held_out_pairs,
    )
    whole = accelerator.reduce(mine.by_image.to(accelerator.device), "sum")
    return replace(mine, by_image=whole.cpu())


def _pictures(run: Run) -> dict[str, Image]:
    """Task -> its grid, on all processes. Each process draws every world-th task."""
    accelerator = run.accelerator
    shown = run.held_out.spread(8)
    labels = shown.labels.tolist()
    conditions = {task: replace(shown, images=layer) for task, layer in shown.conditions.items()}
    with run.pipeline() as pipe:
        pipe.set_progress_bar_config(disable=True)
        mine = pipe.tasks[accelerator.process_index :: accelerator.num_processes]
        drawn = [
            (
                name,
                task_picture(
                    pipe, name, conditions.get(name, shown).arrays, labels, run.config.seed
                ),
            )
            for name in mine
        ]
    found = dict(gather_object(drawn))
    return {name: found[name] for name in pipe.tasks}


def log_pictures(run: Run, pictures: dict, step: int) -> None:
    """Logs the grids to the trackers, each through its own interface."""
    for tracker in run.accelerator.trackers:
        if tracker.name == "tensorboard":
            for name, picture in pictures.items():
                pixels = np.asarray(picture)[None]
                tracker.log_images({f"samples/{name}": pixels}, step=step, dataformats="NHWC")
        elif tracker.name == "wandb":
            tracker.log_images({f"samples/{n}": [p] for n, p in pictures.items()}, step=step)
        elif tracker.name == "trackio":
            import trackio

            tracker.log({f"samples/{n}": trackio.Image(p) for n, p in pictures.items()}, step=step)
