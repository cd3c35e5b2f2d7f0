"""The distribution of the noise level in training."""

import torch
from torch import Tensor


def draw_sigma(n: int, mean: float, std: float, generator: torch.Generator) -> Tensor:
    """(n, 1, 1, 1) noise levels with ln sigma ~ N(mean, std^2). Karras et al. 2022, table 1."""
    normal = torch.randn(n, 1, 1, 1, generator=generator, device=generator.device)
    return (mean + std * normal).exp()
