"""How far apart two sets of images are, as points of a feature space."""

import warnings

import torch
from torch import Tensor, nn
from torchmetrics.image.fid import FrechetInceptionDistance
from torchmetrics.image.kid import KernelInceptionDistance

# One process has all the points; torchmetrics would wait for the others.
_ALONE = {"sync_on_compute": False}


class _AsTheyAre(nn.Module):
    """Identity in place of torchmetrics' feature network: the inputs are features already."""

    def __init__(self, num_features: int):
        super().__init__()
        self.num_features = num_features

    def forward(self, features: Tensor) -> Tensor:
        return features


def frechet_distance(a: Tensor, b: Tensor) -> float:
    """Between the Gaussians with the moments of a (N, D) and b (M, D). Heusel et al. 2017.

    It is biased upwards if samples are few: compare only figures of the same n.
    """
    metric = FrechetInceptionDistance(feature=_AsTheyAre(a.shape[1]), **_ALONE)
    metric.set_dtype(torch.float64)
    metric.update(a.double(), real=True)
    metric.update(b.double(), real=False)
    return metric.compute().item()


def kernel_distance(a: Tensor, b: Tensor, seed: int = 0, subsets: int = 100) -> tuple[float, float]:
    """The squared maximum mean discrepancy under a cubic kernel. Binkowski et al. 2018.

    Unbiased for any number of samples.

    Returns:
        The mean over random subsets of up to 1,000 points, and their standard deviation. Subsets
        share points, so it is not the error of the mean.
    """
    size = min(1000, len(a), len(b))
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Metric .* will save all extracted features", UserWarning)
        metric = KernelInceptionDistance(
            feature=_AsTheyAre(a.shape[1]), subsets=subsets, subset_size=size, **_ALONE
        )
    metric.update(a, real=True)
    metric.update(b, real=False)
    with torch.random.fork_rng(devices=[]):  # torchmetrics draws its subsets from there
        torch.manual_seed(seed)
        mean, deviation = metric.compute()
    return mean.item(), deviation.item()


def precision_recall(real: Tensor, drawn: Tensor, neighbours: int = 3) -> tuple[float, float]:
    """Kynkaanniemi et al. 2019, eq. 2: shares of points inside the other set's manifold.

    A manifold is the union of balls around a set's points, each as wide as the distance to the
    k-th nearest other point of the set.

    Returns:
        precision, the share of `drawn` (M, D) in the manifold of `real` (N, D): quality; and
        recall, the share of `real` in the manifold of `drawn`: coverage.
    """
    radius_of_real = _kth_distance(real, neighbours)
    radius_of_drawn = _kth_distance(drawn, neighbours)
    good = torch.zeros(len(drawn), dtype=torch.bool)
    there = torch.zeros(len(real), dtype=torch.bool)
    for rows in torch.arange(len(drawn)).split(1000):
        distance = torch.cdist(drawn[rows], real)  # (b, N)
        good[rows] = (distance <= radius_of_real).any(1)
        there |= (distance <= radius_of_drawn[rows, None]).any(0)
    return good.float().mean().item(), there.float().mean().item()


def _kth_distance(points: Tensor, k: int) -> Tensor:
    """(N,) from each point to its k-th nearest other one."""
    rows = points.split(1000)
    return torch.cat([torch.cdist(row, points).kthvalue(k + 1).values for row in rows])


def nearest(points: Tensor, among: Tensor) -> tuple[Tensor, Tensor]:
    """For each of (M, D) the distance to the nearest of (N, D), and its index: (M,), (M,)."""
    found = [torch.cdist(row, among).min(1) for row in points.split(1000)]
    return torch.cat([f.values for f in found]), torch.cat([f.indices for f in found])
