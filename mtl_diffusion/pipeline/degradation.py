"""Blur-and-noise degradation of the source, by strength."""

import math

import torch
from torch import Tensor

SIGMA_DATA = 0.5  # standard deviation of images in [-1, 1], as in EDM; strength 1 is noise of it
BLUR = 0.25  # standard deviation of the low-pass at strength 1, as a share of the shorter side


def dct_matrix(size: int, device: torch.device) -> Tensor:
    """(size, size) orthonormal DCT-II: row k is the cosine of k half-periods over the image."""
    k = torch.arange(size, device=device, dtype=torch.float32)
    basis = torch.cos(math.pi / size * k[:, None] * (k[None, :] + 0.5))
    basis[0] *= math.sqrt(0.5)
    return basis * math.sqrt(2 / size)


def low_pass(image: Tensor, std: Tensor) -> Tensor:
    """Gaussian blur of (B, C, H, W) with reflecting borders: the heat kernel, diagonal in the DCT.

    `std` is (B,), its standard deviation in pixels, >= 0.
    Source: Rissanen et al. 2023, Generative modelling with inverse heat dissipation, eq. 6.
    """
    rows, columns = (_heat_kernel(size, std) for size in image.shape[-2:])
    return torch.einsum("bij,bcjk,blk->bcil", rows, image, columns)


def _heat_kernel(size: int, std: Tensor) -> Tensor:
    """(B, size, size) the blur of a line of pixels, as a matrix."""
    basis = dct_matrix(size, std.device)
    k = torch.arange(size, device=std.device, dtype=torch.float32)
    frequency = math.pi / size * k  # radians a pixel
    decay = torch.exp(-0.5 * (frequency * std[:, None]) ** 2)  # (B, size)
    return basis.T @ (decay[:, :, None] * basis)


def noise_level(strength: Tensor) -> Tensor:
    """Noise of the degradation as a multiple of its signal, in units of image values; inf at 1."""
    depth = strength.square()
    return torch.where(depth < 1, SIGMA_DATA * torch.tan(math.pi / 2 * depth), math.inf)


def degrade(image: Tensor, strength: Tensor, noise: Tensor) -> Tensor:
    """cos(pi d / 2) low_pass(image, d BLUR W) + sin(pi d / 2) SIGMA_DATA noise, at d = strength^2.

    At every frequency the signal-to-noise ratio falls as the strength grows. Strength 0 gives the
    image back bit for bit, strength 1 gives pure noise, and the variance hardly changes. The
    square gives more of the range to weak degradations: training draws strengths uniformly, and
    edits that keep their source need weak ones.

    Args:
        image: (B, C, H, W) in [-1, 1].
        strength: (B,) in [0, 1].
        noise: (B, C, H, W) standard normal.
    """
    depth = strength.square()
    blurred = low_pass(image, depth * BLUR * min(image.shape[-2:]))
    d = depth[:, None, None, None]
    # cos(pi / 2) is 4e-8 in float32: zero makes strength 1 exact.
    signal = torch.where(d < 1, torch.cos(math.pi / 2 * d), 0.0)
    degraded = signal * blurred + torch.sin(math.pi / 2 * d) * SIGMA_DATA * noise
    return torch.where(d > 0, degraded, image)
