"""The loss of each task on held-out images, by noise level."""

import torch
from diffusers import UNet2DConditionModel
from torch import Tensor

from ..data.images import ImageDataset
from ..data.loader import Batch
from ..pipeline.denoiser import Denoiser
from ..tools.rng import generator
from .losses import Objective, denoising_loss
from .mixture import Mixture

BATCH = 128  # images that are evaluated at once


@torch.no_grad()
def held_out_loss(
    objective: Objective,
    unet: UNet2DConditionModel,
    mixture: Mixture,
    dataset: ImageDataset,
    num_images: int,
    seed: int = 0,
    rank: int = 0,
    world: int = 1,
) -> dict[str, dict[str, Tensor]]:
    """Task -> noise level -> losses (N,), each over the same N images, noise and corruption.

    Noise, masks and strengths are functions of (seed, task), the same at every call and every
    noise level. So two models, or two noise levels, differ in nothing else.

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
        random = generator(seed, task.name, "held out", device=device)
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
