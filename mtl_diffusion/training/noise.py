"""The distribution of the noise level in training."""

import torch
from torch import Tensor


def draw_sigma(n: int, mean: float, std: float, generator: torch.Generator) -> Tensor:
    """(n, 1, 1, 1) noise levels with ln sigma ~ N(mean, std^2). Karras et al. 2022, table 1.

    Stratified: each of the n quantile intervals of the normal holds one of them, in random order,
    so that every batch sees all noise levels alike.
    """
    place, within = torch.rand(2, n, generator=generator, device=generator.device)
    quantile = (place.argsort() + within) / n
    # 2 q - 1 is kept off -1 and 1, where the normal is infinite.
    normal = 2**0.5 * torch.erfinv((2 * quantile - 1).clamp(-1 + 1e-7, 1 - 1e-7))
    return (mean + std * normal).exp().view(n, 1, 1, 1)
