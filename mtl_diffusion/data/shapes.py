"""The embedded dataset: five shapes, drawn from a seed, so that everything runs without a network.

Each image is a light disc, square, triangle, cross or ring on a dark background, in its own
colours, place and size. Nothing is read from disk or downloaded.
"""

import numpy as np
from datasets import ClassLabel, Dataset, DatasetDict, Features, Image

CLASSES = ("disc", "square", "triangle", "cross", "ring")

_UNIT = 16  # lengths below are in sixteenths of the image's side
_PIXELS = 2**18  # rendered at once: more of them would not fit into the cache of a processor


def shapes(
    resolution: int = 16,
    num_train: int = 12800,
    num_test: int = 1000,
    seed: int = 0,
) -> DatasetDict:
    """Draw the dataset: splits `train` and `test`, columns `image` (RGB PNG) and `label`.

    Row i is of class `CLASSES[i % 5]`, so every slice of a split is balanced. A row is a function
    of (seed, split, i) alone: a smaller dataset is the beginning of a larger one, and another
    resolution shows the same scenes.

    Args:
        resolution: side in pixels, at least 8; below 16 rings and discs start to look alike.
        num_train: rows of the training split, at least 1.
        num_test: rows of the test split, at least 1.
        seed: a non-negative integer. Train and test are different draws of the same seed.

    Raises:
        ValueError: the resolution is too low.
    """
    if resolution < 8:
        raise ValueError(f"resolution: {resolution} is too low for the shapes; give 8 or more.")
    assert num_train > 0 and num_test > 0 and seed >= 0
    return DatasetDict(
        train=_split(resolution, num_train, [seed, 0]),
        test=_split(resolution, num_test, [seed, 1]),
    )


def _split(resolution: int, count: int, key: list[int]) -> Dataset:
    labels = np.arange(count) % len(CLASSES)
    draws = np.random.default_rng(key).random((count, 18))
    chunk = max(1, _PIXELS // resolution**2)
    starts = range(0, count, chunk)
    parts = [_render(labels[i : i + chunk], draws[i : i + chunk], resolution) for i in starts]
    columns = {"image": list(np.concatenate(parts)), "label": labels}
    features = Features(image=Image(), label=ClassLabel(names=list(CLASSES)))
    return Dataset.from_dict(columns, features=features)


def _render(labels: np.ndarray, draws: np.ndarray, resolution: int) -> np.ndarray:
    """Labels (B,) and uniform draws (B, 18) -> images (B, H, W, 3) uint8."""
    u = draws.T[..., None, None]  # (18, B, 1, 1)
    pixels = (np.arange(resolution) + 0.5) * (_UNIT / resolution)
    x, y = pixels[None, None, :], pixels[None, :, None]

    radius = 3.8 + 2.0 * u[0]
    reach = 1.15 * radius + 0.25  # no shape passes this distance from its centre along x or y
    cx = reach + (_UNIT - 2 * reach) * u[1]
    cy = reach + (_UNIT - 2 * reach) * u[2]
    angle = np.deg2rad(24.0 * u[3] - 12.0)

    distance = _signed_distance(labels, x - cx, y - cy, radius, angle)
    # One pixel wide ramp across the edge: the share of the pixel that the shape covers.
    coverage = np.clip(0.5 - distance * (resolution / _UNIT), 0.0, 1.0)[..., None]

    light = _rgb(hue=u[4], saturation=0.65 * u[5], value=0.8 + 0.2 * u[6])
    dark = [_rgb(hue=u[i], saturation=0.8 * u[i + 1], value=0.3 * u[i + 2]) for i in (7, 10)]
    direction = 2 * np.pi * u[13]
    along = (np.cos(direction) * (x - _UNIT / 2) + np.sin(direction) * (y - _UNIT / 2)) / _UNIT
    slope = np.clip(along + 0.5, 0.0, 1.0)[..., None]
    background = dark[0] + (dark[1] - dark[0]) * slope
    image = background + (light - background) * coverage
    return np.rint(255.0 * image).astype(np.uint8)


def _signed_distance(labels, x, y, radius, angle) -> np.ndarray:
    """Distance (B, H, W) to the outline of each row's shape: negative inside, positive outside."""
    cos, sin = np.cos(angle), np.sin(angle)
    x, y = cos * x + sin * y, cos * y - sin * x
    distance = np.empty(x.shape)
    for label, name in enumerate(CLASSES):
        rows = labels == label
        distance[rows] = _OUTLINES[name](x[rows], y[rows], radius[rows])
    return distance


def _triangle(x, y, r):
    # Equilateral, point up (y runs down), of circumradius 1.15 r around its centroid.
    sides = np.maximum(y, 0.5 * (np.sqrt(3.0) * np.abs(x) - y))
    return sides - 0.575 * r


def _box(x, y, half_width, half_height):
    return np.maximum(np.abs(x) - half_width, np.abs(y) - half_height)


_OUTLINES = {
    "disc": lambda x, y, r: np.hypot(x, y) - r,
    "square": lambda x, y, r: _box(x, y, 0.88 * r, 0.88 * r),
    "triangle": _triangle,
    "cross": lambda x, y, r: np.minimum(_box(x, y, r, 0.32 * r), _box(x, y, 0.32 * r, r)),
    "ring": lambda x, y, r: np.abs(np.hypot(x, y) - 0.74 * r) - 0.26 * r,
}


def _rgb(hue, saturation, value) -> np.ndarray:
    """HSV in [0, 1], each (B, 1, 1) -> RGB (B, 1, 1, 3) in [0, 1]."""
    k = (np.array([5.0, 3.0, 1.0]) + 6.0 * hue[..., None]) % 6.0
    value, saturation = value[..., None], saturation[..., None]
    return value - value * saturation * np.clip(np.minimum(k, 4.0 - k), 0.0, 1.0)
