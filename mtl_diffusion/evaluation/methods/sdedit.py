"""SDEdit: an edit that starts from the noisy source. Meng et al. 2022, arXiv:2108.01073."""

import torch
from diffusers.utils.torch_utils import randn_tensor
from torch import Tensor

from ...editing.ode import ode_end
from .denoisers import Denoise


@torch.no_grad()
def sdedit(
    target: Denoise, image: Tensor, sigma: float, steps: int, generators: list[torch.Generator]
) -> Tensor:
    """Adds noise of the level sigma to the image, and solves the target's ODE from there.

    The level 0 gives the image back. Evaluations: one a step.
    """
    if sigma == 0:
        return image
    level = torch.full((len(image), 1, 1, 1), sigma, device=image.device)
    x = image + level * randn_tensor(image.shape, generators, image.device)
    return ode_end(target, x, level, torch.zeros_like(level), steps)
