"""Reads the arguments of the pipeline as tensors; errors name what came and what to do."""

import math
import numbers
import warnings
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

MAX_COUNT = 10_000  # of steps, and of images for each sample
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
    parts = {"class_label": read_labels(given["class_label"], classes)}
    if "class_label" in task.required and (parts["class_label"] < 0).any():
        raise ValueError(f"class_label has None in it; task {task.name!r} needs a class")
    strength = task.default_strength if given["strength"] is None else given["strength"]
    if strength is not None:
        entries = _entries(strength, "strength")
        parts["strength"] = torch.tensor([read_number(one, 0, 1, "strength") for one in entries])
    pixels = torch.full((1, *images.shape), images.array_range[0])
    frame = mask = torch.ones(1, 1, *images.size)
    if given["image"] is not None:
        pixels, frame = read_images(given["image"], images)
    if given["mask_image"] is not None:
        mask = read_masks(given["mask_image"], images)
    parts |= {"image": pixels, "mask_image": mask}
    lengths = {name: len(part) for name, part in parts.items()}
    size = max(lengths.values())
    if any(length not in (1, size) for length in lengths.values()):
        raise ValueError(
            "the arguments have different lengths: "
            + ", ".join(f"{name} {length}" for name, length in lengths.items())
            + "; give each of them once, or as often as the longest"
        )

    def repeated(part: Tensor | None) -> Tensor | None:
        if part is not None:
            part = part.expand(size, *part.shape[1:]).repeat_interleave(n, 0)
        return part

    each = (pixels, mask, parts["class_label"], frame, parts.get("strength"))
    return Inputs(*map(repeated, each))


def check_callback(callback, inputs, known: Sequence[str]) -> None:
    """Refuses a callback_on_step_end that is no function, and tensors that it can't get."""
    if callback is not None and not callable(callback):
        raise wrong("callback_on_step_end", callback, "a function or None")
    if not isinstance(inputs, list | tuple) or any(name not in known for name in inputs):
        wanted = f"a list, and may have {', '.join(known)}"
        raise wrong("callback_on_step_end_tensor_inputs", inputs, wanted)


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

    Takes opaque PIL images, and arrays or tensors of floats in [0, 1] or booleans: one mask as
    (H, W), or with its one channel; several as (B, 1, H, W), (B, H, W, 1) or a list. Values of one
    half and more are white. Warns of masks without black or white.
    """
    read = [_mask(item, name) for item in _items(value, name)]
    masks = torch.stack([_padded(one, images, name) for one in read])
    for share, color, meaning in ((0, "black", "repainted"), (1, "white", "kept")):
        if found := (masks.mean(dim=(1, 2, 3)) == share).sum():
            words = f"{name}: {found} of {len(masks)} all {color}: nothing is {meaning}"
            warnings.warn(words, stacklevel=5)
    return masks


def read_labels(value, classes: Sequence[str], name: str = "class_label") -> Tensor:
    """Class labels as (B,) int64 in 0..K-1, from names, numbers, None or a list of them.

    -1 is the null class, and None becomes `UNSET`.
    """
    return torch.tensor([_label(item, classes, name) for item in _entries(value, name)])


def read_number(value, low: float, high: float, name: str) -> float:
    """A finite number in [low, high]. True and False are not numbers."""
    if not _is(value, numbers.Real) or not low <= value <= min(high, 1e38):
        upper = f"to {high}" if math.isfinite(high) else "upwards"
        raise wrong(name, value, f"a number from {low} {upper}")
    return float(value)


def read_interval(value, name: str) -> tuple[float, float]:
    """Two numbers, 0 <= low <= high; high may be infinite."""
    is_pair = isinstance(value, list | tuple) and len(value) == 2
    if not (is_pair and all(_is(end, numbers.Real) for end in value) and 0 <= value[0] <= value[1]):
        wanted = "two numbers, the lower one first and 0 or more, such as (0.28, 2.9), or None"
        raise wrong(name, value, wanted)
    return value[0], value[1]


def read_count(value, name: str) -> int:
    """A whole number from 1 to `MAX_COUNT`. True and False are not numbers."""
    if not _is(value, numbers.Integral) or not 1 <= value <= MAX_COUNT:
        raise wrong(name, value, f"a whole number from 1 to {MAX_COUNT:,}")
    return int(value)


def wrong(name: str, value, wanted: str) -> ValueError:
    """The error for an argument. It shows the value on one line, shortened."""
    try:
        text = " ".join(repr(value).split())
    except ValueError:  # an integer of more digits than Python prints
        text = f"a {type(value).__name__} that cannot be printed"
    text = text if len(text) <= 80 else f"{text[:77]}..."
    return ValueError(f"{name} is {text}; it must be {wanted}")


def _is(value, kind: type) -> bool:
    """Whether it is a number of a kind, which True and False are not."""
    return isinstance(value, kind) and not isinstance(value, bool)


def is_dense(value) -> bool:
    """Whether it is a tensor with values that can be listed."""
    return isinstance(value, Tensor) and value.layout is torch.strided and not value.is_meta


def _entries(value, name: str) -> list:
    """The entries of a list, tuple, array or tensor; any other value is its only entry."""
    items = value.tolist() if is_dense(value) or isinstance(value, np.ndarray) else value
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
    is_array = isinstance(value, np.ndarray) and value.dtype.kind in "biufc"
    if not (is_array or is_dense(value)) or (value.ndim > 2 and not len(value)):
        kinds = "a PIL image, a numpy array of floats, a dense tensor"
        raise wrong(name, value, f"{kinds}, or a list or batch of one or more")
    value = value if is_array else value.detach().cpu()
    return list(value) if value.ndim == 4 else [value]


def _padded(image: Tensor, images: ImageFormat, name: str, value: float = 0.0) -> Tensor:
    """(C, H, W) of the model's size."""
    images.check_size(*image.shape[1:], name)
    return pad(image, images.padding(image.shape[1:]), value=value)


def _image(item, images: ImageFormat, name: str) -> Tensor:
    """(C, H, W), not padded yet."""
    if isinstance(item, Image.Image):
        return images.from_pil(_of_mode(item, images, name))
    is_array, pixels = isinstance(item, np.ndarray), _floats(item, name, images.array_range)
    sides = f"H, W, {images.channels}" if is_array else f"{images.channels}, H, W"
    if is_array and pixels.ndim == 3:
        pixels = pixels.permute(2, 0, 1)
    if pixels.ndim != 3 or len(pixels) != images.channels:
        raise ValueError(
            f"{name} is {'an array' if is_array else 'a tensor'} of shape {tuple(item.shape)}; it "
            f"must be ({sides}), or (B, {sides})"
        )
    return pixels


def _of_mode(image: Image.Image, images: ImageFormat, name: str) -> Image.Image:
    """A PIL image in the mode of the model's."""
    wanted = images.pil_mode
    if wanted and images.dtype == "uint8":
        read = _rgb(image, name, alpha=wanted == "RGBA")
        return read.convert("L") if wanted == "L" else read
    if image.mode != wanted and (wanted, image.mode) != ("I;16", "I"):
        raise ValueError(
            f"{name} is a PIL image of mode {image.mode}; of {images.words} PIL "
            f"{f'has the mode {wanted}' if wanted else 'has no mode'}: give an array of floats"
        )
    return image


def _mask(item, name: str) -> Tensor:
    """(1, H, W) in {0, 1}, not padded yet."""
    if isinstance(item, Image.Image):
        rgba = _rgb(item, name, alpha=True)
        if rgba.getextrema()[3][0] < 255:
            raise ValueError(
                f"{name} is transparent in places, and a mask is black and white: put it on a "
                "black background if what is transparent is kept, on a white one if it is repainted"
            )
        white, grey = (65535, item) if item.mode.startswith("I") else (255, rgba.convert("L"))
        mask = torch.from_numpy(np.array(grey, np.float32)) / white
    else:
        white, is_bool = 1, str(item.dtype) in ("bool", "torch.bool")
        mask = _floats(item * 1.0 if is_bool else item, name)
        if mask.ndim == 3 and 1 in (len(mask), mask.shape[-1]):
            mask = mask.squeeze(0 if len(mask) == 1 else -1)
        if mask.ndim != 2:  # (3, H, W) could be one mask in color or three masks
            raise ValueError(
                f"{name} has shape {tuple(item.shape)}; it must be (H, W), with one channel or "
                "none: give several as a list or as (B, 1, H, W), and one in color as its mean "
                "over the channels"
            )
    brightest = mask.max().item() if mask.numel() else 0
    if 0 < brightest < 0.5:
        raise ValueError(
            f"{name} has values up to {brightest * white:.3g}, so nothing would be repainted: make "
            f"white what is to be repainted ({white}), and black what is kept (0)"
        )
    return (mask >= 0.5).float()[None]


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


def _floats(item: np.ndarray | Tensor, name: str, allowed: tuple[float, float] = (0, 1)) -> Tensor:
    """The numbers of an array, or of a dense tensor, in the allowed range; float32."""
    (low, high), is_array = allowed, isinstance(item, np.ndarray)
    plain = (low, high) == (0, 1)
    if not (item.dtype.kind == "f" if is_array else item.is_floating_point()):
        advice = "divide by 255, or give PIL images" if plain else "give x.astype(np.float32)"
        raise ValueError(
            f"{name} has the type {item.dtype}; arrays and tensors must be floats in "
            f"[{low:g}, {high:g}]: {advice}"
        )
    if is_array:
        with np.errstate(over="ignore"):  # what is too large becomes infinite, and is refused
            item = torch.from_numpy(np.array(item, np.float32))
    pixels = item.float()
    if not ((low <= pixels) & (pixels <= high)).all():
        advice = "divide 0..255 by 255, map [-1, 1] by x / 2 + 0.5"
        raise ValueError(
            f"{name} has values from {pixels.min():.3g} to {pixels.max():.3g}; it must lie in "
            f"[{low:g}, {high:g}]: {advice if plain else 'this model has that value_range'}"
        )
    return pixels


def _label(item, classes: Sequence[str], name: str) -> int:
    if item is None:
        return UNSET
    if isinstance(item, str) and item in classes:
        return list(classes).index(item)
    if _is(item, numbers.Integral) and -1 <= item < len(classes):
        return int(item)
    wanted = "None, for this model has no classes"
    if classes:
        more = f" and {len(classes) - 20} more" if len(classes) > 20 else ""
        known = f"a class that this model knows ({', '.join(classes[:20])}{more})"
        wanted = f"{known}, a number from 0 to {len(classes) - 1}, -1 for the null class, or None"
    raise wrong(name, item, wanted)
