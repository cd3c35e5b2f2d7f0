"""FlowEdit: an edit by the difference of two flows. Kulikov et al. 2024, arXiv:2412.08629."""

from collections.abc import Sequence
from itertools import pairwise

import torch
from diffusers.utils.torch_utils import randn_tensor
from torch import Tensor

from .denoisers import Denoise


@torch.no_grad()
def flowedit(
    source: Denoise,
    target: Denoise,
    image: Tensor,
    sigmas: Sequence[float],
    strength: float,
    generators: list[torch.Generator],
) -> Tensor:
    """Moves the image by the difference of the target's and the source's flow, without inversion.

    dz / dsigma = E[(z + sigma noise - D_target) / sigma - (image + sigma noise - D_source) / sigma]
    from z = image, the denoisers seeing z and the image with the same noise. That is drawn anew
    at every level, so Euler's method, the paper's too, serves as well as a higher order would.
    Algorithm 1 of the paper, with n_min = 0 and n_avg = 1, for noise that is added unscaled.

    Of n steps the last int(strength n) are taken, strength in [0, 1]. Evaluations: one a step, of
    the source and of the target.
    """
    steps, z = len(sigmas) - 1, image
    for sigma, following in pairwise(sigmas[steps - int(steps * strength) :]):
        noise = sigma * randn_tensor(image.shape, generators, image.device)
        difference = target(z + noise, sigma) - source(image + noise, sigma)
        z = z + (following - sigma) / sigma * (z - image - difference)
    return z
