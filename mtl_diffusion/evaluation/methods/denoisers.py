"""The generate task of a pipeline as a denoiser D(x, sigma), and the noise levels of its scheduler.

D(x, sigma) is E[image | x] for x = image + sigma noise: Karras et al. 2022, arXiv:2206.00364. The
methods of this folder take any callable of these arguments, and tests give them exact ones:
    x: (B, C, H, W) float32, images in [-1, 1] with noise.
    sigma: one noise level for all images, or (B, 1, 1, 1).
It returns (B, C, H, W) float32 and clips nothing. Gradients pass through it.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from ...pipeline.denoiser import build_conditioning, guided
from ...pipeline.pipeline import TASKS, MultiTaskPipeline

Denoise = Callable[[Tensor, Tensor | float], Tensor]


def generate_denoiser(
    pipe: MultiTaskPipeline, label: Tensor, guidance_scale: float = 1.0
) -> Denoise:
    """D(x, sigma) of generate, for class labels (B,) int64, -1 for none. A guidance of 1 is off."""
    unet, scheduler, task = pipe.unet, pipe.scheduler, TASKS["generate"]
    blank = torch.zeros(len(label), *pipe.format.shape, device=unet.device)
    hint = task.condition(blank, blank[:, :1], None, blank)
    conditioning = build_conditioning(hint, task, label.to(unet.device), pipe.vocabulary)
    return guided(unet, scheduler, conditioning, pipe.vocabulary.null, guidance_scale)


def noise_levels(scheduler, steps: int) -> tuple[float, ...]:
    """The steps + 1 noise levels that a scheduler visits, from sigma_max over sigma_min to 0."""
    copy = type(scheduler).from_config(scheduler.config, final_sigmas_type="zero")
    copy.set_timesteps(steps)
    return tuple(copy.sigmas.tolist())
