"""How well each task does on held-out images: its loss by noise level, and whether tokens count."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from .data import ImageDataset, to_unit_range
from .hub.denoiser import TASK, Conditioning, predict, tell
from .hub.task import Task
from .hub.tokens import Vocabulary
from .keyed import generator
from .losses import denoising_loss

# Borders of the noise levels that are reported apart.
SIGMA_EDGES = (0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0)


@dataclass(frozen=True)
class HeldOutLoss:
    """Mean losses of T tasks in K noise levels over the same images, noise and corruption.

    Attributes:
        tasks: (T,) names.
        edges: (K + 1,) borders of the noise levels.
        model: (T, K). zero: (T, K), what a network that always answers zero has.
        num_images: images behind each entry.
    """

    tasks: tuple[str, ...]
    edges: tuple[float, ...]
    model: Tensor
    zero: Tensor
    num_images: int

    def table(self) -> dict[str, dict[str, dict[str, float]]]:
        """task -> "low-high" -> {"loss", "zero"}, as JSON has it."""
        return {
            task: {
                f"{low:g}-{high:g}": {
                    "loss": round(self.model[i, k].item(), 5),
                    "zero": round(self.zero[i, k].item(), 5),
                }
                for k, (low, high) in enumerate(pairwise(self.edges))
            }
            for i, task in enumerate(self.tasks)
        }


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
) -> HeldOutLoss:
    """The loss of each task by noise level, on the first images of a dataset.

    Noise, masks and strengths are a function of (seed, task) alone: every call, and every noise
    level, sees the same ones, so that differences are the model's.

    Args:
        unet: a UNet2DConditionModel; its mode is left as it is found, its dropout off.
        num_images: at most the dataset's length is used.
        task_token: "right"; None for the null token; or the name of another task.
    """
    training = unet.training
    unet.eval()
    n = min(num_images, len(dataset))
    size = dataset.resolution
    images = to_unit_range(dataset.images[:n].to(device))
    labels = dataset.labels[:n].to(device)
    bins = list(pairwise(SIGMA_EDGES))
    model, zero = torch.zeros(len(tasks), len(bins)), torch.zeros(len(tasks), len(bins))
    for i, task in enumerate(tasks):
        random = generator(seed, task.name, "held out", device=device)
        choice = task.draw(n, size, 0.0, random)
        own_noise, noise = torch.randn(2, n, 3, size, size, generator=random, device=device)
        place = torch.rand(n, 1, 1, 1, generator=random, device=device)  # inside a noise level
        hint = task.condition(images, choice.mask, choice.strength, own_noise)
        told = _with_task_token(tell(hint, task, labels, vocabulary), task_token, vocabulary)
        for k, (low, high) in enumerate(bins):
            sigma = low * (high / low) ** place
            for rows in torch.arange(n, device=device).split(batch_size):
                x, eps, s, c = images[rows], noise[rows], sigma[rows], told[rows]
                F = predict(unet, scheduler, x + s * eps, s, c)
                for table, output in ((model, F), (zero, torch.zeros_like(F))):
                    loss = denoising_loss(output, x, eps, s, c.mask, scheduler)
                    table[i, k] += loss.sum().cpu() / n
    unet.train(training)
    return HeldOutLoss(tuple(t.name for t in tasks), SIGMA_EDGES, model, zero, n)


def _with_task_token(
    conditioning: Conditioning, token: str | None, vocabulary: Vocabulary
) -> Conditioning:
    if token == "right":
        return conditioning
    index = vocabulary.null if token is None else vocabulary.tasks[token]
    return conditioning.without(TASK, index)
