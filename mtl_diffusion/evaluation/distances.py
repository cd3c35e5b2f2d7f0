"""How far apart images are: two sets as points of a feature space, or pairs of images."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchmetrics.functional.image import structural_similarity_index_measure
from torchmetrics.image.fid import FrechetInceptionDistance

_ROUNDING = (0.5 / 255) ** 2  # the error of rounding to 8 bits: a smaller error can't be measured


def frechet_distance(a: Tensor, b: Tensor) -> float:
    """Between the Gaussians with the moments of a (N, D) and b (M, D). Heusel et al. 2017.

    It is biased upwards if samples are few: compare only figures of the same n.
    """
    network = nn.Identity()  # in place of torchmetrics': the inputs are features already
    network.num_features = a.shape[1]
    # One process has all the points; torchmetrics would wait for the others.
    metric = FrechetInceptionDistance(feature=network, sync_on_compute=False)
    metric.set_dtype(torch.float64)
    metric.update(a.double(), real=True)
    metric.update(b.double(), real=False)
    return metric.compute().item()


def precision_recall(real: Tensor, drawn: Tensor, neighbours: int = 3) -> tuple[float, float]:
    """Kynkaanniemi et al. 2019, eq. 2: shares of points inside the other set's manifold.

    A manifold is the union of balls around a set's points, each as wide as the distance to the
    k-th nearest other point of the set.

    Returns:
        precision, the share of `drawn` (M, D) in the manifold of `real` (N, D): quality; and
        recall, the share of `real` in the manifold of `drawn`: coverage.
    """
    radius_of_real = kth_distance(real, real, neighbours + 1)  # the first is the point itself
    radius_of_drawn = kth_distance(drawn, drawn, neighbours + 1)
    good = torch.zeros(len(drawn), dtype=torch.bool)
    there = torch.zeros(len(real), dtype=torch.bool)
    for rows in torch.arange(len(drawn)).split(1000):
        distance = torch.cdist(drawn[rows], real)  # (b, N)
        good[rows] = (distance <= radius_of_real).any(1)
        there |= (distance <= radius_of_drawn[rows, None]).any(0)
    return good.float().mean().item(), there.float().mean().item()


def kth_distance(points: Tensor, among: Tensor, k: int) -> Tensor:
    """(M,) from each of (M, D) to the k-th nearest of (N, D)."""
    rows = points.split(1000)
    return torch.cat([torch.cdist(row, among).kthvalue(k).values for row in rows])


def psnr(a: Tensor, b: Tensor, mask: Tensor | None = None) -> Tensor:
    """(N,) decibels inside each image's mask, for pixels in [0, 1]; 54 dB where they are the same.

    Args:
        a: (N, C, H, W) in [0, 1]. b: alike.
        mask: (N, 1, H, W) in {0, 1}, nowhere empty. None: the whole image.
    """
    return -10 * masked_mean((a - b).square(), mask).clamp_min(_ROUNDING).log10()


def ssim(a: Tensor, b: Tensor, mask: Tensor | None = None) -> Tensor:
    """(N,) structural similarity, at most 1, averaged over each image's mask. Wang et al. 2004.

    The windows (Gaussian, sigma 1.5) are centred in the mask and look beyond it. Arguments as of
    `psnr`.
    """
    _, local = structural_similarity_index_measure(
        a, b, data_range=1.0, reduction="none", return_full_image=True
    )
    return masked_mean(local, mask)


def masked_mean(values: Tensor, mask: Tensor | None) -> Tensor:
    """(N, C, H, W) -> (N,) the mean inside the mask."""
    values = values.mean(1, keepdim=True)
    mask = torch.ones_like(values) if mask is None else mask
    return (values * mask).sum((1, 2, 3)) / mask.sum((1, 2, 3))


def feature_distance(a: Tensor, b: Tensor) -> Tensor:
    """(N,) cosine distance in [0, 2] between features (N, D)."""
    return 1 - F.cosine_similarity(a, b)
