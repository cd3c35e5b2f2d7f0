"""Noise, an image and a mask of 8x8 pixels, and a good call of every task of the tiny pipeline."""

import copy

import numpy as np
import pytest
import torch
from PIL import Image

from mtl_diffusion.pipeline.pipeline import TASKS

SIZE, STEPS = 8, 3
every_task = pytest.mark.parametrize("task", TASKS)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def randn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=generator(seed))


def generators(n: int) -> list[torch.Generator]:
    return [generator(seed) for seed in range(n)]


def picture(seed: int = 0) -> Image.Image:
    array = np.random.default_rng(seed).integers(0, 256, (SIZE, SIZE, 3), dtype=np.uint8)
    return Image.fromarray(array)


def hole(seed: int = 0) -> Image.Image:
    array = np.random.default_rng(seed).integers(0, 2, (SIZE, SIZE), dtype=np.uint8)
    return Image.fromarray(array * 255)


def as_tensor(image: Image.Image) -> torch.Tensor:
    return torch.from_numpy(np.asarray(image, dtype=np.float32) / 255).permute(2, 0, 1)


MASK = np.asarray(hole()) > 0
GOOD = {"image": picture(), "mask_image": hole(), "class_label": "cat"}
# What a task needs, and for some tasks what they may have.
ARGUMENTS = {name: {key: GOOD[key] for key in task.required} for name, task in TASKS.items()} | {
    "generate": {"class_label": "cat"},
    "inpaint": GOOD,
    "edit": GOOD,
    "colorize": {"image": picture(), "strength": 0.3},
}


def sample(pipe, task: str = "generate", output_type: str = "pt", **arguments):
    """A sample of a task with its `ARGUMENTS`, but for those that are given."""
    defaults = {"num_inference_steps": STEPS, "generator": generator()} | ARGUMENTS[task]
    return pipe(task=task, output_type=output_type, **(defaults | arguments)).images


def remade(pipe, scheduler=None, **learned):
    """A pipeline of the same components, but for its scheduler and what its UNet has learned."""
    unet = pipe.unet
    if learned:
        unet = copy.deepcopy(unet)
        unet.register_to_config(**learned)
    new = type(pipe)(unet, pipe.tokenizer, scheduler or pipe.scheduler)
    new.set_progress_bar_config(disable=True)
    return new
