"""The loss of each task on held-out images, by noise level."""

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ..data.images import FRAME, ImageDataset
from ..editing.pairs import EditPairs
from ..pipeline.denoiser import TASK, Conditioning, build_conditioning, predict
from ..pipeline.edit import Edit
from ..pipeline.task import Task
from ..pipeline.tokens import Vocabulary
from ..tools.rng import generator
from .losses import LEVELS, Objective, denoising_loss
from .mixture import of_pairs, source_of


@dataclass(frozen=True)
class HeldOutLoss:
    """Losses of T tasks in K noise levels, each over the same N images, noise and corruption.

    Attributes:
        tasks: (T,) names.
        levels: (K,) names of the noise levels.
        by_image: (T, K, N) losses of the model.
    """

    tasks: tuple[str, ...]
    levels: tuple[str, ...]
    by_image: Tensor

    @property
    def mean(self) -> Tensor:
        """(T, K) means over the images."""
        return self.by_image.mean(-1)

    @property
    def num_images(self) -> int:
        return self.by_image.shape[-1]

    def table(self) -> dict[str, dict[str, float]]:
        """task -> level -> loss, without levels that are not learned."""
        return {
            task: {
                level: round(loss, 5)
                for level, loss in zip(self.levels, losses, strict=True)
                if not math.isnan(loss)
            }
            for task, losses in zip(self.tasks, self.mean.tolist(), strict=True)
        }


@contextmanager
def evaluating(module: nn.Module) -> Iterator[None]:
    """Eval mode inside; afterwards restores the train or eval mode of every submodule."""
    modes = [part.training for part in module.modules()]
    module.eval()
    try:
        yield
    finally:
        for part, mode in zip(module.modules(), modes, strict=True):
            part.training = mode


@torch.no_grad()
def held_out_loss(
    unet,
    scheduler,
    tasks: Sequence[Task],
    vocabulary: Vocabulary,
    dataset: ImageDataset,
    num_images: int,
    seed: int = 0,
    batch_size: int = 128,
    task_token: str | None = "right",
    device: torch.device | str = "cpu",
    rank: int = 0,
    world: int = 1,
    objective: Objective | None = None,
    pairs: EditPairs | None = None,
) -> HeldOutLoss:
    """The loss of each task by noise level, on the first images of a dataset.

    Noise, masks and strengths are functions of (seed, task), the same at every call and every
    noise level. So two models, or two noise levels, differ in nothing else.

    Args:
        unet: a UNet2DConditionModel; evaluated without dropout, its modes are restored.
        num_images: of the dataset, if it has as many.
        task_token: "right"; None for the null token; or the name of another task.
        rank: the first image that is evaluated.
        world: only every world-th image from there on is evaluated. The losses of the others are
            zero, so that the sum over all ranks is the whole.
        objective: gives the targets and the noise levels; its tasks are `tasks`. None: denoising.
        pairs: what edit is measured on, at the highest level alone. None: as the other tasks.
    """
    n = min(num_images, len(dataset))
    form, frame = dataset.format, dataset.layers.get(FRAME)
    images = form.from_stored(dataset.images[:n].to(device))
    labels = dataset.labels[:n].to(device)
    levels = objective.levels if objective else LEVELS
    by_image = torch.zeros(len(tasks), len(levels), n)
    own = torch.arange(n, device=device)[rank::world]
    own = own.split(batch_size) if len(own) else ()  # a process may have no image
    with evaluating(unet):
        for i, task in enumerate(tasks):
            random = generator(seed, task.name, "held out", device=device)
            choice = task.draw(n, form.size, 0.0, random)
            own_noise, noise = torch.randn(2, n, *form.shape, generator=random, device=device)
            place = torch.rand(n, 1, 1, 1, generator=random, device=device)  # within a noise level
            is_pair = pairs is not None and task.name == Edit.name
            if is_pair:
                target, hint, label = of_pairs(
                    pairs[torch.arange(n, device=device) % len(pairs)], form
                )
            else:
                target, label = images, labels
                every = torch.arange(n)
                source = source_of(task, dataset.layers, form, images, every).to(device)
                hint = task.condition(source, choice.mask, choice.strength, own_noise)
                if frame is not None:
                    hint = hint.within(frame[:n].to(device), images)
            conditioning = _with_task_token(
                build_conditioning(hint, task, label, vocabulary), task_token, vocabulary
            )
            highest = max(levels.values())
            for k, (low, high) in enumerate(levels.values()):
                if is_pair and (low, high) != highest:
                    by_image[i, k] = torch.nan
                    continue
                sigma = low * (high / low) ** place
                for rows in own:
                    x, eps, s, c = target[rows], noise[rows], sigma[rows], conditioning[rows]
                    if objective is not None:
                        x, eps = objective.target(x, eps, s, c, torch.full_like(rows, i))
                    F = predict(unet, scheduler, x + s * eps, s, c)
                    loss = denoising_loss(F, x, eps, s, c.mask, scheduler)
                    by_image[i, k, rows.cpu()] = loss.cpu()
    return HeldOutLoss(tuple(t.name for t in tasks), tuple(levels), by_image)


def _with_task_token(
    conditioning: Conditioning, token: str | None, vocabulary: Vocabulary
) -> Conditioning:
    if token == "right":
        return conditioning
    index = vocabulary.null if token is None else vocabulary.tasks[token]
    return conditioning.without(TASK, index)
