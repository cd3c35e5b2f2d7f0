"""Do the tasks pull the shared weights one way? The cosine of their gradients, by noise level."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor
from tqdm.auto import tqdm

from ..data.images import ImageDataset
from ..pipeline.denoiser import build_conditioning, predict
from ..pipeline.pipeline import MultiTaskPipeline
from ..pipeline.task import Task
from ..tools.rng import generator
from ..tools.tensors import to_unit_range
from ..training.losses import denoising_loss
from ..training.validation import SIGMA_EDGES


@dataclass(frozen=True)
class GradientCosines:
    """Cosines of the gradients of T tasks in K noise levels, over R batches.

    Attributes:
        tasks: (T,) names. edges: (K + 1,) borders of the noise levels.
        between: (R, K, T, T), of two tasks on the same images and noise.
        repeated: (R - 1, K, T), of a task on two batches: what the noise of a batch leaves of a
            cosine of 1.
        norm: (R, K, T) norms of the gradients.
    """

    tasks: tuple[str, ...]
    edges: tuple[float, ...]
    between: Tensor
    repeated: Tensor
    norm: Tensor

    @property
    def levels(self) -> tuple[str, ...]:
        return tuple(f"{low:g}-{high:g}" for low, high in pairwise(self.edges))


def cosines(rows: Tensor, others: Tensor) -> Tensor:
    """(T, P), (S, P) -> (T, S); 0 where a gradient is zero."""
    return torch.nn.functional.normalize(rows, dim=1) @ (
        torch.nn.functional.normalize(others, dim=1).T
    )


def gradient_cosines(
    pipe: MultiTaskPipeline,
    tasks: Sequence[Task],
    dataset: ImageDataset,
    batch_size: int,
    num_batches: int,
    seed: int = 0,
) -> GradientCosines:
    """The gradients of each task's plain loss by all of the UNet's weights.

    In a batch all tasks see the same images, noise and noise levels; masks and strengths are each
    task's own, as in training.

    Args:
        dataset: with labels in the pipeline's order.
        batch_size, num_batches: images in a batch; batches, 2 or more, of different images.
    """
    if num_batches < 2 or batch_size * num_batches > len(dataset):
        raise ValueError(
            f"gradient batches: found {num_batches} of {batch_size} images; there must be two or "
            f"more, and the {len(dataset)} images must suffice"
        )
    bins = list(pairwise(SIGMA_EDGES))
    parameters = [
        p.requires_grad_() for n, p in pipe.unet.named_parameters() if "time_proj" not in n
    ]
    pipe.unet.eval()
    between = torch.zeros(num_batches, len(bins), len(tasks), len(tasks))
    repeated = torch.zeros(num_batches - 1, len(bins), len(tasks))
    norm = torch.zeros(num_batches, len(bins), len(tasks))
    before: list[Tensor] = []
    for r in tqdm(range(num_batches), desc="Gradients", unit="batch"):
        rows = slice(r * batch_size, (r + 1) * batch_size)
        jacobians = [
            torch.stack(
                [_gradient(pipe, parameters, task, dataset, rows, bin, seed) for task in tasks]
            )
            for bin in tqdm(bins, desc=f"Batch {r}", leave=False)
        ]
        for k, rows_now in enumerate(jacobians):
            between[r, k] = cosines(rows_now, rows_now)
            norm[r, k] = rows_now.norm(dim=1)
            if r:
                repeated[r - 1, k] = cosines(rows_now, before[k]).diagonal()
        before = jacobians
    for parameter in parameters:
        parameter.requires_grad_(False)
    return GradientCosines(tuple(t.name for t in tasks), SIGMA_EDGES, between, repeated, norm)


def _gradient(
    pipe: MultiTaskPipeline,
    parameters: Sequence[Tensor],
    task: Task,
    dataset: ImageDataset,
    rows: slice,
    bin: tuple[float, float],
    seed: int,
) -> Tensor:
    """(P,) gradient of the mean loss of a task on some rows, with sigma in a bin."""
    device, (low, high) = pipe.device, bin
    images = to_unit_range(dataset.images[rows].to(device))
    labels = dataset.labels[rows].to(device)
    common = generator(seed, rows.start, "gradients", device=device)
    noise = torch.randn(images.shape, generator=common, device=device)
    sigma = low * (high / low) ** torch.rand(len(images), 1, 1, 1, generator=common, device=device)
    own = generator(seed, rows.start, task.name, "gradients", device=device)
    choice = task.draw(len(images), dataset.resolution, 0.0, own)
    own_noise = torch.randn(images.shape, generator=own, device=device)
    hint = task.condition(images, choice.mask, choice.strength, own_noise)
    told = build_conditioning(hint, task, labels, pipe.vocabulary)
    output = predict(pipe.unet, pipe.scheduler, images + sigma * noise, sigma, told)
    loss = denoising_loss(output, images, noise, sigma, told.mask, pipe.scheduler).mean()
    gradients = torch.autograd.grad(loss, parameters, materialize_grads=True)
    return torch.cat([gradient.flatten() for gradient in gradients])
