"""Inpainting and editing with the generate task alone, as baselines with the same weights.

Everywhere:
    D, source, target: D(x, sigma), as in denoise.py; `source` is conditioned on the class of the
        image, or on none, `target` on the class that is requested.
    image: (B, 3, H, W) float32 in [-1, 1].
    sigmas: falling noise levels, the last one 0, from `denoise.noise_levels`.
    sigma: the noise level where SDEdit and DDIM inversion start down, 0 or more; 0 gives the image
        back. For FlowEdit, which needs higher ones, the strength in [0, 1] is a share of the steps,
        as in diffusers' image-to-image pipelines: the last int(strength n) of n are done.
    generators: one for each image, so that results don't depend on the batch.
They return images like `image`, not clipped.
"""

import math
from collections.abc import Sequence
from itertools import pairwise

import torch
from diffusers.utils.torch_utils import randn_tensor
from torch import Tensor

from ..pipeline.inversion import LOWEST
from ..pipeline.ode import ode_end
from .denoise import Denoise


@torch.no_grad()
def repaint(
    D: Denoise,
    image: Tensor,
    mask: Tensor,
    sigmas: Sequence[float],
    generators: list[torch.Generator],
    resamplings: int = 10,
) -> Tensor:
    """Inpaints by noising the known pixels anew at every level.

    Each level is reached `resamplings` times: after all but the last, everything is noised back up
    by one step, so that the hole can adapt to the known pixels. Known pixels come out
    exactly. Lugmayr et al. 2022, RePaint, algorithm 1, with jumps of one step; its ancestral step
    is q(x_target | x_sigma, image = D), here of the variance-exploding process. With few steps that
    adds too little noise: the painted pixels vary less than they should.

    Args:
        mask: (B, 1, H, W) in {0, 1}, 1 = to be painted.
        resamplings: times that each level is reached, 1 for no resampling. The last, 0, is
            reached once.

    Evaluations: (steps - 1) resamplings + 1.
    """
    hole = mask > 0
    x = torch.where(hole, 0.0, image) + sigmas[0] * _noise(image, generators)
    for sigma, target in pairwise(sigmas):
        for left in reversed(range(resamplings if target > 0 else 1)):
            noise = _noise(image, generators)
            keep = (target / sigma) ** 2
            denoised = D(x, sigma)
            painted = denoised + keep * (x - denoised) + target * math.sqrt(1 - keep) * noise
            x = torch.where(hole, painted, image + target * noise)
            if left:
                x = x + math.sqrt(sigma**2 - target**2) * _noise(image, generators)
    return x


@torch.no_grad()
def sdedit(
    target: Denoise, image: Tensor, sigma: float, steps: int, generators: list[torch.Generator]
) -> Tensor:
    """Noises the image to the level sigma, and solves from there. Meng et al. 2022.

    Evaluations: one a step; none from 0, which gives the image back.
    """
    if sigma == 0:
        return image
    level = torch.full((len(image), 1, 1, 1), sigma, device=image.device)
    x = image + level * _noise(image, generators)
    return ode_end(target, x, level, 0 * level, steps)


@torch.no_grad()
def ddim_inversion(
    source: Denoise,
    target: Denoise,
    image: Tensor,
    sigma: float,
    steps: int,
    inversion_steps: int,
) -> Tensor:
    """Carries the image up the source's flow, and down the target's. Song et al. 2021, DDIM, 4.3.

    The flow is not defined at 0. So the image counts as a sample at the level LOWEST.

    Args:
        inversion_steps: of the way up.

    Evaluations: one a step, of the source on the way up and of the target on the way down; none
    from LOWEST or below, which gives the image back.
    """
    if sigma <= LOWEST:
        return image
    level = torch.full((len(image), 1, 1, 1), sigma, device=image.device)
    x = ode_end(source, image, torch.full_like(level, LOWEST), level, inversion_steps)
    return ode_end(target, x, level, 0 * level, steps)


@torch.no_grad()
def flowedit(
    source: Denoise,
    target: Denoise,
    image: Tensor,
    sigmas: Sequence[float],
    strength: float,
    generators: list[torch.Generator],
) -> Tensor:
    """Moves the image by the difference of two flows, without an inversion.

    dz / dsigma = E[(z + sigma noise - D_target) / sigma - (image + sigma noise - D_source) / sigma]
    from z = image, the denoisers seeing z and the image with the same noise. That is drawn anew
    at every level, so Euler's method, the paper's too, serves as well as a higher order would.
    Kulikov et al. 2024, FlowEdit, algorithm 1, with n_min = 0 and n_avg = 1.

    Evaluations: one a step, of the source and of the target.
    """
    z = image
    for sigma, following in pairwise(start(sigmas, strength)):
        noise = sigma * _noise(image, generators)
        difference = target(z + noise, sigma) - source(image + noise, sigma)
        z = z + (following - sigma) / sigma * (z - image - difference)
    return z


def start(sigmas: Sequence[float], strength: float) -> Sequence[float]:
    """The noise levels from the strength's on: int(strength steps) steps, the last one to 0."""
    steps = len(sigmas) - 1
    return sigmas[steps - int(steps * strength) :]


def _noise(image: Tensor, generators: list[torch.Generator]) -> Tensor:
    return randn_tensor(image.shape, generators, image.device, image.dtype)
