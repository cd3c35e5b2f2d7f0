"""Bits per dimension of images under a denoiser's probability flow.

The model is the density p that the flow dx / dsigma = (x - D) / sigma makes of N(0, sigma_max^2 I)
when it is followed down to sigma_min. As the flow is a differential equation,

    ln p(x) = ln N(x(sigma_max); 0, sigma_max^2 I)
              + integral over ln sigma of [d - tr dD/dx], from sigma_min to sigma_max,

along the path that starts from x at sigma_min: Song et al. 2021, arXiv:2011.13456, eq. 39, in the
notation of Karras et al. 2022. There is no further term for noise levels below sigma_min: the
samples of this model are those at sigma_min, which have seen no last denoising step.

A pixel k of an image is a bin of width 2 / 255 around k / 127.5 - 1, which is how training saw it.
Its probability P is the integral of p over the bins. With x uniform in them, Jensen's inequality
gives -ln P <= E[-ln p(x)] - d ln(2 / 255). The result is an estimate, without bias except for
the solver's error, of the right side, in bits and divided by d: an upper bound of the model's
bits per dimension.
"""

import math
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..tools.tensors import to_unit_range
from .bulk import Drawn, Job
from .denoise import Denoise, generate_denoiser, heun_step, noise_levels
from .parts import Part, mean

BIN = 2 / 255  # the distance of two grey levels in [-1, 1]
SCHEDULE = "exponential"  # even in ln sigma: a third of the error that Karras's has at equal cost


class Likelihood(Part):
    """Bits per dimension of the first held-out images, by the generate task without a class."""

    name = "likelihood"
    task = "generate"

    def jobs(self) -> list[Job]:
        context, settings = self.context, self.context.settings
        if context.pipe.unet.dtype != torch.float32:
            raise ValueError(
                f"dtype: found {settings.dtype}; the likelihood is a sum of small differences and "
                "needs float32: measure it apart, with --parts likelihood"
            )
        images = context.test.images[: settings.likelihood_images]

        def draw(rows: range) -> Tensor:
            device = context.pipe.device
            D = generate_denoiser(context.pipe, torch.full((len(rows),), -1, device=device))
            return bits_per_dim(
                D,
                images[rows.start : rows.stop].to(device),
                noise_levels(context.pipe.scheduler, settings.likelihood_steps, SCHEDULE),
                context.generators("likelihood", rows=rows),
            )

        key = {"steps": settings.likelihood_steps, "schedule": SCHEDULE}
        data = context.test.fingerprint
        return [context.job("likelihood", len(images), draw, **key, data=data)]

    def score(self, drawn: Mapping[str, Drawn], folder: Path) -> dict[str, Any]:
        entry = drawn["likelihood"]
        return {
            "n": len(entry.values),
            "steps": self.context.settings.likelihood_steps,
            "evaluations": entry.evaluations,
            **mean("bits_per_dim", entry.values),
        }


def bits_per_dim(
    D: Denoise, images: Tensor, sigmas: Sequence[float], generators: list[torch.Generator]
) -> Tensor:
    """One draw of the bound for each image: one place in its bins, one probe a noise level.

    The steps are fixed, so that every image costs the same, and results don't depend on the batch.
    The path is solved by Heun's method over sigma, where it is nearly straight; the trace is
    integrated by the trapezoid rule over ln sigma, where it stays between about 0 and d. The error
    of few steps has no known bound: report the result at two numbers of steps.

    Args:
        D: as in denoise.py; gradients pass through it.
        images: (B, 3, H, W) uint8, on the denoiser's device.
        sigmas: falling noise levels, a last 0 left out. Take `denoise.noise_levels` with the
            schedule "exponential": Karras's is coarse where the trace changes.
        generators: one an image.

    Returns:
        (B,) float64.

    Evaluations of D: 2 for each two neighbouring levels, and 1; at each level one has a gradient.
    """
    x = to_unit_range(images) + BIN * (_uniform(images, generators) - 0.5)
    nats = -log_density(D, x, sigmas, generators)
    return (nats / x[0].numel() - math.log(BIN)) / math.log(2)


@torch.no_grad()
def log_density(
    D: Denoise, x: Tensor, sigmas: Sequence[float], generators: list[torch.Generator]
) -> Tensor:
    """An estimate of ln p(x), (B,) float64, for x (B, 3, H, W) at sigma_min. See `bits_per_dim`."""
    levels = [sigma for sigma in reversed(sigmas) if sigma > 0]
    d = x[0].numel()
    denoised, trace = denoised_and_trace(D, x, levels[0], generators)
    integral = torch.zeros(len(x), dtype=torch.float64, device=x.device)
    for sigma, target in pairwise(levels):
        x = heun_step(D, x, sigma, target, denoised)
        before = trace
        denoised, trace = denoised_and_trace(D, x, target, generators)
        integral += math.log(target / sigma) * (d - (before + trace) / 2)
    squares = x.double().square().flatten(1).sum(1)
    prior = -squares / (2 * target**2) - d / 2 * math.log(2 * math.pi * target**2)
    return prior + integral


def denoised_and_trace(
    D: Denoise, x: Tensor, sigma: float, generators: list[torch.Generator]
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


def _uniform(like: Tensor, generators: list[torch.Generator]) -> Tensor:
    """Uniform in [0, 1), float32, of the shape and on the device of `like`; row i from its own."""
    rows = [torch.rand(like.shape[1:], generator=g, device=g.device) for g in generators]
    return torch.stack(rows).to(like.device)
