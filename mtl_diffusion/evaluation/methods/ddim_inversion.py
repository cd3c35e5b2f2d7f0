"""DDIM inversion: an edit from the noise of the source. Song et al. 2021, arXiv:2010.02502."""

import torch
from torch import Tensor

from ...editing.ode import ode_end
from .denoisers import Denoise

LOWEST = 0.01  # noise level that an image counts as having: the ODE is not defined at 0


@torch.no_grad()
def ddim_inversion(
    source: Denoise, target: Denoise, image: Tensor, sigma: float, steps: int, inversion_steps: int
) -> Tensor:
    """Carries the image up the source's ODE to the level sigma, and down the target's. Section 4.3.

    A level up to LOWEST gives the image back. The steps are those of the way down. Evaluations: one
    a step, of the source on the way up and of the target on the way down.
    """
    if sigma <= LOWEST:
        return image
    level = torch.full((len(image), 1, 1, 1), sigma, device=image.device)
    x = ode_end(source, image, torch.full_like(level, LOWEST), level, inversion_steps)
    return ode_end(target, x, level, torch.zeros_like(level), steps)
