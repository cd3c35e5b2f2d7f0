"""Radial power: whether samples are blurred or speckled, beside real images.

Blurred images have too little power at high spatial frequencies, speckled or sharpened ones too
much. The power of a set of images, with pixels in [-1, 1], is the square of their discrete Fourier
transform, averaged over images and channels. Its log10 is averaged over rings of frequency, so
differences are in decades: 0.1 decades are 26 % more power.
"""

import math
from typing import Any

import torch
from torch import Tensor

from ..tools.tensors import to_unit_range

# Upper ends in cycles per pixel. The last ring also has the corners of the plane, up to 0.71.
RING_ENDS = (0.125, 0.25, 0.375, 0.5)
_ROUNDING = (2 / 255) ** 2 / 12  # the power of rounding to bytes, so that none is 0


def power(images: Tensor) -> Tensor:
    """(N, 3, H, W) uint8 -> (N, H, W) float32, the power of each image at each frequency."""
    spectra = torch.fft.fft2(to_unit_range(images), norm="ortho")
    return spectra.abs().square().mean(1) + _ROUNDING


def mean_power(images: Tensor) -> Tensor:
    """(H, W), of images (N, 3, H, W) uint8."""
    return sum(power(part).sum(0) for part in images.split(1000)) / len(images)


def rings_of(height: int, width: int) -> Tensor:
    """(H, W) int64: the ring of each frequency; -1 for frequency 0, the image's mean."""
    y, x = torch.fft.fftfreq(height), torch.fft.fftfreq(width)
    radius = torch.hypot(y[:, None], x[None])
    return torch.where(radius > 0, torch.bucketize(radius, torch.tensor(RING_ENDS[:-1])), -1)


def radial_power(images: Tensor, real: Tensor) -> dict[str, Any]:
    """log10 power of samples (N, 3, H, W) uint8 minus `real` (H, W), mean power of real images.

    Returns:
        "radial_power": n, "decades" and their "standard_error" over the samples, both a list of
        one for each ring; and the largest absolute difference of any ring.
    """
    spectra = torch.cat([power(part) for part in images.split(1000)])
    mean, rings, n = spectra.mean(0), rings_of(*real.shape), len(images)
    decades, errors = [], []
    for ring in range(len(RING_ENDS)):
        inside = rings == ring
        decades.append((mean[inside] / real[inside]).log10().mean().item())
        # The derivative of log10 of the mean by each sample.
        parts = (spectra[:, inside] / mean[inside]).mean(1) / math.log(10)
        errors.append(parts.std().item() / math.sqrt(n) if n > 1 else 0.0)
    return {
        "radial_power": {"n": n, "decades": decades, "standard_error": errors},
        "radial_power_largest_difference": max(map(abs, decades)),
    }
