"""Bits per dimension of images under a denoiser's probability-flow ODE.

The model is the density p that the flow dx / dsigma = (x - D) / sigma makes of N(0, high^2 I) when
it is followed down from the noise level high to low. As the flow is a differential equation,

    ln p(x) = ln N(x(high); 0, high^2 I) + integral over ln sigma of [d - tr dD/dx], low to high,

along the path that starts from x at low: Song et al. 2021, arXiv:2011.13456, eq. 39, in the
notation of Karras et al. 2022. Noise levels below low add nothing: the samples of this model are
those at low, which have seen no last denoising step.

A pixel k of an image is a bin in [-1, 1]: of 8 bits, one of width 2 / 255 around k / 127.5 - 1. Its
probability P is the integral of p over the bins. With x uniform in them, Jensen's inequality gives
-ln P <= E[-ln p(x)] - d ln(width). The result is an estimate, without bias except for the solver's
error, of the right side, in bits and divided by d: an upper bound of the model's bits per
dimension.
"""

import math
from itertools import pairwise

import torch
from torch import Tensor

from ...editing.ode import ode_end
from .denoisers import Denoise

PIECES = 4  # of the ODE: the solver's levels lie close together at the upper end of each
Generators = list[torch.Generator]


def bits_per_dim(D: Denoise, images: Tensor, generators: Generators, width: float, **ode) -> Tensor:
    """One draw of the bound for each image: one place in its bins, one probe a noise level.

    The error of few steps has no known bound: report the result at two numbers of steps.

    Args:
        D: gradients pass through it.
        images: (B, C, H, W) in [-1, 1], on the denoiser's device.
        width: the distance of two numbers that a pixel can have, in [-1, 1].
        ode: low and high, noise levels, and steps of the solver.

    Returns:
        (B,) float64.

    Evaluations: steps + 1, each with a gradient.
    """
    x = images + width * (_uniform(images, generators) - 0.5)
    nats = -log_density(D, x, generators, **ode)
    return (nats / x[0].numel() - math.log(width)) / math.log(2)


@torch.no_grad()
def log_density(
    D: Denoise, x: Tensor, generators: Generators, low: float, high: float, steps: int
) -> Tensor:
    """An estimate of ln p(x), (B,) float64, for x (B, C, H, W) at low. See `bits_per_dim`."""
    d, levels, slopes = x[0].numel(), [], []

    def traced(x: Tensor, sigma: Tensor) -> Tensor:
        denoised, trace = denoised_and_trace(D, x, sigma, generators)
        levels.append(sigma.flatten()[0].double().log())
        slopes.append(d - trace)
        return denoised

    ends = [low * (high / low) ** (k / PIECES) for k in range(PIECES + 1)]
    for sigma, end in pairwise(x.new_full((len(x), 1, 1, 1), end) for end in ends):
        x = ode_end(traced, x, sigma, end, steps // PIECES)
    traced(x, end)
    integral = torch.trapezoid(torch.stack(slopes), torch.stack(levels), dim=0)
    squares = x.double().square().flatten(1).sum(1)
    return integral - squares / (2 * high**2) - d / 2 * math.log(2 * math.pi * high**2)


def denoised_and_trace(
    D: Denoise, x: Tensor, sigma: Tensor | float, generators: Generators
) -> tuple[Tensor, Tensor]:
    """D(x, sigma), and an estimate of the trace of dD/dx for each image, (B,) float64.

    v^T (dD/dx) v with v of random signs: Skilling 1989, Hutchinson 1990. Its noise comes from the
    entries off the diagonal alone. A v for every call, so that the errors of many calls cancel.
    """
    signs = torch.where(_uniform(x, generators) < 0.5, -1.0, 1.0).to(x.dtype)
    with torch.enable_grad():
        x = x.detach().requires_grad_()
        denoised = D(x, sigma)
        (product,) = torch.autograd.grad(denoised, x, signs)  # v^T dD/dx
    return denoised.detach(), (product * signs).double().flatten(1).sum(1)


def _uniform(like: Tensor, generators: Generators) -> Tensor:
    """Uniform in [0, 1), float32, of the shape and on the device of `like`, row by row."""
    rows = [torch.rand(like.shape[1:], generator=g, device=g.device) for g in generators]
    return torch.stack(rows).to(like.device)
