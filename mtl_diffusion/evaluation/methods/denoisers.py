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

from ...editing.whole import class_difference, relevance
from ...pipeline.denoiser import CLASS, Conditioning, build_conditioning, guided
from ...pipeline.pipeline import TASKS, MultiTaskPipeline

Denoise = Callable[[Tensor, Tensor | float], Tensor]


def generate_denoiser(
    pipe: MultiTaskPipeline, label: Tensor, guidance_scale: float | Tensor = 1.0
) -> Denoise:
    """D(x, sigma) of generate, for class labels (B,) int64, -1 for none.

    A guidance of 1 is off; it may be (B, 1, H, W).
    """
    null, conditioning = pipe.vocabulary.null, _conditioning(pipe, label)
    return guided(pipe.unet, pipe.scheduler, conditioning, null, guidance_scale)


@torch.no_grad()
def local_weights(pipe: MultiTaskPipeline, image: Tensor, label: Tensor, generators) -> Tensor:
    """(B, 1, H, W) the weights of local guidance, which multiply a scale: see `relevance`."""
    toward = _conditioning(pipe, label)
    away = toward.without(CLASS, pipe.vocabulary.null)
    difference = class_difference(pipe, image, toward, away, generators)
    return relevance(difference, torch.ones_like(difference))


def _conditioning(pipe: MultiTaskPipeline, label: Tensor) -> Conditioning:
    task, device = TASKS["generate"], pipe.unet.device
    blank = torch.zeros(len(label), *pipe.format.shape, device=device)
    hint = task.condition(blank, blank[:, :1], None, blank)
    return build_conditioning(hint, task, label.to(device), pipe.vocabulary)


def noise_levels(scheduler, steps: int) -> tuple[float, ...]:
    """The steps + 1 noise levels that a scheduler visits, from sigma_max over sigma_min to 0."""
    copy = type(scheduler).from_config(scheduler.config, final_sigmas_type="zero")
    copy.set_timesteps(steps)
    return tuple(copy.sigmas.tolist())
