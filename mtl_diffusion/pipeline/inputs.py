"""Reads the arguments of the pipeline as tensors; errors name what came and what to do."""

import math
import numbers
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn.functional import pad

from .denoiser import Samples
from .format import ImageFormat
from .rgb import read_rgb
from .task import Task

UNSET = -2  # the label of a sample without one; any negative number is no class for the network


@dataclass(frozen=True)
class Inputs(Samples):
    """The arguments of a call as tensors, one entry a sample.

    Attributes:
        image: (B, C, H, W), the numbers of arrays. mask: (B, 1, H, W) in {0, 1}. label: (B,), see
            `read_labels`.
        frame: (B, 1, H, W) in {0, 1}, 0 in the padding of images that are smaller than the model's.
        strength: (B,) in [0, 1], or None if the task takes none.
    """

    image: Tensor
    mask: Tensor
    label: Tensor
    frame: Tensor
    strength: Tensor | None


def read_inputs(
    task: Task, given: Mapping, classes: Sequence[str], images: ImageFormat, n: int
) -> Inputs:
    """The arguments of a call as tensors of one length, each entry n times.

    Without a source the image is zero and all of it is painted.
    """
    label = read_labels(given["class_label"], classes)
    if "class_label" in task.required and (label < 0).any():
        raise ValueError(f"class_label has None in it; task {task.name!r} needs a class")
    strength = task.default_strength if given["strength"] is None else given["strength"]
    if strength is not None:
        entries = _entries(strength, "strength")
        strength = torch.tensor([read_number(one, 0, 1, "strength") for one in entries])
    pixels = torch.full((1, *images.shape), images.array_range[0])
    frame = mask = torch.ones(1, 1, *images.size)
    if given["image"] is not None:
        pixels, frame = read_images(given["image"], images)
    if given["mask_image"] is not None:
        mask = read_masks(given["mask_image"], images)
    parts = {"class_label": label, "strength": strength, "image": pixels, "mask_image": mask}
    lengths = {name: len(part) for name, part in parts.items() if part is not None}
    size = max(lengths.values())
    if not {*lengths.values()} <= {1, size}:
        raise ValueError(
            "the arguments have different lengths: "
            + ", ".join(f"{name} {length}" for name, length in lengths.items())
            + "; give each of them once, or as often as the longest"
        )

    def repeated(part: Tensor | None) -> Tensor | None:
        if part is not None:
            part = part.expand(size, *part.shape[1:]).repeat_interleave(n, 0)
        return part

    return Inputs(*map(repeated, (pixels, mask, label, frame, strength)))


def read_images(value, images: ImageFormat, name: str = "image") -> tuple[Tensor, Tensor]:
    """Images as (B, C, H, W) float32, and where they are not padding: (B, 1, H, W) in {0, 1}.

    Takes a PIL image, which `read_rgb` brings to the model's mode if that has 8 bits, an array
    (H, W, C), a tensor (C, H, W), a batch of either with one more axis in front, or a list of them.
    Arrays and tensors are floats in `images.array_range`, which is what `output_type="np"` and
    `"pt"` give.
    """
    read = [_image(item, images, name) for item in _items(value, name)]
    middle = sum(images.array_range) / 2
    padded = [_padded(one, images, name, middle) for one in read]
    frames = [_padded(torch.ones_like(one[:1]), images, name) for one in read]
    return torch.stack(padded), torch.stack(frames)


def read_masks(value, images: ImageFormat, name: str = "mask_image") -> Tensor:
    """Masks as (B, 1, H, W) float32 in {0, 1}: white (1) is repainted, black (0) is kept.

    Takes opaque PIL images, and arrays or tensors as `read_images`, of one channel and of floats in
    [0, 1] or booleans; also (H, W). Values of one half and more are white.
    """
    read = [_mask(item, name) for item in _items(value, name)]
    return torch.stack([_padded(one, images, name) for one in read])


def read_labels(value, classes: Sequence[str], name: str = "class_label") -> Tensor:
    """Class labels as (B,) int64 in 0..K-1, from names, numbers, None or a list of them.

    -1 is the null class, and None becomes `UNSET`.
    """
    return torch.tensor([_label(item, classes, name) for item in _entries(value, name)])


def read_number(value, low: float, high: float, name: str) -> float:
    """A finite number in [low, high]."""
    if not isinstance(value, numbers.Real) or not low <= value <= min(high, 1e38):
        upper = f"to {high}" if math.isfinite(high) else "upwards"
        raise wrong(name, value, f"a number from {low} {upper}")
    return float(value)


def read_interval(value, name: str) -> tuple[float, float]:
    """Two numbers, 0 <= low <= high; high may be infinite."""
    try:
        low, high = map(float, value)
    except (TypeError, ValueError):
        low, high = math.nan, math.nan
    if not 0 <= low <= high:
        wanted = "two numbers, the lower one first and 0 or more, such as (0.28, 2.9), or None"
        raise wrong(name, value, wanted)
    return low, high


def read_count(value, name: str) -> int:
    """A whole number from 1."""
    if not isinstance(value, numbers.Integral) or value < 1:
        raise wrong(name, value, "a whole number from 1")
    return int(value)


def wrong(name: str, value, wanted: str) -> ValueError:
    """The error for an argument. It shows the value on one line, shortened."""
    text = " ".join(repr(value).split())
    text = text if len(text) <= 80 else f"{text[:77]}..."
    return ValueError(f"{name} is {text}; it must be {wanted}")


def _entries(value, name: str) -> list:
    """The entries of a list, tuple, array or tensor; any other value is its only entry."""
    items = value.tolist() if isinstance(value, Tensor | np.ndarray) else value
    items = list(items) if isinstance(items, list | tuple) else [items]
    if not items:
        raise ValueError(f"{name} is an empty list; leave it out, or give an entry for each sample")
    return items


def _items(value, name: str) -> list:
    """A batch as a list of single pictures."""
    if isinstance(value, list | tuple) and value:
        return [item for part in value for item in _items(part, name)]
    if isinstance(value, Image.Image):
        return [value]
    if not isinstance(value, Tensor | np.ndarray) or (value.ndim > 2 and not len(value)):
        kinds = "a PIL image, a numpy array of floats, a tensor"
        raise wrong(name, value, f"{kinds}, or a list or batch of one or more")
    value = value.detach().cpu() if isinstance(value, Tensor) else value
    return list(value) if value.ndim == 4 else [value]


def _padded(image: Tensor, images: ImageFormat, name: str, value: float = 0.0) -> Tensor:
    """(C, H, W) of the model's size."""
    images.check_size(*image.shape[1:], name)
    return pad(image, images.padding(image.shape[1:]), value=value)


def _image(item, images: ImageFormat, name: str) -> Tensor:
    """(C, H, W), not padded yet."""
    if not isinstance(item, Image.Image):
        return _planes(item, images.channels, name, images.array_range)
    wanted = images.pil_mode
    if wanted and images.dtype == "uint8":
        read = _rgb(item, name, alpha=wanted == "RGBA")
        item = read.convert("L") if wanted == "L" else read
    elif item.mode != wanted and (wanted, item.mode) != ("I;16", "I"):
        raise ValueError(
            f"{name} is a PIL image of mode {item.mode}; of {images.words} PIL "
            f"{f'has the mode {wanted}' if wanted else 'has no mode'}: give an array of floats"
        )
    return images.from_pil(item)


def _mask(item, name: str) -> Tensor:
    """(1, H, W) in {0, 1}, not padded yet."""
    is_pil = isinstance(item, Image.Image)
    if is_pil:
        rgba = _rgb(item, name, alpha=True)
        if rgba.getextrema()[3][0] < 255:
            raise ValueError(
                f"{name} is transparent in places, and a mask is black and white: put it on a "
                "black background if what is transparent is kept, on a white one if it is repainted"
            )
        mask = torch.from_numpy(np.array(rgba.convert("L"), np.float32))[None] / 255
    else:
        is_bool = str(item.dtype) in ("bool", "torch.bool")
        mask = _planes(item * 1.0 if is_bool else item, 1, name)
    brightest, white = mask.max().item() if mask.numel() else 0, 255 if is_pil else 1
    if 0 < brightest < 0.5:
        raise ValueError(
            f"{name} has values up to {brightest * white:.3g}, so nothing would be repainted: make "
            f"white what is to be repainted ({white}), and black what is kept (0)"
        )
    return (mask >= 0.5).float()


def _rgb(image: Image.Image, name: str, alpha: bool) -> Image.Image:
    """A PIL image as `read_rgb` has it, which reads its file when its pixels are first needed."""
    try:
        image.load()
        return read_rgb(image, alpha)
    except (AssertionError, ValueError, OSError, SyntaxError) as error:
        cause = str(error) or "its file was closed before load()"
        raise ValueError(
            f"{name} is a PIL image of mode {image.mode} that can't be read: {cause}"
        ) from error


def _planes(
    item: np.ndarray | Tensor, channels: int, name: str, allowed: tuple[float, float] = (0, 1)
) -> Tensor:
    """(C, H, W) float32 of an array (H, W, C) or a tensor (C, H, W); of one channel also (H, W)."""
    (low, high), is_array = allowed, isinstance(item, np.ndarray)
    advice = ": divide 0..255 by 255, map [-1, 1] by x / 2 + 0.5" if (low, high) == (0, 1) else ""
    if not (item.dtype.kind == "f" if is_array else item.is_floating_point()):
        raise ValueError(
            f"{name} has the type {item.dtype}; arrays and tensors must be floats in "
            f"[{low:g}, {high:g}]{advice}"
        )
    pixels = torch.from_numpy(np.array(item, np.float32)) if is_array else item.float()
    if pixels.ndim == 2:
        pixels = pixels[None]
    elif is_array and pixels.ndim == 3:
        pixels = pixels.permute(2, 0, 1)
    if pixels.ndim != 3 or len(pixels) != channels:
        sides = f"H, W, {channels}" if is_array else f"{channels}, H, W"
        raise ValueError(
            f"{name} is {'an array' if is_array else 'a tensor'} of shape {tuple(item.shape)}; it "
            f"must be ({sides}), or (B, {sides})"
        )
    if not ((low <= pixels) & (pixels <= high)).all():
        raise ValueError(
            f"{name} has values from {pixels.min():.3g} to {pixels.max():.3g}; it must lie in "
            f"[{low:g}, {high:g}]{advice}"
        )
    return pixels


def _label(item, classes: Sequence[str], name: str) -> int:
    if item is None:
        return UNSET
    if isinstance(item, str) and item in classes:
        return list(classes).index(item)
    if isinstance(item, numbers.Integral) and -1 <= item < len(classes):
        return int(item)
    wanted = "None, for this model has no classes"
    if classes:
        more = f" and {len(classes) - 20} more" if len(classes) > 20 else ""
        known = f"a class that this model knows ({', '.join(classes[:20])}{more})"
        wanted = f"{known}, a number from 0 to {len(classes) - 1}, -1 for the null class, or None"
    raise wrong(name, item, wanted)
