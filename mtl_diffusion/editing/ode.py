"""The probability-flow ODE of a denoiser, with noise levels of each sample's own."""

from collections.abc import Callable
from itertools import pairwise

import torch
from torch import Tensor

# Curvature of the levels between the ends. Karras's 7 is for levels that don't end at 0.
RHO = 4


def ode_end(
    denoised: Callable[[Tensor, Tensor], Tensor], x: Tensor, sigma: Tensor, end: Tensor, steps: int
) -> Tensor:
    """Solves dx/dsigma = (x - D(x; sigma)) / sigma from sigma to end, by DPM-Solver++ (2M).

    Args:
        x: (B, C, H, W).
        sigma: (B, 1, 1, 1), where it begins.
        end: (B, 1, 1, 1), all down (sigma > end >= 0), or all up (0 < sigma < end).
        steps: evaluations of D.

    Source: Lu et al. 2022, arXiv:2211.01095, algorithm 2, for noise that is added unscaled.
    """
    roots = sigma ** (1 / RHO), end ** (1 / RHO)
    grid = [torch.lerp(*roots, k / steps) ** RHO for k in range(steps)] + [end]
    before, length_before = None, None
    for now, then in pairwise(grid):
        length = now.log() - then.log()
        D = denoised(x, now)
        direction = D
        if before is not None:
            # The step to 0 has infinite length in ln sigma, so it is of first order.
            ahead = torch.where(then > 0, length / (2 * length_before), 0.0)
            direction = D + ahead * (D - before)
        x = torch.lerp(direction, x, then / now)
        before, length_before = D, length
    return x
