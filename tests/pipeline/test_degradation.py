import math

import numpy as np
import pytest
import torch
from drawing import randn as noise

from mtl_diffusion.pipeline.degradation import SIGMA_DATA, degrade, low_pass, noise_level


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


@pytest.mark.parametrize("size", [8, 16, 32])
@pytest.mark.parametrize("std", [1.0, 2.5, 4.0])
def test_the_low_pass_is_a_gaussian_with_mirrored_borders(size, std):
    image = noise(2, 3, size, size)
    expected = torch.from_numpy(explicit_blur(image.double().numpy(), std)).float()
    # A sampled Gaussian is the heat kernel but for aliasing, about exp(-pi^2 std^2 / 2).
    tolerance = 1e-5 + 3 * math.exp(-0.5 * (math.pi * std) ** 2)
    blurred = low_pass(image, torch.full((2,), std))
    torch.testing.assert_close(blurred, expected, atol=tolerance, rtol=0)


def test_the_ends_of_the_ladder_are_exact():
    image, other, own = noise(2, 3, 8, 8), noise(2, 3, 8, 8, seed=1), noise(2, 3, 8, 8, seed=2)
    ends = torch.tensor([0.0, 1.0])
    degraded = degrade(image, ends, own)
    assert torch.equal(degraded[0], image[0])
    assert torch.equal(degraded[1], degrade(other, ends, own)[1])
    assert torch.equal(degraded[1], SIGMA_DATA * own[1])


@pytest.mark.parametrize("strength", [0.4, 0.5, 0.8])
def test_it_is_its_formula(strength):
    image, own = noise(2, 3, 32, 32), noise(2, 3, 32, 32, seed=1)
    depth = strength**2
    blurred = torch.from_numpy(explicit_blur(image.double().numpy(), depth * 32 / 4)).float()
    angle = math.pi / 2 * depth
    expected = math.cos(angle) * blurred + math.sin(angle) * SIGMA_DATA * own
    degraded = degrade(image, torch.full((2,), strength), own)
    torch.testing.assert_close(degraded, expected, atol=1e-3, rtol=0)


@pytest.mark.parametrize("strength", [0.0, 0.3, 0.65, 0.9])
def test_the_noise_level_is_that_of_what_is_hidden_least(strength):
    """Of a constant image, which the blur leaves as it is."""
    flat, own = torch.ones(1, 3, 8, 8), noise(1, 3, 8, 8)
    hidden = degrade(flat, torch.tensor([strength]), own)
    signal = degrade(flat, torch.tensor([strength]), 0 * own)
    ratio = (hidden - signal) / signal
    torch.testing.assert_close(
        ratio, noise_level(torch.tensor(strength)) * own, atol=1e-5, rtol=1e-4
    )


def test_the_noise_of_strength_one_has_no_end():
    at_one, below = noise_level(torch.tensor([1.0, 0.99]))
    assert at_one == math.inf and below < 40
