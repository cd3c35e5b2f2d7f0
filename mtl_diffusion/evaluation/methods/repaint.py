"""RePaint: inpainting by a denoiser without holes. Lugmayr et al. 2022, arXiv:2201.09865."""

import math
from collections.abc import Sequence
from itertools import pairwise

import torch
from diffusers.utils.torch_utils import randn_tensor
from torch import Tensor

from .denoisers import Denoise


@torch.no_grad()
def repaint(
    D: Denoise,
    image: Tensor,
    mask: Tensor,
    sigmas: Sequence[float],
    generators: list[torch.Generator],
    resamplings: int = 10,
) -> Tensor:
    """Inpaints by adding new noise to the known pixels at every level.

    Each level is reached `resamplings` times: after all but the last, everything gets the noise of
    one step back, so that the hole can adapt to the known pixels. Algorithm 1 of the paper, with
    jumps of one step; its ancestral step is q(x_target | x_sigma, image = D), here of the
    variance-exploding process. With few steps that adds too little noise: the painted pixels vary
    less than they should.

    The known pixels come out exactly. Evaluations: (steps - 1) resamplings + 1.

    Args:
        mask: (B, 1, H, W) in {0, 1}, 1 = to be painted.
        resamplings: times that each level above 0 is reached; 1 for no resampling.
    """

    def noise() -> Tensor:
        return randn_tensor(image.shape, generators, image.device)

    hole = mask > 0
    x = torch.where(hole, 0.0, image) + sigmas[0] * noise()
    for sigma, target in pairwise(sigmas):
        for left in reversed(range(resamplings if target > 0 else 1)):
            fresh, kept, denoised = noise(), (target / sigma) ** 2, D(x, sigma)
            painted = denoised + kept * (x - denoised) + target * math.sqrt(1 - kept) * fresh
            x = torch.where(hole, painted, image + target * fresh)
            if left:
                x = x + math.sqrt(sigma**2 - target**2) * noise()
    return x
