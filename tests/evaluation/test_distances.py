"""Distances of sets of points and of images, against closed forms and code of their own here."""

import math

import numpy as np
import pytest
import scipy.linalg
import torch

from mtl_diffusion.evaluation.distances import frechet_distance, precision_recall, psnr


def points(n, d, seed=0, mean=0.0, scale=1.0):
    random = torch.Generator().manual_seed(seed)
    return mean + scale * torch.randn(n, d, generator=random)


def test_frechet_distance_against_its_definition():
    """Correlated features: the matrix root by scipy."""
    mix = np.random.default_rng(0).normal(size=(6, 6))
    a, b = points(500, 6).double().numpy() @ mix, points(400, 6, 1, mean=0.3).double().numpy()
    root = scipy.linalg.sqrtm(np.cov(a.T) @ np.cov(b.T)).real
    expected = ((a.mean(0) - b.mean(0)) ** 2).sum() + np.trace(np.cov(a.T) + np.cov(b.T) - 2 * root)
    found = frechet_distance(torch.tensor(a).float(), torch.tensor(b).float())
    assert found == pytest.approx(expected, rel=1e-4)


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


def images(n=3, size=16, seed=0):
    return torch.rand(n, 3, size, size, generator=torch.Generator().manual_seed(seed))


def left_half(n=3, size=16):
    mask = torch.zeros(n, 1, size, size)
    mask[..., : size // 2] = 1
    return mask


def test_psnr_looks_into_the_hole_alone():
    a = images()
    b = a.clone()
    b[..., :8] += 0.1  # inside: an error of 0.1 everywhere is 20 dB
    b[..., 8:] += 0.7
    torch.testing.assert_close(psnr(a, b, left_half()), torch.full((3,), 20.0))
    torch.testing.assert_close(psnr(a, b), torch.full((3,), -10 * math.log10(0.25)))
