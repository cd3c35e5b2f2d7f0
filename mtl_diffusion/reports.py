"""What a run tells between its steps: held-out losses and grids of samples."""

import json
from pathlib import Path

import numpy as np

from .config import TrainConfig
from .gallery import task_picture, to_pictures
from .run import Run
from .survival import io_errors_logged
from .validation import evaluating, held_out_loss


def validation_due(config: TrainConfig, done: int) -> bool:
    return done == config.max_train_steps or done % config.validation_steps == 0


def validate(run: Run, step: int, only_if_missing: bool = False) -> None:
    """Held-out loss by task and noise level, and a grid a task: logged, and written to files."""
    path = Path(run.config.output_dir) / "validation" / f"step-{step}.json"
    if run.accelerator.is_main_process and not (only_if_missing and path.exists()):
        with io_errors_logged("the validation could not be written"):
            write_validation(run, step, path)
    run.accelerator.wait_for_everyone()


def write_validation(run: Run, step: int, path: Path) -> None:
    """The JSON file comes last: a validation that has it is complete."""
    config, accelerator = run.config, run.accelerator
    folder = path.parent
    folder.mkdir(exist_ok=True)
    held_out = held_out_loss(
        run.best_unet,
        run.scheduler,
        run.mixture.tasks,
        run.vocabulary,
        run.held_out,
        config.validation_images,
        device=accelerator.device,
    )
    accelerator.log(
        {
            f"held_out/{task}/sigma_{level}": entry["loss"]
            for task, levels in held_out.table().items()
            for level, entry in levels.items()
        },
        step=step,
    )
    pipe = run.pipeline()
    pipe.set_progress_bar_config(disable=True)
    count = min(8, len(run.held_out))
    sources = to_pictures(run.held_out.images[:count])
    labels = run.held_out.labels[:count].tolist()
    with evaluating(pipe.unet):
        pictures = {
            name: task_picture(pipe, name, sources, labels, config.seed) for name in pipe.tasks
        }
    for name, picture in pictures.items():
        picture.save(folder / f"step-{step}-{name}.png")
    log_pictures(run, pictures, step)
    table = {"step": step, "num_images": held_out.num_images, "loss": held_out.table()}
    path.write_text(json.dumps(table, indent=2) + "\n")


def log_pictures(run: Run, pictures: dict, step: int) -> None:
    """Hands the grids to the trackers, each in its own way."""
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
