"""Radial power, of images whose spectrum is known."""

import math

import pytest
import torch

from mtl_diffusion.evaluation.spectrum import power, radial_power, rings_of

SIDE = 16


def noise(count, deviation, seed=0):
    """White noise (N, 3, 16, 16) uint8 around mid-grey."""
    random = torch.Generator().manual_seed(seed)
    grey = 127.5 + deviation * torch.randn(count, 3, SIDE, SIDE, generator=random)
    return grey.round().clamp(0, 255).to(torch.uint8)


@pytest.mark.parametrize(
    ("cycles", "ring"), [((1, 0), 0), ((2, 2), 1), ((0, 5), 2), ((6, 3), 3), ((8, 8), 3)]
)
def test_a_wave_is_in_the_ring_of_its_frequency(cycles, ring):
    y, x = torch.meshgrid(torch.arange(SIDE), torch.arange(SIDE), indexing="ij")
    wave = torch.cos(2 * math.pi * (cycles[0] * y + cycles[1] * x) / SIDE)
    images = (128 + 60 * wave).round().to(torch.uint8).expand(1, 3, -1, -1)
    rings = rings_of(SIDE, SIDE)
    spectrum = power(images)[0].where(rings >= 0, 0)  # without the mean
    assert rings.flatten()[spectrum.argmax()] == ring


def test_twice_the_contrast_is_log10_of_four_with_its_standard_error():
    real = power(noise(2000, 15)).mean(0)
    found = [radial_power(noise(50, 30, seed), real) for seed in range(1, 21)]
    decades = torch.tensor([one["radial_power"]["decades"] for one in found])
    errors = torch.tensor([one["radial_power"]["standard_error"] for one in found])
    torch.testing.assert_close(decades.mean(0), torch.full((4,), math.log10(4)), atol=0.01, rtol=0)
    # The error that each set states is the spread over sets, known from 20 of them to a sixth.
    torch.testing.assert_close(decades.std(0), errors.mean(0), rtol=0.5, atol=0)
    largest = [one["radial_power_largest_difference"] for one in found]
    torch.testing.assert_close(torch.tensor(largest), decades.abs().amax(1))
