"""Distances between sets of points, against closed forms and against code of their own here."""

import math

import numpy as np
import pytest
import scipy.linalg
import torch

from mtl_diffusion.evaluation.distances import (
    frechet_distance,
    kernel_distance,
    nearest,
    precision_recall,
)


def points(n, d, seed=0, mean=0.0, scale=1.0):
    random = torch.Generator().manual_seed(seed)
    return mean + scale * torch.randn(n, d, generator=random)


def test_frechet_distance_of_two_gaussians():
    """|m1 - m2|^2 + sum (s1 - s2)^2 for diagonal ones: 8 (0.5^2 + 1^2)."""
    found = frechet_distance(points(200_000, 8), points(200_000, 8, 1, mean=0.5, scale=2.0))
    assert found == pytest.approx(8 * (0.25 + 1), rel=0.01)


def test_frechet_distance_against_its_definition():
    """Correlated features: the matrix root by scipy."""
    mix = np.random.default_rng(0).normal(size=(6, 6))
    a, b = points(500, 6).double().numpy() @ mix, points(400, 6, 1, mean=0.3).double().numpy()
    root = scipy.linalg.sqrtm(np.cov(a.T) @ np.cov(b.T)).real
    expected = ((a.mean(0) - b.mean(0)) ** 2).sum() + np.trace(np.cov(a.T) + np.cov(b.T) - 2 * root)
    found = frechet_distance(torch.tensor(a).float(), torch.tensor(b).float())
    assert found == pytest.approx(expected, rel=1e-4)


def test_a_set_has_no_distance_to_itself():
    a = points(300, 5)
    assert abs(frechet_distance(a, a)) < 1e-6
    assert precision_recall(a, a) == (1.0, 1.0)


def test_kernel_distance_against_its_definition():
    """With subsets of all points it is the unbiased estimate itself."""
    a, b = points(120, 4), points(120, 4, 1, mean=0.7)

    def kernel(x, y):
        return (x.double() @ y.double().T / 4 + 1) ** 3

    n = len(a)
    within = [(k.sum() - k.diagonal().sum()) / (n * (n - 1)) for k in (kernel(a, a), kernel(b, b))]
    expected = sum(within) - 2 * kernel(a, b).mean()
    found, error = kernel_distance(a, b, subsets=3)
    assert found == pytest.approx(expected.item(), rel=1e-4) and error < 1e-6


def test_kernel_distance_is_keyed_and_leaves_the_global_generator():
    a, b = points(1500, 4), points(1500, 4, 1)
    torch.manual_seed(5)
    before = torch.get_rng_state()
    first = kernel_distance(a, b, subsets=5)
    assert torch.equal(torch.get_rng_state(), before)
    torch.rand(3)
    assert kernel_distance(a, b, subsets=5) == first
    assert kernel_distance(a, b, seed=1, subsets=5) != first
    assert abs(first[0]) < 0.05  # the same distribution


def test_precision_and_recall_of_a_half():
    """A model that draws one of two far clusters is right, and misses half."""
    left, right = points(200, 3), points(200, 3, 1, mean=100.0)
    precision, recall = precision_recall(torch.cat([left, right]), points(200, 3, 2))
    assert precision > 0.9 and recall == pytest.approx(0.5, abs=0.06)
    precision, recall = precision_recall(left, torch.cat([points(200, 3, 2), right]))
    assert precision == pytest.approx(0.5, abs=0.06) and recall > 0.9


def test_precision_and_recall_against_loops():
    real, drawn = points(60, 2), points(50, 2, 1, mean=0.8)

    def inside(x, cloud):
        for p in cloud:
            radius = sorted(math.dist(p, q) for q in cloud)[3]  # the first is itself
            if math.dist(x, p) <= radius:
                return True
        return False

    real_list, drawn_list = real.tolist(), drawn.tolist()
    expected = (
        np.mean([inside(x, real_list) for x in drawn_list]),
        np.mean([inside(x, drawn_list) for x in real_list]),
    )
    assert precision_recall(real, drawn) == pytest.approx(expected, abs=1e-6)


def test_nearest():
    among = torch.tensor([[0.0, 0.0], [3.0, 4.0]])
    distance, index = nearest(torch.tensor([[3.0, 3.0], [0.0, 1.0]]), among)
    assert distance.tolist() == [1.0, 1.0] and index.tolist() == [1, 0]
