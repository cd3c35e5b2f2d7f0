"""How alike two images are, pixel by pixel, over a region or whole."""

import torch
import torch.nn.functional as F
from torch import Tensor
from torchmetrics.functional.image import structural_similarity_index_measure

_ROUNDING = (0.5 / 255) ** 2  # the error of rounding to 8 bits: a smaller error can't be measured


def psnr(a: Tensor, b: Tensor, mask: Tensor | None = None) -> Tensor:
    """(N,) decibels inside each image's mask, for pixels in [0, 1]; 54 dB where they are the same.

    Args:
        a, b: (N, 3, H, W) in [0, 1].
        mask: (N, 1, H, W) in {0, 1}, nowhere empty. None: the whole image.
    """
    return -10 * _mean((a - b).square(), mask).clamp_min(_ROUNDING).log10()


def ssim(a: Tensor, b: Tensor, mask: Tensor | None = None) -> Tensor:
    """(N,) structural similarity, at most 1, averaged over each image's mask. Wang et al. 2004.

    The windows (Gaussian, sigma 1.5) are centred in the mask and look beyond it. Arguments as of
    `psnr`.
    """
    _, local = structural_similarity_index_measure(
        a, b, data_range=1.0, reduction="none", return_full_image=True
    )
    return _mean(local, mask)


def _mean(values: Tensor, mask: Tensor | None) -> Tensor:
    """(N, 3, H, W) -> (N,) the mean inside the mask."""
    values = values.mean(1, keepdim=True)
    mask = torch.ones_like(values) if mask is None else mask
    return (values * mask).sum((1, 2, 3)) / mask.sum((1, 2, 3))


def feature_distance(a: Tensor, b: Tensor) -> Tensor:
    """(N,) cosine distance in [0, 2] between features (N, D)."""
    return 1 - F.cosine_similarity(a, b)
