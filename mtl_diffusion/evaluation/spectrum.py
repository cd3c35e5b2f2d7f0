"""Radial power: whether samples are blurred or speckled, beside real images.

Blurred images have too little power at high spatial frequencies, speckled or sharpened ones too
much. The power of a set of images, with pixels in [-1, 1], is the square of their discrete Fourier
transform, averaged over images and channels. Its log10 is averaged over rings of frequency, so
differences are in decades: 0.1 decades are 26 % more power.
"""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..data.images import ImageDataset
from ..pictures.plots import curves
from ..tools.tensors import to_unit_range

# Upper ends in cycles per pixel. The last ring also has the corners of the plane, up to 0.71.
RING_ENDS = (0.125, 0.25, 0.375, 0.5)
_ROUNDING = (2 / 255) ** 2 / 12  # the power of rounding to bytes, so that none is 0


def real_power(dataset: ImageDataset, num_classes: int) -> Tensor:
    """(K + 1, H, W) mean power of real images of each class, NaN without any; at last of all."""
    sums = torch.zeros(num_classes + 1, *dataset.format.size)
    places = dataset.labels.where(dataset.labels >= 0, num_classes)  # of images without a class
    for images, place in zip(dataset.rgb.split(1000), places.split(1000), strict=True):
        sums.index_add_(0, place, power(images))
    counts = places.bincount(minlength=len(sums))[:, None, None]
    return torch.cat([(sums / counts)[:-1], sums.sum(0, keepdim=True) / len(dataset)])


def power(images: Tensor) -> Tensor:
    """(N, 3, H, W) uint8 -> (N, H, W) float32, the power of each image at each frequency."""
    spectra = (torch.fft.fft2(to_unit_range(part), norm="ortho") for part in images.split(1000))
    return torch.cat([part.abs().square().mean(1) for part in spectra]) + _ROUNDING


def rings_of(height: int, width: int) -> Tensor:
    """(H, W) int64: the ring of each frequency; -1 for frequency 0, the image's mean."""
    y, x = torch.fft.fftfreq(height), torch.fft.fftfreq(width)
    radius = torch.hypot(y[:, None], x[None])
    return torch.where(radius > 0, torch.bucketize(radius, torch.tensor(RING_ENDS[:-1])), -1)


def difference(spectra: Tensor, real: Tensor) -> dict[str, Any]:
    """log10 power of samples (N, H, W) minus the mean power of real images (H, W).

    Returns:
        n; "decades" and their "standard_error" over the samples, both a list of one for each ring.
    """
    mean, rings, count = spectra.mean(0), rings_of(*real.shape), len(spectra)
    decades, errors = [], []
    for ring in range(len(RING_ENDS)):
        inside = rings == ring
        decades.append((mean[inside] / real[inside]).log10().mean().item())
        # The derivative of log10 of the mean by each sample.
        parts = (spectra[:, inside] / mean[inside]).mean(1) / math.log(10)
        errors.append(parts.std().item() / math.sqrt(count) if count > 1 else 0.0)
    return {"n": count, "decades": decades, "standard_error": errors}


def radial_power(
    images: Tensor, labels: Tensor | None, real: Tensor, class_names: Sequence[str]
) -> dict[str, Any]:
    """A set of images against real ones of the same classes, as frequent as here.

    Args:
        images: (N, 3, H, W) uint8.
        labels: (N,), or None: against all real images. Images without a class, and of a class of
            which there is no real one, are left out.
        real: the result of `real_power`.

    Returns:
        "radial_power": the result of `difference`, and "by_class"; and the largest absolute
        difference of any ring, over all classes and of any class.
    """
    spectra = power(images)
    if labels is None:
        found = difference(spectra, real[-1])
        return {"radial_power": found, "radial_power_largest_difference": _largest(found)}
    there = real[:-1].isfinite().all((1, 2))[labels] & (labels >= 0)
    spectra, labels = spectra[there], labels[there]
    shares = labels.bincount(minlength=len(class_names)) / len(labels)
    found = difference(spectra, torch.einsum("k,khw->hw", shares, real[:-1].nan_to_num(0)))
    by_class = {
        class_names[k]: difference(spectra[labels == k], real[k]) for k in labels.unique().tolist()
    }
    largest = "radial_power_largest_difference"
    return {
        "radial_power": {**found, "by_class": by_class},
        largest: _largest(found),
        f"{largest}_by_class": max(map(_largest, by_class.values()), default=math.nan),
    }


def _largest(found: dict[str, Any]) -> float:
    return max(map(abs, found["decades"]))


def plot_radial_power(found: dict[str, Any], title: str, folder: Path) -> None:
    """Writes radial_power.png: the differences over all classes, and of the first of them."""
    centers = [end - RING_ENDS[0] / 2 for end in RING_ENDS]
    entries = [*list(found.get("by_class", {}).items())[:20], ("all classes", found)]
    curves(
        {name: list(zip(centers, e["decades"], strict=True)) for name, e in entries},
        f"spatial frequency in cycles per pixel, in four rings ({title}, n = {found['n']})",
        "log10 power minus that of real images",
        folder / "radial_power.png",
        levels={"real images": 0.0},
        heavy="all classes",
    )
