"""Validation: held-out losses by task and noise level, and grids of samples.

They are logged, and written to files.
"""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from accelerate.tracking import GeneralTracker
from accelerate.utils import gather_object
from diffusers import UNet2DConditionModel
from PIL.Image import Image
from torch import Tensor

from ..config import TrainConfig
from ..data.images import ImageDataset
from ..data.loader import Batch
from ..pictures.grids import task_picture
from ..pipeline.denoiser import Denoiser
from ..pipeline.pipeline import MultiTaskPipeline
from ..tools.distributed import any_process, io_errors_logged
from ..tools.files import write_text
from ..tools.rng import generator
from .losses import Objective, denoising_loss
from .mixture import Mixture
from .run import Run

BATCH = 128  # images that are evaluated at once


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


@torch.no_grad()
def held_out_loss(
    objective: Objective,
    unet: UNet2DConditionModel,
    mixture: Mixture,
    dataset: ImageDataset,
    num_images: int,
    rank: int = 0,
    world: int = 1,
) -> dict[str, dict[str, Tensor]]:
    """Task -> noise level -> losses (N,), each over the same N images, noise and corruption.

    Noise, masks and strengths are functions of the task, the same at every call and every noise
    level. So two models, or two noise levels, differ in nothing else.

    Args:
        objective: gives the targets and the noise levels.
        unet: the network that is evaluated, in eval mode.
        mixture: the tasks. Where it has pairs, edit is measured on these, at the highest level.
        num_images: of the dataset, if it has as many, of all its classes.
        rank: the first image that is evaluated.
        world: only every world-th image from there on is evaluated. The losses of the others are
            zero, so that the sum over all ranks is the whole.
    """
    n, device, form = min(num_images, len(dataset)), unet.device, mixture.images
    # Many datasets are sorted by class, so each class gives its share, at an even stride.
    rows = dataset.labels.argsort(stable=True)[torch.arange(n) * len(dataset) // n].sort().values
    layers = {name: layer[rows].to(device) for name, layer in dataset.layers.items()}
    images = form.from_stored(dataset.images[rows].to(device))
    batch = Batch(images, dataset.labels[rows].to(device), layers)
    mine = torch.arange(n, device=device)[rank::world]
    mine = mine.split(BATCH) if len(mine) else ()  # a process may have no image
    highest, losses = max(objective.levels.values()), {}
    for i, task in enumerate(mixture.tasks):
        random = generator(0, task.name, "held out", device=device)
        choice = task.draw(n, form.size, 0.0, random)
        corruption, noise = torch.randn(2, n, *form.shape, generator=random, device=device)
        place = torch.rand(n, 1, 1, 1, generator=random, device=device)  # within a noise level
        levels, target = objective.levels, images
        if mixture.learns_pairs(task):
            levels = {name: level for name, level in levels.items() if level == highest}
            pairs = mixture.pairs[torch.arange(n, device=device) % len(mixture.pairs)]
            target, given = mixture.of_pairs(task, pairs)
        else:
            given = mixture.of_images(task, batch, choice.mask, choice.strength, corruption)
        losses[task.name] = {name: torch.zeros(n, device=device) for name in levels}
        for name, (low, high) in levels.items():
            sigma = low * (high / low) ** place
            for part in mine:
                s, c = sigma[part], given[part]
                task_index = torch.full_like(part, i)
                x, eps = objective.target(target[part], noise[part], s, c, task_index)
                D = Denoiser.of(unet, objective.scheduler, c)(x + s * eps, s)
                loss = denoising_loss(D, x, s, c.mask, objective.scheduler)
                losses[task.name][name][part] = loss
    return losses
