import math

import numpy as np
import pytest
import torch
from drawing import randn as noise

from mtl_diffusion.pipeline.degradation import SIGMA_DATA, degrade, noise_level


def explicit_blur(image: np.ndarray, std: float) -> np.ndarray:
    """A sampled Gaussian, summed pixel by pixel over an image that is mirrored at its borders."""
    radius = math.ceil(8 * std)
    weights = np.exp(-0.5 * (np.arange(-radius, radius + 1) / std) ** 2)
    weights /= weights.sum()
    for axis in (-2, -1):
        pad = [(0, 0)] * image.ndim
        pad[axis] = (radius, radius)
        padded = np.pad(image, pad, mode="symmetric")
        image = sum(
            weight * np.take(padded, range(i, i + image.shape[axis]), axis)
            for i, weight in enumerate(weights)
        )
    return image


@pytest.mark.parametrize("size, std", [(8, 1.0), (8, 1.6), (16, 2.5), (32, 1.0), (32, 4.0)])
def test_it_is_its_formula(size, std):
    """A Gaussian blur with mirrored borders, and noise of the level that hides it."""
    image, own = noise(2, 3, size, size), noise(2, 3, size, size, seed=1)
    depth = std / (size / 4)
    blurred = torch.from_numpy(explicit_blur(image.double().numpy(), std)).float()
    angle = math.pi / 2 * depth
    expected = math.cos(angle) * blurred + math.sin(angle) * SIGMA_DATA * own
    strength = torch.full((2,), depth**0.5)
    # A sampled Gaussian is the heat kernel but for aliasing, about exp(-pi^2 std^2 / 2).
    tolerance = 1e-5 + 3 * math.exp(-0.5 * (math.pi * std) ** 2)
    degraded = degrade(image, strength, own)
    torch.testing.assert_close(degraded, expected, atol=tolerance, rtol=0)
    assert noise_level(strength)[0].item() == pytest.approx(SIGMA_DATA * math.tan(angle))


def test_the_ends_of_the_ladder_are_exact():
    image, other, own = noise(2, 3, 8, 8), noise(2, 3, 8, 8, seed=1), noise(2, 3, 8, 8, seed=2)
    ends = torch.tensor([0.0, 1.0])
    degraded = degrade(image, ends, own)
    assert torch.equal(degraded[0], image[0])
    assert torch.equal(degraded[1], degrade(other, ends, own)[1])
    assert torch.equal(degraded[1], SIGMA_DATA * own[1])
    assert noise_level(ends).tolist() == [0, math.inf]
