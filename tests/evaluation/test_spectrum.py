"""Radial power, of images whose spectrum is known."""

import math

import pytest
import torch

from mtl_diffusion.data.images import ImageDataset
from mtl_diffusion.evaluation.spectrum import difference, power, radial_power, real_power, rings_of

SIDE = 16


def noise(count, deviation, seed=0):
    """White noise (N, 3, 16, 16) uint8 around mid-grey."""
    random = torch.Generator().manual_seed(seed)
    grey = 127.5 + deviation * torch.randn(count, 3, SIDE, SIDE, generator=random)
    return grey.round().clamp(0, 255).to(torch.uint8)


def dataset(images, labels, names=("a", "b", "c")):
    return ImageDataset.of(images, labels, names)


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
    real = real_power(dataset(noise(2000, 15), torch.zeros(2000).long()), 3)[-1]
    found = [difference(power(noise(50, 30, seed)), real) for seed in range(1, 21)]
    decades = torch.tensor([one["decades"] for one in found])
    errors = torch.tensor([one["standard_error"] for one in found])
    torch.testing.assert_close(decades.mean(0), torch.full((4,), math.log10(4)), atol=0.01, rtol=0)
    # The error that each set states is the spread over sets, known from 20 of them to a sixth.
    torch.testing.assert_close(decades.std(0), errors.mean(0), rtol=0.5, atol=0)


def test_classes_that_err_oppositely_are_seen_by_class():
    labels = torch.arange(600) % 2
    real = real_power(dataset(noise(600, 20), labels), 3)
    deviations = torch.where(labels == 0, 10.0, 26.5)[:, None, None, None]
    samples = 127.5 + deviations * torch.randn(
        600, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(1)
    )
    samples = samples.round().clamp(0, 255).to(torch.uint8)
    found = radial_power(samples, labels, real, ("a", "b", "c"))
    assert found["radial_power_largest_difference"] < 0.03
    assert found["radial_power_largest_difference_by_class"] > 0.5
    by_class = found["radial_power"]["by_class"]
    assert set(by_class) == {"a", "b"} and by_class["a"]["n"] == 300
    assert max(by_class["a"]["decades"]) < -0.5 < 0.2 < min(by_class["b"]["decades"])


def test_real_images_are_weighted_like_the_samples_and_unknown_classes_left_out():
    """The classes have different power, and other frequencies among the samples."""
    images = torch.cat([noise(500, 10), noise(100, 40), noise(9, 60)])
    labels = torch.tensor([0] * 500 + [1] * 100 + [-1] * 9)
    real = real_power(dataset(images, labels), 3)
    few = torch.cat([noise(100, 10, 1), noise(500, 40, 1), noise(50, 60, 1)])
    asked = torch.tensor([0] * 100 + [1] * 500 + [2] * 25 + [-1] * 25)
    found = radial_power(few, asked, real, ("a", "b", "c"))
    assert found["radial_power"]["n"] == 600  # class c has no real image, and some have no class
    assert found["radial_power_largest_difference"] < 0.02
    assert radial_power(few, None, real, ())["radial_power_largest_difference"] > 0.4
