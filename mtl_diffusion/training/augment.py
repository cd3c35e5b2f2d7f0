"""Augmentation on whose amounts the network is conditioned; in sampling they are zero.

Karras et al. 2022, arXiv:2206.00364, appendix F.2.
"""

import math

import torch
from torch import Tensor
from torch.nn.functional import affine_grid, grid_sample

from ..data.loader import Batch

AMOUNTS = ("flip", "scale", "cosine", "sine", "right", "down")  # a word of the vocabulary each
SCALE, SHIFT = 0.2, 0.125  # standard deviations: of log2 of the scale, of the shift in sides


def draw_amounts(n: int, probability: float, random: torch.Generator) -> Tensor:
    """(n, 6) amounts, in the order of `AMOUNTS`; zero is no change.

    Mirroring (in half of the cases), scaling, rotation and shift are each drawn with the
    probability. Scale and shift are in standard deviations, and the cosine is less one.
    """
    uniform = torch.rand(6, n, generator=random, device=random.device)
    drawn, mirrored, angle = (uniform[:4] < probability).float(), uniform[4] < 0.5, uniform[5]
    scale, right, down = torch.randn(3, n, generator=random, device=random.device)
    angle = (2 * angle - 1) * math.pi * drawn[2]
    flip, shift = drawn[0] * mirrored, drawn[3]
    amounts = (flip, scale * drawn[1], angle.cos() - 1, angle.sin(), right * shift, down * shift)
    return torch.stack(amounts, 1)


def augmented(batch: Batch, amounts: Tensor) -> Batch:
    """The batch, changed by amounts (B, 6). Beyond its edges an image is reflected.

    Layers change as the images do. They take the nearest pixel: a mask stays one, and so do the
    colours of a label map.
    """
    n, _, height, width = batch.images.shape
    flip, scale, cosine, sine, right, down = amounts.T
    sign, size = 1 - 2 * flip, torch.exp2(-SCALE * scale)
    # From places of the result to those of the source, in half sides from the middle. An angle is
    # one of pixels, so where the sides differ their ratio comes in.
    a, b = (cosine + 1) * size, sine * size
    x, y = sign * torch.stack([a, b * height / width]), torch.stack([-b * width / height, a])
    shift = 2 * SHIFT * torch.stack([right, down])
    theta = torch.stack([*x, -(x * shift).sum(0), *y, -(y * shift).sum(0)], 1)
    grid = affine_grid(theta.view(n, 2, 3), [n, 1, height, width], align_corners=False)
    changed = (amounts != 0).any(1)[:, None, None, None]

    def moved(pixels: Tensor, mode: str) -> Tensor:
        found = grid_sample(pixels.float(), grid, mode, "reflection", align_corners=False)
        return torch.where(changed, found.to(pixels.dtype), pixels)

    layers = {name: moved(layer, "nearest") for name, layer in batch.layers.items()}
    return Batch(moved(batch.images, "bilinear"), batch.labels, layers)
