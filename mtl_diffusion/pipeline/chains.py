"""Models that draw in few steps: the noise levels that they visit.

A chain is the noise levels of one number of steps, the highest first. At each of its levels the
model has learned the jump to the next one, and from the last to the image: the end of the teacher's
probability-flow ODE from there. A jump is one Euler step, x' = (s'/s) x + (1 - s'/s) D(x; s). The
noise level tells the model which jump is asked for, so no level belongs to two chains.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from .degradation import dct_matrix

Chains = Sequence[Sequence[float]]

# As shares of the highest noise level of sampling.
_SHARES = ((1.0,), (1 / 2, 0.01), (1 / 4, 0.05, 0.0125, 0.003))

# Natural images in [-1, 1] (measured on CIFAR-10): the standard deviation of a coefficient of the
# orthonormal DCT is SPECTRUM * size / max(frequency, LOWEST), and GREY the correlation of channels.
_SPECTRUM, _LOWEST, _GREY = 0.17, 0.6, 0.9


def default_chains(sigma_max: float) -> list[list[float]]:
    """The chains of 1, 2 and 4 steps; the default of sampling is the last."""
    return [[share * sigma_max for share in shares] for shares in _SHARES]


def jumps(chains: Chains) -> list[tuple[float, float]]:
    """(from, to) of every jump of every chain; to is 0 at its end."""
    return [pair for levels in chains for pair in zip(levels, [*levels[1:], 0.0], strict=True)]


def first_latents(noise: Tensor, sigma: float) -> Tensor:
    """Latents of the first level of a chain, where sigma times the noise alone would be too little.

    A chain begins where an image is not yet lost in the noise: at sigma 20 the mean of 32x32 pixels
    has a standard deviation of 9 before the noise and of 22 with it. So each frequency gets the
    variance that natural images have there, which falls as 1 / frequency^2 (Field 1987, Relations
    between the statistics of natural images and the response properties of cortical cells).

    The noise is (B, C, H, W) standard normal; so are the latents, but for their scale.
    """
    (channels, height, width), device = noise.shape[1:], noise.device
    side = (height * width) ** 0.5
    rows, columns = dct_matrix(height, device), dct_matrix(width, device)
    y, x = (
        torch.arange(size, device=device, dtype=torch.float32) * (side / size)
        for size in (height, width)
    )
    frequency = (y[:, None].square() + x[None, :].square()).sqrt()
    variance = (_SPECTRUM * side / frequency.clamp_min(_LOWEST)).square()
    # The eigenvectors of channels of one correlation are grey, and all that is orthogonal.
    grey = (sigma**2 + (1 + (channels - 1) * _GREY) * variance).sqrt()
    colour = (sigma**2 + (1 - _GREY) * variance).sqrt()
    coefficients = rows @ noise @ columns.T
    mean = coefficients.mean(1, keepdim=True)
    return rows.T @ (grey * mean + colour * (coefficients - mean)) @ columns
