"""Reads the arguments of the pipeline as tensors; errors name what came and what to do."""

import math
import numbers
import warnings
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn.functional import pad

from .format import ImageFormat
from .rgb import is_transparent, read_rgb
from .task import Task

MAX_COUNT = 10_000  # of steps, and of images for each sample
UNSET = -2  # the label of a sample without one; any negative number is no class for the network


@dataclass(frozen=True)
class Inputs:
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

    def to(self, device: torch.device) -> "Inputs":
        parts = (self.image, self.mask, self.label, self.frame, self.strength)
        return Inputs(*(part if part is None else part.to(device) for part in parts))


def read_inputs(
    task: Task,
    class_label,
    image,
    mask_image,
    strength,
    classes: Sequence[str],
    images: ImageFormat,
    n: int,
) -> Inputs:
    """The arguments of a call as tensors of one length, each entry n times.

    Without a source the image is zero and all of it is painted.
    """
    parts = {"class_label": read_labels(class_label, classes)}
    if "class_label" in task.required and (parts["class_label"] < 0).any():
        raise ValueError(f"class_label has None in it; task {task.name!r} needs a class")
    strength = task.default_strength if strength is None else strength
    if strength is not None:
        parts["strength"] = read_numbers(strength, 0, 1, "strength")
    if image is not None:
        parts["image"] = torch.cat(read_images(image, images), dim=1)  # the frame is a channel here
    if mask_image is not None:
        parts["mask_image"] = read_masks(mask_image, images)
    blank = torch.full((1, *images.shape), images.array_range[0])
    parts.setdefault("image", torch.cat([blank, torch.ones(1, 1, *images.size)], dim=1))
    parts.setdefault("mask_image", torch.ones(1, 1, *images.size))
    parts = {name: part.repeat_interleave(n, 0) for name, part in repeat_to_batch(parts).items()}
    pixels, frame = parts["image"].split([images.channels, 1], dim=1)
    return Inputs(pixels, parts["mask_image"], parts["class_label"], frame, parts.get("strength"))


def check_callback(callback, inputs, known: Sequence[str]) -> None:
    """Refuses a callback_on_step_end that is no function, and tensors that it can't get."""
    if callback is not None and not callable(callback):
        raise ValueError(
            f"callback_on_step_end is {shown(callback)}; it must be a function or None"
        )
    if not isinstance(inputs, list | tuple) or any(name not in known for name in inputs):
        raise ValueError(
            f"callback_on_step_end_tensor_inputs is {shown(inputs)}; it must be a list, and may "
            f"have {', '.join(known)}"
        )


def read_images(value, images: ImageFormat, name: str = "image") -> tuple[Tensor, Tensor]:
    """Images as (B, C, H, W) float32, and where they are not padding: (B, 1, H, W) in {0, 1}.

    Takes a PIL image, which `read_rgb` brings to the model's mode if that has 8 bits, an array
    (H, W, C), a tensor (C, H, W), a batch of either with one more axis in front, or a list of them.
    Arrays and tensors are floats in `images.array_range`, which is what `output_type="np"` and
    `"pt"` give.
    """
    read = [_image(item, images, name) for item in _items(value, name, "image")]
    middle = sum(images.array_range) / 2
    padded = [pad(one, images.padding(one.shape[-2:]), value=middle) for one in read]
    frames = [pad(one[:, :1] * 0 + 1, images.padding(one.shape[-2:])) for one in read]
    return torch.cat(padded), torch.cat(frames)


def read_masks(value, images: ImageFormat, name: str = "mask_image") -> Tensor:
    """Masks as (B, 1, H, W) float32 in {0, 1}: white (1) is repainted, black (0) is kept.

    Takes opaque PIL images, and arrays or tensors of floats in [0, 1] or booleans: one mask as
    (H, W), or with its one channel; several as (B, 1, H, W), (B, H, W, 1) or a list. Values of one
    half and more are white. Warns of masks without black or white.
    """
    read = [_mask(item, images, name) for item in _items(value, name, "mask")]
    masks = torch.cat([pad(one, images.padding(one.shape[-2:])) for one in read])
    for share, meaning in ((0.0, "nothing is repainted"), (1.0, "nothing is kept")):
        if found := (masks.mean(dim=(1, 2, 3)) == share).sum():
            color = "black" if share == 0 else "white"
            warnings.warn(f"{name}: {found} of {len(masks)} all {color}: {meaning}", stacklevel=5)
    return masks


def read_labels(value, classes: Sequence[str], name: str = "class_label") -> Tensor:
    """Class labels as (B,) int64 in 0..K-1, from names, numbers, None or a list of them.

    -1 is the null class, and None becomes `UNSET`.
    """
    items = _entries(value, name, "a class name, a number or None")
    return torch.tensor([_label(item, classes, name) for item in items])


def read_numbers(value, low: float, high: float, name: str) -> Tensor:
    """One number or a list of them as (B,) float32, each in [low, high]."""
    items = _entries(value, name, f"a number from {low} to {high}")
    read = [read_number(item, low, high, name) for item in items]
    return torch.tensor(read, dtype=torch.float32)


def read_number(value, low: float, high: float, name: str) -> float:
    """A finite number in [low, high]. True and False are not numbers."""
    number = _number(value)
    if number is None or not math.isfinite(number) or not low <= number <= high:
        upper = f"to {high}" if math.isfinite(high) else "upwards"
        raise ValueError(f"{name} is {shown(value)}; it must be a number from {low} {upper}")
    return number


def read_interval(value, name: str) -> tuple[float, float]:
    """Two numbers, 0 <= low <= high; high may be infinite."""
    is_pair = isinstance(value, list | tuple) and len(value) == 2
    ends = [_number(end) for end in value] if is_pair else [None]
    if None in ends or not 0 <= ends[0] <= ends[1]:
        raise ValueError(
            f"{name} is {shown(value)}; it must be two numbers, the lower one first and 0 or more, "
            "such as (0.28, 2.9), or None"
        )
    return ends[0], ends[1]


def read_count(value, name: str, least: int = 1) -> int:
    """A whole number from `least` to `MAX_COUNT`. True and False are not numbers."""
    is_whole = isinstance(value, numbers.Integral) and not isinstance(value, bool)
    if not is_whole or not least <= value <= MAX_COUNT:
        raise ValueError(
            f"{name} is {shown(value)}; it must be a whole number from {least} to {MAX_COUNT:,}"
        )
    return int(value)


def repeat_to_batch(parts: dict[str, Tensor]) -> dict[str, Tensor]:
    """Repeats arguments that were given once, so that each has one entry a sample."""
    lengths = {name: len(part) for name, part in parts.items()}
    size = max(lengths.values())
    if any(length not in (1, size) for length in lengths.values()):
        raise ValueError(
            "the arguments have different lengths: "
            + ", ".join(f"{name} {length}" for name, length in lengths.items())
            + "; give each of them once, or as often as the longest"
        )
    return {name: part.expand(size, *part.shape[1:]) for name, part in parts.items()}


def dense(value: Tensor, name: str) -> Tensor:
    """The tensor on the CPU, without its gradient.

    Raises:
        ValueError: it is sparse, nested, quantized or on the meta device.
    """
    if value.layout is not torch.strided or value.is_nested or value.is_quantized or value.is_meta:
        kind = "without values (on the meta device)" if value.is_meta else "sparse or quantized"
        raise ValueError(f"{name} is a tensor that is {kind}; give a dense one, as to_dense() does")
    return value.detach().cpu()


def shown(value) -> str:
    """A value in an error message: its repr on one line, shortened."""
    try:
        text = " ".join(repr(value).split())
    except Exception:  # such as an integer of more digits than Python prints
        text = f"a {type(value).__name__} that cannot be printed"
    return text if len(text) <= 80 else f"{text[:77]}..."


def _number(value) -> float | None:
    """A real number as a float, infinite if it is too large; None for anything else."""
    if not isinstance(value, numbers.Real) or isinstance(value, bool):
        return None
    try:
        return float(value)
    except OverflowError:
        return math.inf if value > 0 else -math.inf


def _entries(value, name: str, wanted: str) -> list:
    """The entries of a list, tuple, array or tensor; any other value is its only entry."""
    if isinstance(value, Tensor):
        value = dense(value, name)
    items = value.tolist() if isinstance(value, Tensor | np.ndarray) else value
    items = list(items) if isinstance(items, list | tuple) else [items]
    if not items:
        raise ValueError(f"{name} is an empty list; give {wanted}")
    return items


def _items(value, name: str, kind: str) -> list:
    """A batch as a list of single pictures."""
    if isinstance(value, list | tuple):
        if not value:
            raise ValueError(f"{name} is an empty list; give at least one {kind}")
        return [item for part in value for item in _items(part, name, kind)]
    if isinstance(value, Image.Image):
        return [value]
    if not isinstance(value, np.ndarray | Tensor) or (
        isinstance(value, np.ndarray) and value.dtype.kind not in "biufc"  # numbers and booleans
    ):
        raise ValueError(
            f"{name} is a {type(value).__name__}"
            f"{f' of {value.dtype}' if isinstance(value, np.ndarray) else ''}; it must be a PIL "
            "image, a numpy array of floats, a tensor, or a list of these"
        )
    if isinstance(value, Tensor):
        value = dense(value, name)
    if value.ndim > 2 and len(value) == 0:
        raise ValueError(f"{name} is an empty batch; give at least one {kind}")
    return list(value) if value.ndim == 4 else [value]


def _image(item, images: ImageFormat, name: str) -> Tensor:
    """(1, C, H, W), not padded yet."""
    if isinstance(item, Image.Image):
        wanted = images.pil_mode
        if wanted is None:
            raise ValueError(
                f"{name} is a PIL image of mode {item.mode}; PIL has no mode for this model's "
                f"images ({images.words}): give an array of floats"
            )
        if images.dtype == "uint8":
            item = _rgb(item, name, wanted)
        elif item.mode != wanted and (wanted, item.mode) != ("I;16", "I"):
            raise ValueError(
                f"{name} is a PIL image of mode {item.mode}; it must be {wanted}: give a file of "
                "that depth, or an array of floats"
            )
        images.check_size(item.height, item.width, name)
        return images.from_pil(item)
    channels, pixels = images.channels, _floats(item, name, images.array_range)
    if isinstance(item, np.ndarray):
        if pixels.ndim != 3 or pixels.shape[-1] != channels:
            raise ValueError(
                f"{name} is an array of shape {item.shape}; it must be (H, W, {channels}), or "
                f"(B, H, W, {channels})"
            )
        pixels = pixels.permute(2, 0, 1)
    elif pixels.ndim != 3 or pixels.shape[0] != channels:
        raise ValueError(
            f"{name} is a tensor of shape {tuple(item.shape)}; it must be ({channels}, H, W), or "
            f"(B, {channels}, H, W): the channels come first"
        )
    images.check_size(*pixels.shape[1:], name)
    return pixels[None]


def _mask(item, images: ImageFormat, name: str) -> Tensor:
    if isinstance(item, Image.Image):
        rgb = _rgb(item, name)
        if is_transparent(item):
            raise ValueError(
                f"{name} is transparent in places, and a mask is black and white: put it on a "
                "black background if what is transparent is kept, on a white one if it is repainted"
            )
        images.check_size(rgb.height, rgb.width, name)
        deep = item.mode.startswith("I")
        white, grey = (65535, item) if deep else (255, rgb.convert("L"))
        mask = torch.from_numpy(np.array(grey, np.float32)) / white
        advice = "make white what is to be repainted, and black what is kept"
    else:
        advice = f"give {name} > 0 if it is 0 where it is kept"
        is_bool = item.dtype == (torch.bool if isinstance(item, Tensor) else bool)
        mask = _tensor(item).float() if is_bool else _floats(item, name)
        white = 1
        if mask.ndim == 3:
            # (3, H, W) could be one mask in color or three masks: so it is refused.
            channel = 0 if len(mask) == 1 else -1
            if mask.shape[channel] != 1:
                raise ValueError(
                    f"{name} has shape {tuple(item.shape)}; a mask has one channel, or none: give "
                    "several as a list or as (B, 1, H, W), and one in color as its mean over the "
                    "channels"
                )
            mask = mask.squeeze(channel)
        if mask.ndim != 2:
            raise ValueError(
                f"{name} has shape {tuple(item.shape)}; it must be (H, W), or a list of that"
            )
        images.check_size(*mask.shape, name)
    brightest = mask.max().item()
    if 0 < brightest < 0.5:
        raise ValueError(
            f"{name} has values up to {brightest * white:.3g}, so nothing would be repainted; "
            f"white is {white}: {advice}"
        )
    return (mask >= 0.5).float()[None, None]


def _rgb(image: Image.Image, name: str, mode: str = "RGB") -> Image.Image:
    """A PIL image in this mode, of 8 bits. It reads its file when its pixels are first needed."""
    try:
        image.load()
    except (AssertionError, ValueError, OSError, SyntaxError) as error:
        raise ValueError(
            f"{name} is a PIL image whose file is closed or damaged ({error}); call load() before "
            "it is closed"
        ) from error
    try:
        read = read_rgb(image, alpha=mode == "RGBA")
        return read.convert("L") if mode == "L" else read
    except ValueError as error:
        raise ValueError(f"{name} is a PIL image of mode {image.mode}: {error}") from error


def _tensor(item: np.ndarray | Tensor) -> Tensor:
    """On the CPU, from arrays of any byte order and strides."""
    if isinstance(item, Tensor):
        return item.detach().cpu()
    if item.dtype.kind == "f":
        with np.errstate(over="ignore"):  # what is too large becomes infinite, and is refused
            item = item.astype(np.float32)
    return torch.from_numpy(np.array(item, dtype=item.dtype.newbyteorder("=")))


def _floats(
    item: np.ndarray | Tensor, name: str, allowed: tuple[float, float] = (0.0, 1.0)
) -> Tensor:
    is_float = item.dtype.kind == "f" if isinstance(item, np.ndarray) else item.is_floating_point()
    (low, high), plain = allowed, allowed == (0.0, 1.0)
    if not is_float:
        advice = "divide by 255, or give PIL images" if plain else "give x.astype(np.float32)"
        raise ValueError(
            f"{name} has the type {item.dtype}; arrays and tensors must be floats in "
            f"[{low:g}, {high:g}]: {advice}"
        )
    pixels = _tensor(item).float()
    if not pixels.isfinite().all():
        raise ValueError(f"{name} has NaN or infinite values; it must lie in [{low:g}, {high:g}]")
    if pixels.numel() and (pixels.min() < low or pixels.max() > high):
        advice = "divide 0..255 by 255, map [-1, 1] by x / 2 + 0.5"
        raise ValueError(
            f"{name} has values from {pixels.min():.3g} to {pixels.max():.3g}; it must lie in "
            f"[{low:g}, {high:g}]: {advice if plain else 'this model has that value_range'}"
        )
    return pixels


def _label(item, classes: Sequence[str], name: str) -> int:
    is_index = isinstance(item, numbers.Integral) and not isinstance(item, bool)
    if item is None:
        return UNSET
    if is_index and item == -1:
        return -1
    if not classes:
        raise ValueError(
            f"{name} is {shown(item)}; this model has no classes: leave it out, or give None"
        )
    if isinstance(item, str):
        if item not in classes:
            known = ", ".join(classes[:20])
            more = f" and {len(classes) - 20} more" if len(classes) > 20 else ""
            raise ValueError(f"{name} is {shown(item)}; this model knows {known}{more}")
        return list(classes).index(item)
    if not is_index or not 0 <= item < len(classes):
        raise ValueError(
            f"{name} is {shown(item)}; it must be a class name, a number from 0 to "
            f"{len(classes) - 1}, -1 for the null class, or None"
        )
    return int(item)
