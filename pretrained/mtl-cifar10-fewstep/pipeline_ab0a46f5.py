"""The pipeline: one model, several tasks.

pipe = DiffusionPipeline.from_pretrained("user/model", trust_remote_code=True)
pipe(task="generate", class_label="cat").images[0]
pipe(task="inpaint", image=image, mask_image=mask).images[0]
pipe(task="edit", image=image, class_label="dog", strength=0.7).images[0]

Generated from the files of mtl_diffusion that are named below. It needs torch, diffusers,
transformers, safetensors, PIL and numpy. Its name ends in a digest of its text: diffusers copies
the code of all models to one folder, where another version of the same name would replace it.
"""

import copy
import hashlib
import io
import json
import math
import numbers
import re
import time
import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, fields, replace
from functools import lru_cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, ClassVar, NamedTuple, Optional

import numpy as np
import torch
from diffusers import (
    DiffusionPipeline,
    EDMDPMSolverMultistepScheduler,
    EDMEulerScheduler,
    ImagePipelineOutput,
    UNet2DConditionModel,
)
from diffusers.utils.hub_utils import upload_folder
from diffusers.utils.torch_utils import randn_tensor
from PIL import ExifTags, Image, ImageCms
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn
from torch.nn.functional import adaptive_avg_pool2d, interpolate, pad
from transformers import PreTrainedTokenizerBase


# --------------------------------------------------------------------------------------------------
# degradation.py
#
# Blur-and-noise degradation of the source, by strength.
# --------------------------------------------------------------------------------------------------


SIGMA_DATA = 0.5  # standard deviation of images in [-1, 1], as in EDM; strength 1 is noise of it
BLUR = 0.25  # standard deviation of the low-pass at strength 1, as a share of the shorter side


def dct_matrix(size: int, device: torch.device) -> Tensor:
    """(size, size) orthonormal DCT-II: row k is the cosine of k half-periods over the image."""
    k = torch.arange(size, device=device, dtype=torch.float32)
    basis = torch.cos(math.pi / size * k[:, None] * (k[None, :] + 0.5))
    basis[0] *= math.sqrt(0.5)
    return basis * math.sqrt(2 / size)


def low_pass(image: Tensor, std: Tensor) -> Tensor:
    """Gaussian blur with reflecting borders: the heat kernel, diagonal under the DCT.

    Args:
        image: (B, C, H, W).
        std: (B,) standard deviation of the blur in pixels, >= 0.

    Source: Rissanen et al. 2023, Generative modelling with inverse heat dissipation, eq. 6.
    """
    rows, columns = (_heat_kernel(size, std) for size in image.shape[-2:])
    return torch.einsum("bij,bcjk,blk->bcil", rows, image, columns)


def _heat_kernel(size: int, std: Tensor) -> Tensor:
    """(B, size, size) the blur of a line of pixels, as a matrix."""
    basis = dct_matrix(size, std.device)
    k = torch.arange(size, device=std.device, dtype=torch.float32)
    frequency = math.pi / size * k  # radians a pixel
    decay = torch.exp(-0.5 * (frequency * std[:, None]) ** 2)  # (B, size)
    return basis.T @ (decay[:, :, None] * basis)


def noise_level(strength: Tensor) -> Tensor:
    """Noise of the degradation as a multiple of its signal, in units of image values; inf at 1."""
    depth = strength.square()
    return torch.where(depth < 1, SIGMA_DATA * torch.tan(math.pi / 2 * depth), math.inf)


def degrade(image: Tensor, strength: Tensor, noise: Tensor) -> Tensor:
    """cos(pi d / 2) low_pass(image, d BLUR W) + sin(pi d / 2) SIGMA_DATA noise, at d = strength^2.

    At every frequency the signal-to-noise ratio falls as the strength grows. Strength 0 gives the
    image back bit for bit, strength 1 gives pure noise, and the variance hardly changes. The
    square gives more of the range to weak degradations: training draws strengths uniformly, and
    edits that keep their source need weak ones.

    Args:
        image: (B, C, H, W) in [-1, 1].
        strength: (B,) in [0, 1].
        noise: (B, C, H, W) standard normal.
    """
    depth = strength.square()
    blurred = low_pass(image, depth * BLUR * min(image.shape[-2:]))
    d = depth[:, None, None, None]
    # cos(pi / 2) is 4e-8 in float32: zero makes strength 1 exact.
    signal = torch.where(d < 1, torch.cos(math.pi / 2 * d), 0.0)
    degraded = signal * blurred + torch.sin(math.pi / 2 * d) * SIGMA_DATA * noise
    return torch.where(d > 0, degraded, image)


# --------------------------------------------------------------------------------------------------
# chains.py
#
# Models that draw in few steps: the noise levels that they visit.
#
# A chain is the noise levels of one number of steps, the highest first. At each of its levels the
# model has learned the jump to the next one, and from the last to the image: the end of the teacher's
# probability-flow ODE from there. A jump is one Euler step, x' = (s'/s) x + (1 - s'/s) D(x; s). The
# noise level tells the model which jump is asked for, so no level belongs to two chains.
# --------------------------------------------------------------------------------------------------


Chains = Sequence[Sequence[float]]

# As shares of the highest noise level of sampling.
_SHARES = ((1.0,), (1 / 2, 0.01), (1 / 4, 0.05, 0.0125, 0.003))

# Natural images in [-1, 1] (measured on CIFAR-10): the standard deviation of a coefficient of the
# orthonormal DCT is SPECTRUM * size / max(frequency, LOWEST), and GREY the correlation of channels.
_SPECTRUM, _LOWEST, _GREY = 0.17, 0.6, 0.9


def default_chains(sigma_max: float) -> list[list[float]]:
    """The chains of 1, 2 and 4 steps; the default of sampling is the last."""
    return [[share * sigma_max for share in shares] for shares in _SHARES]


def jumps(chains: Chains) -> list[tuple[float, float]]:
    """(from, to) of every jump of every chain; to is 0 at its end."""
    return [pair for levels in chains for pair in zip(levels, [*levels[1:], 0.0], strict=True)]


def first_latents(noise: Tensor, sigma: float) -> Tensor:
    """Latents of the first level of a chain, where sigma times the noise alone would be too little.

    A chain begins where an image is not yet lost in the noise: at sigma 20 the mean of 32x32 pixels
    has a standard deviation of 9 before the noise and of 22 with it. So each frequency gets the
    variance that natural images have there, which falls as 1 / frequency^2 (Field 1987, Relations
    between the statistics of natural images and the response properties of cortical cells).

    Args:
        noise: (B, C, H, W) standard normal.

    Returns:
        (B, C, H, W), of the same directions in each frequency.
    """
    (channels, height, width), device = noise.shape[1:], noise.device
    side = (height * width) ** 0.5
    rows, columns = dct_matrix(height, device), dct_matrix(width, device)
    y, x = (
        torch.arange(size, device=device, dtype=torch.float32) * (side / size)
        for size in (height, width)
    )
    frequency = (y[:, None].square() + x[None, :].square()).sqrt()
    variance = (_SPECTRUM * side / frequency.clamp_min(_LOWEST)).square()
    # The eigenvectors of channels of one correlation are grey, and all that is orthogonal.
    grey = (sigma**2 + (1 + (channels - 1) * _GREY) * variance).sqrt()
    colour = (sigma**2 + (1 - _GREY) * variance).sqrt()
    coefficients = rows @ noise @ columns.T
    mean = coefficients.mean(1, keepdim=True)
    return rows.T @ (grey * mean + colour * (coefficients - mean)) @ columns


def check_chains(chains) -> None:
    """Raises a ValueError if they are not lists of falling levels, with no level twice."""
    try:
        levels = [level for chain in chains for level in chain]
        falling = all(list(chain) == sorted({*chain}, reverse=True) for chain in chains)
        lengths = [len(chain) for chain in chains]
        fits = levels and falling and all(level > 0 for level in levels) and 0 not in lengths
        fits = fits and len({*levels}) == len(levels) and len({*lengths}) == len(lengths)
    except TypeError:
        fits = False
    if not fits:
        raise ValueError(
            f"chains are {chains}; they must be lists of noise levels above 0, falling, no two of "
            "one length and no level twice: compare model_index.json with that of the published "
            "model"
        )


def karras_ramp(levels: Sequence[float], config) -> Tensor:
    """Noise levels as EDMEulerScheduler takes them: the places in [0, 1] of its Karras schedule.

    Args:
        config: the scheduler's.
    """
    low, high = (config[name] ** (1 / config.rho) for name in ("sigma_min", "sigma_max"))
    roots = torch.tensor(levels, dtype=torch.float64) ** (1 / config.rho)
    return (high - roots) / (high - low)


def karras_levels(first: Tensor, steps: int, config) -> Tensor:
    """The noise levels of each sample's own Karras schedule, without the 0 at its end.

    Args:
        first: (B, 1, 1, 1), where they begin.
        config: the scheduler's.

    Returns:
        (steps, B, 1, 1, 1).

    Source: Karras et al. 2022, arXiv:2206.00364, eq. 5.
    """
    ramp = torch.linspace(0, 1, steps, device=first.device).view(-1, 1, 1, 1, 1)
    high, low = first ** (1 / config.rho), config.sigma_min ** (1 / config.rho)
    return (high + ramp * (low - high)) ** config.rho


# --------------------------------------------------------------------------------------------------
# task.py
#
# The contract of a task: what training draws at random, and the input that it conditions on.
# --------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Choice:
    """Random draws of training for B samples of one task.

    Attributes:
        mask: (B, 1, H, W) in {0, 1}, 1 = to be painted.
        drop_class: (B,) bool, the class token becomes null.
        strength: (B,) in [0, 1], NaN for none; or None if the task has no strength.
        drop_image: (B,) bool, the condition image is hidden inside the mask and the strength
            becomes null; or None if the task drops no image.
    """

    mask: Tensor
    drop_class: Tensor
    strength: Tensor | None = None
    drop_image: Tensor | None = None


@dataclass(frozen=True)
class Hint:
    """The image that a task conditions on, for B samples.

    Attributes:
        image: (B, C, H, W) in the range of the images, zero where nothing is shown.
        mask: (B, 1, H, W) in {0, 1}. 1 = to be painted: the loss is taken there alone.
            0 = known: `image` is exact there, and comes out unchanged.
        strength: (B,) in [0, 1], NaN for none; or None if the task has no strength.
    """

    image: Tensor
    mask: Tensor
    strength: Tensor | None = None

    def within(self, frame: Tensor, image: Tensor) -> "Hint":
        """The same inside a frame (B, 1, H, W) in {0, 1}; outside the image is known: padding."""
        shown = torch.where(frame > 0, self.image, image)
        return Hint(image=shown, mask=self.mask * frame, strength=self.strength)


class Task(ABC):
    """A task is a name, the arguments it takes when sampling, and two functions.

    Both functions use torch alone and are vectorised over the batch. They get all randomness as
    arguments, so that a training step is a function of its key.

    Class attributes:
        name: the value of `pipe(task=name)`, and the name of the task's token.
        required: arguments of the pipeline that the task needs.
        optional: further arguments of the pipeline that it takes. Any other one is refused.
        default_strength: the strength when sampling without one; None if the task takes none.
        default_steps: steps when sampling without a number of them.
        default_guidance_scale: the guidance scale when sampling without one; 1 is off.
        default_guidance_interval: the lowest and highest noise level (sigma) of guidance when
            sampling without them.
        draws_class: whether a sample without a class is one of a class that is drawn as often as
            the training data has it; else it is drawn with the null class.
        holes_from_data: whether training takes masks of the dataset, too, where it has some.
        few_steps: steps of a model that draws in few steps, when sampling without a number of
            them; None: those of its last chain.
        at_once: whether such a model takes one step, and no other number.
    """

    name: ClassVar[str]
    required: ClassVar[frozenset[str]] = frozenset()
    optional: ClassVar[frozenset[str]] = frozenset()
    default_strength: ClassVar[float | None] = None
    default_steps: ClassVar[int] = 18
    default_guidance_scale: ClassVar[float] = 1.0
    default_guidance_interval: ClassVar[tuple[float, float]] = (0.0, math.inf)
    draws_class: ClassVar[bool] = False
    holes_from_data: ClassVar[bool] = False
    few_steps: ClassVar[int | None] = None
    at_once: ClassVar[bool] = False

    ARGUMENTS: ClassVar[frozenset[str]] = frozenset(
        {"image", "mask_image", "class_label", "strength", "image_guidance_scale"}
    )

    def __init_subclass__(cls, **kwargs):
        super().__init_subclass__(**kwargs)
        name = cls.__dict__.get("name")
        if not (isinstance(name, str) and name.isidentifier() and name.islower()):
            raise TypeError(f"{cls.__name__}.name must be a lower-case identifier, not {name!r}")
        if unknown := (cls.required | cls.optional) - Task.ARGUMENTS:
            raise TypeError(
                f"{cls.__name__} takes {sorted(unknown)}, but a task may take only "
                f"{sorted(Task.ARGUMENTS)}"
            )
        if both := cls.required & cls.optional:
            raise TypeError(f"{cls.__name__} has {sorted(both)} both as required and as optional")
        takes_strength = "strength" in cls.required | cls.optional
        default = cls.default_strength
        if takes_strength and (default is None or not 0 <= default <= 1):
            raise TypeError(f"{cls.__name__} takes a strength: give a default_strength in [0, 1]")
        if not cls.default_guidance_scale >= 0:
            raise TypeError(f"{cls.__name__}.default_guidance_scale must be 0 or more; 1 is off")

    @abstractmethod
    def draw(
        self, n: int, size: tuple[int, int], class_dropout: float, generator: torch.Generator
    ) -> Choice:
        """Draws a training input for n samples, on the generator's device.

        Args:
            n: number of samples, possibly 0.
            size: height and width of the images in pixels.
            class_dropout: probability in [0, 1) that the class token is dropped.
            generator: the only source of randomness.
        """

    @abstractmethod
    def condition(
        self, image: Tensor, mask: Tensor, strength: Tensor | None, noise: Tensor
    ) -> Hint:
        """Builds the conditioning input. Training and sampling both call this.

        Args:
            image: (B, C, H, W) in [-1, 1], the source. A task without a source gets zeros.
            mask: (B, 1, H, W) in {0, 1}, 1 = to be painted.
            strength: (B,) in [0, 1]. A task without a strength ignores it.
            noise: (B, C, H, W) standard normal, for degrading the source. It is independent of
                the noise of the diffusion, which a task never gets.
        """

    def start(self, strength: Tensor | None) -> Tensor | float:
        """The noise level (sigma) where sampling starts, from the source with that much noise.

        Above the highest noise level of the sampler it starts from noise alone.

        Args:
            strength: (B,) in [0, 1], None if the task has none.

        Returns:
            (B,), or one level for all.
        """
        return math.inf


def bernoulli(n: int, probability: float, generator: torch.Generator) -> Tensor:
    """(n,) bool, each true with the given probability."""
    return torch.rand(n, generator=generator, device=generator.device) < probability


# --------------------------------------------------------------------------------------------------
# colorize.py
#
# Colorization: the source's luminance is shown, degraded by the strength.
# --------------------------------------------------------------------------------------------------


LUMA = (0.299, 0.587, 0.114)  # ITU-R BT.601, the weights of PIL's convert("L")


class Colorize(Task):
    name = "colorize"
    required = frozenset({"image"})
    optional = frozenset({"class_label", "strength"})
    default_strength = 0.0

    def draw(
        self, n: int, size: tuple[int, int], class_dropout: float, generator: torch.Generator
    ) -> Choice:
        device = generator.device
        # Half the samples show the grey image as it is, which is what most users ask for.
        strength = torch.rand(n, generator=generator, device=device)
        return Choice(
            mask=torch.ones(n, 1, *size, device=device),
            strength=torch.where(bernoulli(n, 0.5, generator), strength, 0.0),
            drop_class=bernoulli(n, class_dropout, generator),
        )

    def condition(self, image: Tensor, mask: Tensor, strength: Tensor, noise: Tensor) -> Hint:
        # Plain numbers: training would wait until a tensor of them is on the device.
        *rgb, rest = image.split([1, 1, 1, image.shape[1] - 3], dim=1)  # alpha is shown as it is
        grey = sum(weight * part for weight, part in zip(LUMA, rgb, strict=True))
        shown = torch.cat([grey, grey, grey, rest], dim=1)
        return Hint(
            image=degrade(shown, strength, noise),
            mask=torch.ones_like(mask),
            strength=strength,
        )


# --------------------------------------------------------------------------------------------------
# format.py
#
# The images of a model: their size, channels and depth, and how numbers stand for them.
#
# Three ranges occur. The network has [-1, 1]. A dataset stores the numbers of its files. Arrays that
# a user gives and gets are floats in [0, 1], or in `value_range` where the model has one.
# --------------------------------------------------------------------------------------------------


# The key in the configuration of the UNet. Absent: RGB of 8 bits, as in models of earlier versions.
MARK = "_image_format"
MODES = {"L": 1, "RGB": 3, "RGBA": 4}  # channels of the modes of PIL
HIGHEST = {"uint8": 255.0, "uint16": 65535.0}
# What PIL has a mode for.
PIL_MODES = {(mode, "uint8"): mode for mode in MODES}
PIL_MODES |= {("L", "uint16"): "I;16", ("L", "float32"): "F"}


@dataclass(frozen=True)
class ImageFormat:
    """The format of the images of a dataset or a model.

    Attributes:
        height, width: in pixels.
        mode: "L", "RGB", "RGBA", or a number of bands.
        dtype: "uint8", "uint16" or "float32", in which they are stored.
        value_range: the lowest and highest number that is stored. None: that of the integers.
        shown_bands: of several bands, the three that are shown as red, green and blue. None: the
            first ones.
        fit: how a dataset's images of other shapes come to this size: "crop", "pad" or "stretch".
    """

    height: int
    width: int
    mode: str | int = "RGB"
    dtype: str = "uint8"
    value_range: tuple[float, float] | None = None
    shown_bands: tuple[int, ...] | None = None
    fit: str = "crop"

    @classmethod
    def square(cls, side: int) -> "ImageFormat":
        """RGB of 8 bits."""
        return cls(side, side)

    @classmethod
    def of(cls, config: Mapping[str, Any]) -> "ImageFormat":
        """That of a UNet's configuration."""
        size = config["sample_size"]
        height, width = (size, size) if isinstance(size, int) else size
        known = config.get(MARK) or {}  # JSON has lists in place of tuples
        known = {k: tuple(v) if isinstance(v, list) else v for k, v in known.items()}
        return cls(height, width, **known)

    @property
    def mark(self) -> dict[str, Any]:
        """What a UNet's configuration holds besides its size; nothing for RGB of 8 bits."""
        default = asdict(ImageFormat.square(1))
        known = {name: value for name, value in asdict(self).items() if value != default[name]}
        known = {k: v for k, v in known.items() if k not in ("height", "width")}
        return {MARK: known} if known else {}

    @property
    def sample_size(self) -> int | tuple[int, int]:
        """The size as a UNet's configuration has it."""
        return self.height if self.height == self.width else (self.height, self.width)

    @property
    def size(self) -> tuple[int, int]:
        return self.height, self.width

    @property
    def channels(self) -> int:
        return MODES.get(self.mode, self.mode)

    @property
    def input_channels(self) -> int:
        """Of the network: noisy image with the known pixels in it, condition image, mask."""
        return 2 * self.channels + 1

    @property
    def shape(self) -> tuple[int, int, int]:
        return self.channels, self.height, self.width

    @property
    def pil_mode(self) -> str | None:
        """The mode of PIL that holds such images, or None."""
        return PIL_MODES.get((self.mode, self.dtype))

    @property
    def words(self) -> str:
        """Such as 32x32 pixels, of the mode RGB."""
        kind = f"{self.mode} bands" if isinstance(self.mode, int) else f"mode {self.mode}"
        return f"{self.width}x{self.height} pixels, {kind}, {self.dtype}"

    @property
    def stored_range(self) -> tuple[float, float]:
        """The numbers that are stored for black and white."""
        return self.value_range or (0.0, HIGHEST[self.dtype])

    @property
    def array_range(self) -> tuple[float, float]:
        """The numbers of black and white in a user's arrays."""
        return self.value_range or (0.0, 1.0)

    @property
    def stored_middle(self) -> float:
        """What padding is stored as."""
        middle = sum(self.stored_range) / 2
        return middle if self.dtype == "float32" else float(int(middle + 0.5))

    def from_stored(self, images: Tensor) -> Tensor:
        """Stored numbers -> float32 in [-1, 1], of the same shape and on the same device."""
        low, high = self.stored_range
        return self._without_hidden((images.float() - low) / ((high - low) / 2) - 1)

    def to_stored(self, images: Tensor) -> Tensor:
        """Images in [-1, 1] -> numbers to store, clipped and rounded: undoes `from_stored`."""
        low, high = self.stored_range
        numbers = (images.clamp(-1, 1) + 1) * ((high - low) / 2) + low
        rounded = numbers if self.dtype == "float32" else numbers.round()
        return rounded.to(getattr(torch, self.dtype))

    def from_array(self, images: Tensor) -> Tensor:
        """A user's numbers -> float32 in [-1, 1]."""
        low, high = self.array_range
        return self._without_hidden(2 * ((images - low) / (high - low)) - 1)

    def to_array(self, images: Tensor) -> Tensor:
        """Images in about [-1, 1] -> a user's numbers, clipped."""
        low, high = self.array_range
        return (images / 2 + 0.5).clamp(0, 1) * (high - low) + low

    def stored_as_array(self, images: Tensor) -> Tensor:
        """Stored numbers -> a user's, the same ones if there is a `value_range`."""
        return images.float() if self.value_range else images.float() / HIGHEST[self.dtype]

    def array_as_stored(self, images: Tensor) -> Tensor:
        """A user's numbers -> those to store, rounded; exact for what `stored_as_array` gave."""
        numbers = images if self.value_range else images * HIGHEST[self.dtype]
        rounded = numbers if self.dtype == "float32" else numbers.round()
        return rounded.to(getattr(torch, self.dtype))

    def from_pil(self, image: Image.Image) -> Tensor:
        """A PIL image of `pil_mode` -> (1, C, H, W) in a user's numbers."""
        pixels = torch.from_numpy(np.array(image, dtype=self.dtype))
        pixels = pixels[None] if pixels.ndim == 2 else pixels.permute(2, 0, 1)
        return self.stored_as_array(pixels[None])

    def to_pil(self, images: Tensor) -> list[Image.Image]:
        """(B, C, H, W) in a user's numbers -> PIL images; there is a `pil_mode`."""
        pixels = self.array_as_stored(images).permute(0, 2, 3, 1).cpu().numpy()
        return [Image.fromarray(one[..., 0] if one.shape[-1] == 1 else one) for one in pixels]

    def rgb(self, images: Tensor) -> Tensor:
        """Images in [-1, 1] as RGB (B, 3, H, W) in [-1, 1]: clear pixels are white, and of several
        bands three are shown."""
        if self.mode == "RGB":
            return images
        if self.mode == "L":
            return images.expand(-1, 3, -1, -1)
        if self.mode == "RGBA":
            alpha = images[:, 3:] / 2 + 0.5
            return images[:, :3] * alpha + (1 - alpha)
        last = self.mode - 1
        return images[:, list(self.shown_bands or (0, min(1, last), min(2, last)))]

    def stored_as_rgb(self, images: Tensor) -> Tensor:
        """Stored numbers -> RGB (B, 3, H, W) uint8; RGB of 8 bits stays as it is."""
        if (self.mode, self.dtype) == ("RGB", "uint8"):
            return images
        rgb = self.rgb(self.from_stored(images).clamp(-1, 1))
        return ((rgb + 1) * 127.5).round().to(torch.uint8)

    def padding(self, size: Sequence[int]) -> tuple[int, int, int, int]:
        """Pixels at the left, right, top and bottom that centre an image (H, W) in this size."""
        left, top = (self.width - size[1]) // 2, (self.height - size[0]) // 2
        return left, self.width - size[1] - left, top, self.height - size[0] - top

    def check_size(self, height: int, width: int, name: str) -> None:
        """Refuses an image of another size; with the fit "pad" one side may be smaller."""
        inside = 0 < height <= self.height and 0 < width <= self.width
        one_side = height == self.height or width == self.width
        if (height, width) == self.size or (self.fit == "pad" and inside and one_side):
            return
        smaller = ", or less in one of the two" if self.fit == "pad" else ""
        how = f", for a PIL image with {name}.resize(({self.width}, {self.height}))"
        raise ValueError(
            f"{name} is {width}x{height} pixels; this model takes {self.width}x{self.height}"
            f"{smaller}: resize it{how if name.isidentifier() else ''}"
        )

    def _without_hidden(self, images: Tensor) -> Tensor:
        """Black where alpha is 0: files have anything there, which nobody sees."""
        if self.mode != "RGBA":
            return images
        seen = images[:, 3:] > -1
        return torch.cat([torch.where(seen, images[:, :3], -1.0), images[:, 3:]], dim=1)


# --------------------------------------------------------------------------------------------------
# components.py
#
# Checks of the components of a pipeline.
# --------------------------------------------------------------------------------------------------


SCHEDULERS = (EDMDPMSolverMultistepScheduler, EDMEulerScheduler)


def plain_module(unet) -> nn.Module:
    """The module that `torch.compile` wrapped, or the module itself."""
    return getattr(unet, "_orig_mod", unet)


def check_component(name: str, value) -> None:
    """Checks the type and the settings of a component; other names are ignored.

    Raises:
        ValueError: the pipeline can't work with it.
    """
    checks = {"unet": _check_unet, "tokenizer": _check_tokenizer, "scheduler": _check_scheduler}
    if name in checks:
        checks[name](value)


def _check_unet(unet) -> None:
    module = plain_module(unet)
    if not isinstance(module, UNet2DConditionModel):
        hint = ""
        if isinstance(getattr(module, "module", None), UNet2DConditionModel):
            hint = "; give its .module"
        elif hasattr(module, "get_base_model"):
            hint = "; give its .get_base_model(), which keeps the adapters"
        raise ValueError(
            f"unet is {_kind(unet)}; it must be a UNet2DConditionModel, compiled or not{hint}"
        )
    config = module.config
    images = ImageFormat.of(config)
    if (config.in_channels, config.out_channels) != (images.input_channels, images.channels):
        raise ValueError(
            f"unet takes {config.in_channels} channels and gives {config.out_channels}; a unet for "
            f"images of {images.words} takes {images.input_channels} and gives {images.channels}"
        )


def _check_tokenizer(tokenizer) -> None:
    if not isinstance(tokenizer, PreTrainedTokenizerBase):
        raise ValueError(
            f"tokenizer is {_kind(tokenizer)}; it must be the tokenizer that was saved with the "
            "unet, such as PreTrainedTokenizerFast.from_pretrained(folder, subfolder='tokenizer')"
        )


def _check_scheduler(scheduler) -> None:
    if not isinstance(scheduler, SCHEDULERS):
        names = " or ".join(kind.__name__ for kind in SCHEDULERS)
        raise ValueError(
            f"scheduler is {_kind(scheduler)}; it must be {names}, such as "
            "EDMEulerScheduler.from_config(pipe.scheduler.config)"
        )
    config = scheduler.config
    numbers = [config[name] for name in ("sigma_min", "sigma_max", "sigma_data")]
    low, high, data = (
        n if isinstance(n, int | float) and math.isfinite(n) and n > 0 else None for n in numbers
    )
    if None in (low, high, data) or low >= high:
        raise ValueError(
            f"scheduler has sigma_min {numbers[0]}, sigma_max {numbers[1]} and sigma_data "
            f"{numbers[2]}; they must be finite and above 0, sigma_min below sigma_max: compare "
            "scheduler/scheduler_config.json with that of the published model"
        )


def _kind(value) -> str:
    return "None" if value is None else f"of the type {type(value).__name__}"


# --------------------------------------------------------------------------------------------------
# tokens.py
#
# The meaning of the tokens, read from the tokenizer's vocabulary.
#
# Ids are stored in the vocabulary alone. Its words are `<null>`, `<task:NAME>`, `<class:NAME>`,
# `<strength:I>` for the levels I / (L - 1), and `<reserved:I>`: ids that a new task or class can
# take without changing a shape.
# --------------------------------------------------------------------------------------------------


NULL = "<null>"
WORD = re.compile(r"<(task|class|strength|reserved):(.+)>", re.DOTALL)


@dataclass(frozen=True)
class Vocabulary:
    """The ids of a model's words.

    Attributes:
        null: id of the null token; it replaces tokens that are dropped.
        tasks: task name -> id.
        classes: class name -> id, in the order of the class labels.
        strengths: ids of the strength levels, from 0 to 1.
        reserved: ids that are free.
        size: number of ids, V.
    """

    null: int
    tasks: dict[str, int]
    classes: dict[str, int]
    strengths: tuple[int, ...]
    reserved: tuple[int, ...]
    size: int

    @classmethod
    def of(cls, words: Mapping[str, int]) -> "Vocabulary":
        """Reads word -> id, as `tokenizer.get_vocab()` gives it.

        Raises:
            ValueError: the words aren't those of such a vocabulary.
        """
        if sorted(words.values()) != list(range(len(words))) or NULL not in words:
            raise ValueError(
                f"the tokenizer's vocabulary has {len(words)} words; it needs {NULL} and the ids "
                f"0..{len(words) - 1}, each once. Load a tokenizer that was saved with this model."
            )
        kinds = {"task": {}, "class": {}, "strength": {}, "reserved": {}}
        for word, index in sorted(words.items(), key=lambda item: item[1]):
            if word == NULL:
                continue
            match = WORD.fullmatch(word)
            if match is None:
                raise ValueError(f"the tokenizer's vocabulary has the word {word!r}, of no kind")
            kinds[match[1]][match[2]] = index
        levels = kinds["strength"]
        if len(levels) < 2 or set(levels) != {str(i) for i in range(len(levels))}:
            raise ValueError(
                f"the tokenizer's vocabulary has the strength levels {sorted(levels)}; it needs "
                "two or more, numbered from 0"
            )
        return cls(
            null=words[NULL],
            tasks=kinds["task"],
            classes=kinds["class"],
            strengths=tuple(levels[str(i)] for i in range(len(levels))),
            reserved=tuple(kinds["reserved"].values()),
            size=len(words),
        )

    def class_ids(self, labels: Tensor) -> Tensor:
        """Class labels (B,) -> ids (B,). A negative label means no class."""
        table = _table((*self.classes.values(), self.null), labels.device)
        return table[torch.where(labels < 0, len(self.classes), labels)]

    def tokens(self, task: Tensor | int, label: Tensor, strength: Tensor | None) -> Tensor:
        """The three tokens of B samples, as distributions over the vocabulary.

        Args:
            task: (B,) ids, or one id for all.
            label: (B,) class ids, not labels.
            strength: (B,) in [0, 1], NaN or None for null. Two neighbouring levels share it.

        Returns:
            (B, 3, V) float32: task, class, strength; each row sums to 1.
        """
        task = torch.full_like(label, task) if isinstance(task, int) else task
        null = self._one_hot(torch.full_like(label, self.null))
        ids = self._one_hot(torch.stack([task, label], 1))
        if strength is None:
            return torch.cat([ids, null[:, None]], dim=1)
        known = ~strength.isnan()
        position = strength.nan_to_num().clamp(0, 1) * (len(self.strengths) - 1)
        low = position.floor().clamp(max=len(self.strengths) - 2)
        share = (position - low)[:, None]
        levels = _table(self.strengths, label.device)
        low = low.long()
        level = (1 - share) * self._one_hot(levels[low]) + share * self._one_hot(levels[low + 1])
        third = torch.where(known[:, None], level, null)
        return torch.cat([ids, third[:, None]], dim=1)

    def _one_hot(self, ids: Tensor) -> Tensor:
        """(...) ids -> (..., V) float32. torch's one_hot is of integers and waits for the ids."""
        zeros = torch.zeros(*ids.shape, self.size, device=ids.device, dtype=torch.float32)
        return zeros.scatter_(-1, ids[..., None], 1.0)


@lru_cache(maxsize=32)
def _table(ids: tuple[int, ...], device: torch.device) -> Tensor:
    """The ids on a device. Cached: a fresh copy in each step would synchronise with the host."""
    return torch.tensor(ids, device=device)


# --------------------------------------------------------------------------------------------------
# denoiser.py
#
# The denoiser: its conditioning, EDM preconditioning around a stock UNet, and guidance.
#
# Notation of Karras et al. 2022, arXiv:2206.00364:
#     D(x; sigma) = c_skip x + c_out F(c_in x, c_noise).
# The scheduler holds c_skip, c_out, c_in and c_noise, for training too.
# --------------------------------------------------------------------------------------------------


TASK, CLASS, STRENGTH = range(3)  # places in the sequence of tokens


@dataclass(frozen=True)
class Conditioning:
    """The inputs of the denoiser besides the noisy image, for B samples.

    Attributes:
        image: (B, C, H, W) the condition image, in the range of the images; zero where none is.
        mask: (B, 1, H, W) in {0, 1}, 1 = to be painted.
        tokens: (B, 3, V) task, class, strength: a distribution over the vocabulary each.
    """

    image: Tensor
    mask: Tensor
    tokens: Tensor

    def __len__(self) -> int:
        return len(self.image)

    def __getitem__(self, rows) -> "Conditioning":
        return Conditioning(*(getattr(self, field.name)[rows] for field in fields(self)))

    @staticmethod
    def cat(parts: list["Conditioning"]) -> "Conditioning":
        return Conditioning(
            *(torch.cat([getattr(p, f.name) for p in parts]) for f in fields(Conditioning))
        )

    def without(self, place: int, null: int, rows: Tensor | None = None) -> "Conditioning":
        """Sets the token at a place to null, for all samples or for the rows (B,) bool."""
        tokens = self.tokens.clone()
        nothing = torch.zeros_like(tokens[:, place])
        nothing[:, null] = 1
        if rows is not None:
            nothing = torch.where(rows[:, None], nothing, tokens[:, place])
        tokens[:, place] = nothing
        return replace(self, tokens=tokens)

    def without_image(self, null: int, rows: Tensor | None = None) -> "Conditioning":
        """Hides the image inside the mask, and with it the strength."""
        known = self.image * (1 - self.mask)
        if rows is not None:
            known = torch.where(rows[:, None, None, None], known, self.image)
        return replace(self.without(STRENGTH, null, rows), image=known)


def build_conditioning(
    hint: Hint, task: Task, label: Tensor, vocabulary: Vocabulary
) -> Conditioning:
    """A task's conditioning image and tokens, encoded for the UNet.

    Args:
        label: (B,) class labels in 0..K-1, negative for none.
    """
    tokens = vocabulary.tokens(
        vocabulary.tasks[task.name], vocabulary.class_ids(label), hint.strength
    )
    return Conditioning(image=hint.image, mask=hint.mask, tokens=tokens)


def predict(unet, scheduler, noisy: Tensor, sigma: Tensor, conditioning: Conditioning) -> Tensor:
    """The raw output F of the network.

    Args:
        unet: a UNet2DConditionModel with `ImageFormat.input_channels` and one-hot tokens.
        scheduler: an EDM scheduler, which computes the preconditioning.
        noisy: (B, C, H, W) float32, image + sigma noise. Known pixels of it are not used.
        sigma: (B, 1, 1, 1), because (B,) would broadcast along the width in silence.

    Returns:
        (B, C, H, W) float32.
    """
    samples = noisy.shape[0]  # len() would fix it in a graph that is traced
    if sigma.shape != (samples, 1, 1, 1):
        raise ValueError(f"sigma has shape {tuple(sigma.shape)}; it must be ({samples}, 1, 1, 1)")
    # c_in scales the noisy channels alone; the condition image is scaled to unit variance.
    noisy = scheduler.precondition_inputs(noisy, sigma)
    shown = conditioning.image / scheduler.config.sigma_data
    # Known pixels replace the noisy ones, too: short runs learn to use them in the channels of the
    # pixels that they paint, and hardly from other channels.
    noisy = torch.where(conditioning.mask > 0, noisy, shown)
    channels = torch.cat([noisy, shown, conditioning.mask], dim=1).to(unet.dtype)
    tokens = conditioning.tokens.to(unet.dtype)
    timestep = scheduler.precondition_noise(sigma).flatten().to(unet.dtype)  # (B,)
    output = unet(
        channels,
        timestep,
        encoder_hidden_states=tokens,
        class_labels=tokens.flatten(1),
        return_dict=False,
    )[0]
    return output.float()


class Weight(NamedTuple):
    """The weight of an answer, inside an interval of noise levels; elsewhere it is 0.

    Attributes:
        value: a number, or (B, 1, 1, 1) or (B, 1, H, W).
        low, high: both included; numbers, or (B, 1, 1, 1).
    """

    value: float | Tensor
    low: float | Tensor = 0.0
    high: float | Tensor = math.inf

    def at(self, sigma: float | Tensor) -> float | Tensor:
        """The weight at a noise level, or at one of each sample (B, 1, 1, 1)."""
        if not isinstance(self.value, Tensor) and not self.value:
            return 0.0
        slack = 1 + 1e-5  # schedules are rounded: a sigma_max of 80 comes out as 79.99998
        return self.value * ((self.low / slack <= sigma) & (sigma <= self.high * slack))


@dataclass(frozen=True)
class _Sum:
    """Answers of one network to several conditionings, each with weights that are added up."""

    unet: object
    scheduler: object
    answers: tuple[tuple[Conditioning, tuple[Weight, ...]], ...]

    def _plus(self, other: "_Sum") -> tuple[tuple[Conditioning, tuple[Weight, ...]], ...]:
        """The answers of both; one conditioning is evaluated once."""
        merged = {id(one): (one, weights) for one, weights in self.answers}
        for one, weights in other.answers:
            _, before = merged.get(id(one), (None, ()))
            merged[id(one)] = (one, before + weights)
        return tuple(merged.values())

    def __getitem__(self, rows) -> "_Sum":
        """Those samples of all answers and weights."""

        def of(value):
            return value[rows] if isinstance(value, Tensor) else value

        answers = [(c[rows], tuple(Weight(*map(of, w)) for w in ws)) for c, ws in self.answers]
        return replace(self, answers=tuple(answers))

    def _times(self, factor: float | Tensor) -> "_Sum":
        return self._with(lambda weight: weight._replace(value=factor * weight.value))

    def _with(self, change) -> "_Sum":
        answers = ((c, tuple(change(weight) for weight in weights)) for c, weights in self.answers)
        return replace(self, answers=tuple(answers))


class Direction(_Sum):
    """A difference of two denoisers, by which a third one is guided; it may be scaled."""

    def __rmul__(self, scale: float | Tensor) -> "Direction":
        """Scaled by a number, or by (B, 1, 1, 1) or (B, 1, H, W)."""
        return self._times(scale)

    def within(self, low: float | Tensor, high: float | Tensor) -> "Direction":
        """Zero outside of the noise levels low to high. Kynkaanniemi et al. 2024, 2404.07724."""
        return self._with(lambda weight: weight._replace(low=low, high=high))


class Denoiser(_Sum):
    """D(x; sigma) of the network and a conditioning, or of a guided composition of several.

    `a + scale * (b - c)` guides a denoiser by the difference of two. All conditionings of a
    composition are evaluated in one batch; one whose weight is 0 is not evaluated.
    """

    @classmethod
    def of(cls, unet, scheduler, conditioning: Conditioning) -> "Denoiser":
        """The denoiser of one conditioning; for unet and scheduler see `predict`."""
        return cls(unet, scheduler, ((conditioning, (Weight(1.0),)),))

    def __sub__(self, other: "Denoiser") -> Direction:
        return Direction(self.unet, self.scheduler, self._plus(other._times(-1.0)))

    def __add__(self, direction: Direction) -> "Denoiser":
        return replace(self, answers=self._plus(direction))

    def __call__(self, x: Tensor, sigma: float | Tensor) -> Tensor:
        """D, (B, C, H, W) float32.

        Args:
            x: (B, C, H, W) float32, image + sigma noise.
            sigma: one noise level for all samples, or (B, 1, 1, 1).
        """
        levels = _levels(sigma, x)
        return self.scheduler.precondition_outputs(x, self.output(x, sigma), levels)

    def output(self, x: Tensor, sigma: float | Tensor) -> Tensor:
        """F of that D, as diffusers' schedulers take it: the weights sum to 1, so F combines alike.

        With noise levels of each sample, each conditioning is evaluated for those samples alone
        where its weight is not 0; the host then waits for the weights.
        """
        levels, parts = _levels(sigma, x), []
        for conditioning, weights in self.answers:
            weight = sum(each.at(sigma) for each in weights)
            if not isinstance(weight, Tensor):
                if weight:
                    parts.append((slice(None), weight, conditioning))
            elif not isinstance(sigma, Tensor) or torch.compiler.is_exporting():
                parts.append((slice(None), weight, conditioning))
            elif len(rows := weight.expand(len(x), -1, -1, -1).flatten(1).any(1).nonzero()[:, 0]):
                parts.append((rows, weight[rows], conditioning[rows]))
        F = predict(
            self.unet,
            self.scheduler,
            torch.cat([x[rows] for rows, _, _ in parts]),
            torch.cat([levels[rows] for rows, _, _ in parts]),
            Conditioning.cat([conditioning for _, _, conditioning in parts]),
        ).split([conditioning.mask.shape[0] for _, _, conditioning in parts])
        if len(parts) == 1 and isinstance(weight := parts[0][1], float) and weight == 1:
            return F[0]
        total = torch.zeros_like(x)
        for (rows, weight, _), part in zip(parts, F, strict=True):
            if isinstance(rows, slice):
                total = total + weight * part
            else:
                total = total.index_add(0, rows, weight * part)
        return total


@dataclass(frozen=True)
class Guidance:
    """What guidance composes: the denoisers of image and class, of the image alone, of neither."""

    both: Denoiser
    image: Denoiser
    neither: Denoiser

    @classmethod
    def of(cls, unet, scheduler, conditioning: Conditioning, null: int) -> "Guidance":
        """That of a conditioning; `null` is the id of the null token."""
        image = conditioning.without(CLASS, null)
        each = conditioning, image, image.without_image(null)
        return cls(*(Denoiser.of(unet, scheduler, one) for one in each))

    def __getitem__(self, rows) -> "Guidance":
        return Guidance(*(getattr(self, field.name)[rows] for field in fields(self)))

    def denoiser(
        self,
        scale: float | Tensor,
        image_scale: float | Tensor = 1.0,
        interval: tuple[float | Tensor, float | Tensor] = (0.0, math.inf),
    ) -> Denoiser:
        """D(0,0) + s_I [D(I,0) - D(0,0)] + s_C [D(I,c) - D(I,0)] in an interval, else D(I,c).

        A scale of 1 is off: one evaluation of both, two where s_I is 1, else three.

        Args:
            scale: s_C, the class's. image_scale: s_I, the condition image's.
            interval: the lowest and the highest noise level.

        Source: Brooks et al. 2023, InstructPix2Pix, eq. 3.
        """
        by_class = (scale - 1) * (self.both - self.image)
        by_image = (image_scale - 1) * (self.image - self.neither)
        return self.both + by_class.within(*interval) + by_image.within(*interval)


def _levels(sigma: float | Tensor, x: Tensor) -> Tensor:
    """(B, 1, 1, 1)."""
    if isinstance(sigma, Tensor):
        return sigma
    return torch.full((x.shape[0], 1, 1, 1), sigma, device=x.device, dtype=torch.float32)


# --------------------------------------------------------------------------------------------------
# masks.py
#
# The kinds of masks that inpainting learns: (B, 1, H, W) in {0, 1}, 1 = to be painted.
#
# Every kind is drawn for the whole batch at once, on the generator's device, without a loop over
# samples and without waiting for the device.
# --------------------------------------------------------------------------------------------------


Size = tuple[int, int]  # height and width in pixels


def _uniform(shape: tuple[int, ...], low: float, high: float, generator: torch.Generator) -> Tensor:
    return low + (high - low) * torch.rand(shape, generator=generator, device=generator.device)


def _pixels(size: int, device: torch.device) -> Tensor:
    """(size,) centres of the pixels as shares of the side, in (0, 1)."""
    return (torch.arange(size, device=device) + 0.5) / size


def _box(top: Tensor, bottom: Tensor, left: Tensor, right: Tensor, size: Size) -> Tensor:
    """(..., H, W) bool from borders (...) in shares of the sides."""
    y, x = (_pixels(side, top.device) for side in size)
    rows = (y >= top[..., None]) & (y < bottom[..., None])
    columns = (x >= left[..., None]) & (x < right[..., None])
    return rows[..., :, None] & columns[..., None, :]


def center(n: int, size: Size, generator: torch.Generator) -> Tensor:
    """A box in the middle, half as wide as the image: the benchmark of the literature."""
    low = torch.full((n,), 0.25, device=generator.device)
    high = torch.full((n,), 0.75, device=generator.device)
    return _box(low, high, low, high, size)[:, None]


def boxes(n: int, size: Size, generator: torch.Generator) -> Tensor:
    """One to three boxes, each side between a fifth and three fifths of the image's."""
    sides = _uniform((n, 3, 2), 0.2, 0.6, generator)
    corner = _uniform((n, 3, 2), 0.0, 1.0, generator) * (1 - sides)
    end = corner + sides
    drawn = _box(corner[..., 0], end[..., 0], corner[..., 1], end[..., 1], size)  # (n, 3, H, W)
    count = torch.randint(1, 4, (n, 1), generator=generator, device=generator.device)
    used = torch.arange(3, device=generator.device) < count
    return (drawn & used[..., None, None]).any(dim=1, keepdim=True)


def strokes(n: int, size: Size, generator: torch.Generator) -> Tensor:
    """Free-form: a thick brush dragged along a random walk of six segments."""
    start = _uniform((n, 1, 2), 0.1, 0.9, generator)
    step = _uniform((n, 6, 2), -0.45, 0.45, generator)
    # Reflect the walk at the borders, so that the brush stays on the image.
    path = torch.cat([start, start + step.cumsum(dim=1)], dim=1)  # (n, 7, 2)
    path = 1 - (path.remainder(2) - 1).abs()
    a, b = path[:, :-1, None, None], path[:, 1:, None, None]  # (n, 6, 1, 1, 2)
    sides = (_pixels(side, generator.device) for side in size)
    point = torch.stack(torch.meshgrid(*sides, indexing="ij"), dim=-1)  # (H, W, 2)
    along = ((point - a) * (b - a)).sum(-1) / (b - a).square().sum(-1).clamp_min(1e-8)
    nearest = a + along.clamp(0, 1)[..., None] * (b - a)
    distance = (point - nearest).square().sum(-1).amin(dim=1)  # (n, H, W)
    radius = _uniform((n, 1, 1), 0.05, 0.12, generator)
    return (distance < radius.square())[:, None]


def half(n: int, size: Size, generator: torch.Generator) -> Tensor:
    """The left, right, upper or lower half."""
    y, x = (_pixels(side, generator.device) < 0.5 for side in size)
    upper, left = y[:, None].expand(size), x.expand(size)
    sides = torch.stack([upper, ~upper, left, ~left])
    return sides[torch.randint(4, (n,), generator=generator, device=generator.device)][:, None]


def border(n: int, size: Size, generator: torch.Generator) -> Tensor:
    """Everything around a kept box in the middle: outpainting."""
    margin = _uniform((n,), 0.15, 0.35, generator)
    return ~_box(margin, 1 - margin, margin, 1 - margin, size)[:, None]


def pixels(n: int, size: Size, generator: torch.Generator) -> Tensor:
    """Each pixel on its own, half to nineteen twentieths of them missing."""
    share = _uniform((n, 1, 1, 1), 0.5, 0.95, generator)
    return _uniform((n, 1, *size), 0.0, 1.0, generator) < share


MASKS: dict[str, Callable[[int, Size, torch.Generator], Tensor]] = {
    "center": center,
    "boxes": boxes,
    "strokes": strokes,
    "half": half,
    "border": border,
    "pixels": pixels,
}


def draw_masks(n: int, size: Size, generator: torch.Generator, kind: str | None = None) -> Tensor:
    """(n, 1, H, W) float in {0, 1}, 1 = to be painted; never empty, never everything.

    Args:
        kind: a key of `MASKS`, or None for a random kind a sample.
    """
    if kind is not None and kind not in MASKS:
        raise ValueError(f"kind is {kind!r}; it must be one of {', '.join(MASKS)}")
    kinds = list(MASKS) if kind is None else [kind]
    drawn = torch.stack([MASKS[name](n, size, generator) for name in kinds])
    which = torch.randint(len(kinds), (n,), generator=generator, device=generator.device)
    mask = drawn[which, torch.arange(n, device=generator.device)].float()
    # A mask without a hole has no loss, and one without a known pixel is generation.
    share = mask.mean(dim=(1, 2, 3), keepdim=True)
    return torch.where((share > 0) & (share < 1), mask, center(n, size, generator).float())


# --------------------------------------------------------------------------------------------------
# edit.py
#
# Class-guided editing: a source and a class go in, the source turned into that class comes out.
#
# There are no edited pairs to learn from. The first stage of training shows a degraded image with its
# own class (`Edit`); sampling gives another class, and starts from the source with noise. The second
# stage learns from whole edits that the first one made (`EditAtOnce`): one evaluation is an edit.
# --------------------------------------------------------------------------------------------------


# Noise level where sampling starts, over that of the degradation. With less noise fewer edits reach
# their class, with more noise less of the source is kept.
START = 3.0
STRONGEST = 0.95  # of the edits that are learned whole
REGION_SHARE = 0.25  # share of the samples that edit only a region; the others edit everything


class Edit(Task):
    name = "edit"
    required = frozenset({"image", "class_label"})
    optional = frozenset({"mask_image", "strength", "image_guidance_scale"})
    default_strength = 0.8
    default_steps = 12
    default_guidance_scale = 4.0

    def draw(
        self, n: int, size: tuple[int, int], class_dropout: float, generator: torch.Generator
    ) -> Choice:
        device = generator.device
        region = torch.rand(n, generator=generator, device=device) < REGION_SHARE
        mask = draw_masks(n, size, generator)
        # Guidance needs F(I, 0) and F(0, 0). Class and image are each dropped with the probability
        # class_dropout: half of the time alone, half of the time together.
        u = torch.rand(n, generator=generator, device=device)
        return Choice(
            mask=torch.where(region[:, None, None, None], mask, torch.ones_like(mask)),
            strength=torch.rand(n, generator=generator, device=device),
            drop_class=u < class_dropout,
            drop_image=(u >= 0.5 * class_dropout) & (u < 1.5 * class_dropout),
        )

    def condition(self, image: Tensor, mask: Tensor, strength: Tensor, noise: Tensor) -> Hint:
        # Strength 0 degrades nothing: nothing is painted, and the source comes out unchanged.
        mask = mask * (strength > 0)[:, None, None, None]
        shown = torch.where(mask > 0, degrade(image, strength, noise), image)
        return Hint(image=shown, mask=mask, strength=strength)

    def start(self, strength: Tensor) -> Tensor:
        return START * noise_level(strength)


class EditAtOnce(Edit):
    """The edit of a model that was taught whole edits: the source is shown as it is.

    It is answered in one evaluation from noise alone. At strength 1, where nothing of the source
    is left in the teacher's edits, they are random, and their mean is a blur: so the strength acts
    as `STRONGEST` from there on.
    """

    name = "edit"
    few_steps = 1
    at_once = True

    def condition(self, image: Tensor, mask: Tensor, strength: Tensor, noise: Tensor) -> Hint:
        mask = mask * (strength > 0)[:, None, None, None]
        return Hint(image=image, mask=mask, strength=strength.clamp(max=STRONGEST))

    def start(self, strength: Tensor) -> float:
        return math.inf


# --------------------------------------------------------------------------------------------------
# generate.py
#
# Generation without a source, with a class or without.
# --------------------------------------------------------------------------------------------------


class Generate(Task):
    name = "generate"
    optional = frozenset({"class_label"})
    draws_class = True  # p(x) is the sum over the classes of p(c) p(x | c)
    default_guidance_scale = 2.0
    # At higher noise levels guidance costs diversity. Kynkäänniemi et al. 2024, arXiv:2404.07724.
    default_guidance_interval = (0.28, 2.9)

    def draw(
        self, n: int, size: tuple[int, int], class_dropout: float, generator: torch.Generator
    ) -> Choice:
        return Choice(
            mask=torch.ones(n, 1, *size, device=generator.device),
            drop_class=bernoulli(n, class_dropout, generator),
        )

    def condition(
        self, image: Tensor, mask: Tensor, strength: Tensor | None, noise: Tensor
    ) -> Hint:
        return Hint(image=torch.zeros_like(image), mask=torch.ones_like(mask))


# --------------------------------------------------------------------------------------------------
# inpaint.py
#
# Inpainting: the known pixels are shown, the others are painted.
# --------------------------------------------------------------------------------------------------


class Inpaint(Task):
    name = "inpaint"
    required = frozenset({"image", "mask_image"})
    optional = frozenset({"class_label"})
    holes_from_data = True
    # What is shown leaves little to decide: two steps complete the holes of photographs better than
    # four, and those of the shapes nearly as well (docs/mtl-cifar10-fewstep.md).
    few_steps = 2

    def draw(
        self, n: int, size: tuple[int, int], class_dropout: float, generator: torch.Generator
    ) -> Choice:
        return Choice(
            mask=draw_masks(n, size, generator),
            drop_class=bernoulli(n, class_dropout, generator),
        )

    def condition(
        self, image: Tensor, mask: Tensor, strength: Tensor | None, noise: Tensor
    ) -> Hint:
        return Hint(image=image * (1 - mask), mask=mask)


# --------------------------------------------------------------------------------------------------
# rgb.py
#
# Any image that Pillow opens -> RGB of 8 bits as a model means it: upright, in sRGB, opaque.
# --------------------------------------------------------------------------------------------------


_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_MODES = {"RGB": "RGB", "GRAY": "L", "CMYK": "CMYK"}  # colour space of a profile -> Pillow's mode


def read_rgb(image: Image.Image, alpha: bool = False) -> Image.Image:
    """The image as RGB of 8 bits, of the same pixels where it is that already.

    Palettes, CMYK and the like are converted. Grey of 16 bits keeps its range: 65,535 becomes 255.
    Colours with an embedded profile are converted to sRGB; a profile that can't be read, or that is
    of another kind of pixels, is left out, as browsers do. Transparency is composited over white.
    EXIF's orientation is applied. Of several frames the current one is read.

    Args:
        alpha: give RGBA, and leave transparency as it is.

    Raises:
        ValueError: the pixels are floating point numbers, or integers outside 0 to 65,535.
        OSError: the file of an image that is not loaded yet is damaged.
    """
    turn = _turn(image)
    profile = image.info.get("icc_profile")
    if image.mode.startswith("I"):
        image = _upper_8_bits(image)
    if image.mode == "F":
        raise ValueError(
            "its pixels are floating point numbers, whose range is not known; save it as integers"
        )
    rgb = _srgb(image, profile)
    if alpha:
        rgb.putalpha(image.convert("RGBA").getchannel("A"))
    elif image.has_transparency_data:
        rgb.putalpha(image.convert("RGBA").getchannel("A"))
        white = Image.new("RGBA", image.size, "white")
        rgb = Image.alpha_composite(white, rgb).convert("RGB")
    return rgb if turn is None else rgb.transpose(turn)


def is_transparent(image: Image.Image) -> bool:
    """Whether a pixel is not opaque."""
    if image.mode.startswith("I"):  # has no alpha, but may have a colour that is transparent
        return np.isin(image.info.get("transparency", -1), np.asarray(image)).item()
    return image.has_transparency_data and image.convert("RGBA").getextrema()[3][0] < 255


def _turn(image: Image.Image) -> Image.Transpose | None:
    """The turn that EXIF's orientation asks for, or None. Other tags may be damaged."""
    try:
        return _TURNS.get(image.getexif().get(ExifTags.Base.Orientation))
    except Exception:  # no orientation can be read
        return None


def _upper_8_bits(image: Image.Image) -> Image.Image:
    """Grey of 16 bits as 8 bits, white where it is transparent: `convert` would clip it at 255."""
    grey = np.asarray(image).astype(np.int64)
    if grey.min() < 0 or grey.max() > 65535:
        raise ValueError(f"it has values from {grey.min()} to {grey.max()}, not 0 to 65535")
    clear = image.info.get("transparency")
    if isinstance(clear, int):
        grey = np.where(grey == clear, 65535, grey)
    return Image.fromarray((grey >> 8).astype(np.uint8))


def _srgb(image: Image.Image, profile: bytes | None) -> Image.Image:
    """The colours of an image of 8 bits, without its transparency."""
    if image.mode == "LAB":
        spaces = ImageCms.createProfile("LAB"), ImageCms.createProfile("sRGB")
        return ImageCms.profileToProfile(image, *spaces, outputMode="RGB")
    # By way of RGBA, as Pillow warns of palettes with transparency where it would be lost.
    rgb = (image.convert("RGBA") if image.mode == "P" else image).convert("RGB")
    if not profile:
        return rgb
    try:
        transform, mode = _transform(profile)
    except (ImageCms.PyCMSError, OSError, KeyError):
        return rgb
    if mode != "RGB" and image.mode not in (mode, mode + "A"):
        return rgb
    converted = ImageCms.applyTransform(rgb if mode == "RGB" else image.convert(mode), transform)
    difference = np.asarray(converted, np.int16) - np.asarray(rgb, np.int16)
    # The profile of sRGB itself: its conversion may round, so it is not applied.
    return rgb if np.abs(difference).max() <= 2 else converted


@lru_cache(16)
def _transform(profile: bytes) -> tuple[ImageCms.ImageCmsTransform, str]:
    """The transform to sRGB, and the mode of the pixels that it takes."""
    source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
    mode = _MODES[source.profile.xcolor_space.strip()]
    return ImageCms.buildTransform(source, ImageCms.createProfile("sRGB"), mode, "RGB"), mode


# --------------------------------------------------------------------------------------------------
# inputs.py
#
# Reads the arguments of the pipeline as tensors; errors name what came and what to do.
# --------------------------------------------------------------------------------------------------


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


# --------------------------------------------------------------------------------------------------
# parts.py
#
# What a saved model is made of, and whether its parts belong together.
# --------------------------------------------------------------------------------------------------


INDEX = "model_index.json"
WORDS = "_vocabulary"  # in unet/config.json: the words the weights were trained with
MODEL_ID = "_model_id"  # in the index and the configurations: the parts of one model have the same
AGAIN = "download or save the model again"
SHARD = re.compile(r"-\d{5}-of-\d{5}")  # in the name of a part of the weights
FUSED = re.compile(r"\.to_q?kv\.(weight|bias)$")  # copies that fuse_qkv_projections() adds
FINITE_DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


def replaced_by(names: Sequence[str], index: Mapping, model_id: str | None) -> list[str]:
    """Patterns of the files of a folder or a repository that a model replaces.

    Args:
        names: the files of the new model, with the weights of one variant.
        index: model_index.json that is there; empty if there is none.
        model_id: that of the new model. Other variants of the same model stay.
    """
    weights, code = "unet/diffusion_pytorch_model", f"pipeline_{'[0-9a-f]' * 8}.py"
    stem = next(Path(name).stem for name in names if name.endswith(".safetensors"))
    variant = SHARD.sub("", stem).partition(".")[2]
    there = index.get(MODEL_ID)
    if there != model_id and (there or not variant):  # of an older index the model is not known
        return [code, f"{weights}*"]
    if variant:
        ends = (f".{variant}.*", f".{variant}-*", f".*.index.{variant}.json")
    else:
        ends = ("-*", ".safetensors", ".bin", ".safetensors.index.json", ".bin.index.json")
    return [code, *(weights + end for end in ends)]


def id_of(component) -> str | None:
    """What says which model a UNet or a scheduler is of; None if it was saved before there was."""
    return plain_module(component).config.get(MODEL_ID)


def stamp(unet, scheduler, model_id: str) -> None:
    """Notes that both are of a model."""
    for part in (plain_module(unet), scheduler):
        part.register_to_config(**{MODEL_ID: model_id})


def digest_of(unet: nn.Module) -> str:
    """12 hex digits of the sha256 of the weights: the id of a model that has none yet."""
    digest = hashlib.sha256()
    for name, tensor in sorted(unet.state_dict().items()):
        digest.update(name.encode())
        if type(tensor) in (Tensor, nn.Parameter):
            plain = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
            digest.update(plain.numpy())
    return digest.hexdigest()[:12]


def read_json(file: Path) -> dict:
    return json.loads(file.read_text(encoding="utf-8"))


def check_loaded(pipeline: str, unet, tokenizer) -> None:
    """Checks the UNet and the tokenizer of a pipeline that was loaded.

    diffusers only warns of a tensor that is missing, and initializes it at random.

    Args:
        pipeline: folder or name on the Hub, as it was given for loading.
        unet: loaded now, or given by the user; only the files that were loaded now are checked.

    Raises:
        ValueError: a tensor is missing, unexpected, of another shape or not finite; the weights
            aren't safetensors; or they were trained with another vocabulary.
    """
    module = plain_module(unet)
    folder = Path(module.config.get("_name_or_path") or "unet")
    cache = "models--" + str(pipeline).replace("/", "--")  # where the Hub's client keeps it
    if folder.name == "unet" and (folder.parent == Path(pipeline) or cache in folder.parts):
        check_files(folder)
        check_ids(folder.parent)
    check_values(module.state_dict(), f"{folder}: ", f" after loading; {AGAIN}")
    trained, words = module.config.get(WORDS), tokenizer.get_vocab()
    if trained is not None and trained != words:
        moved = sorted(w for w in {*trained, *words} if trained.get(w) != words.get(w))
        raise ValueError(
            f"{folder.with_name('tokenizer') / 'tokenizer.json'} is of another model than "
            f"{folder}: they differ in the ids of {', '.join(moved[:8])}; {AGAIN}"
        )


def check_values(state: Mapping[str, Tensor], where: str, advice: str) -> None:
    """Refuses tensors without values, and plain ones that are not finite."""
    for name, tensor in state.items():
        if tensor.is_meta:
            raise ValueError(f"{where}{name} has no value{advice}")
        is_plain = type(tensor) in (Tensor, nn.Parameter) and tensor.dtype in FINITE_DTYPES
        if is_plain and not tensor.isfinite().all():
            raise ValueError(f"{where}{name} has NaN or infinite values{advice}")


def check_ids(folder: Path) -> None:
    """Refuses a folder with parts of two models. The scheduler may be one without an id.

    Raises:
        ValueError: it names the files.
    """
    unet, scheduler, index = (
        read_json(folder / name).get(MODEL_ID) if (folder / name).is_file() else None
        for name in ("unet/config.json", "scheduler/scheduler_config.json", INDEX)
    )
    other = INDEX if index != unet else "scheduler" if scheduler not in (unet, None) else None
    if other:
        raise ValueError(
            f"{folder / 'unet'} is of another model than {folder / other}: their {MODEL_ID} is "
            f"{unet} and {index if other == INDEX else scheduler}; {AGAIN}"
        )


def check_variant(folder: Path, variant: str | None) -> None:
    """Refuses a UNet's folder that has weights of other variants only.

    Raises:
        ValueError: it names those.
    """
    stems = {SHARD.sub("", file.stem) for file in folder.glob("*.safetensors")}
    variants = sorted(stem.partition(".")[2] for stem in stems)
    if variants and (variant or "") not in variants:
        asked = f"of the variant {variant!r}" if variant else "without a variant"
        choice = f"variant={variants[0]!r}" if variants[0] else "no variant"
        raise ValueError(f"{folder} has no weights {asked}; load it with {choice}")


def check_files(folder: Path) -> None:
    """Compares the files of weights in a UNet's folder with its configuration.

    Raises:
        ValueError: it names the file and the tensor.
    """
    found: dict[Path, dict[str, list[int]]] = {}
    for file in sorted(folder.glob("*.safetensors")):
        whole = file.with_name(SHARD.sub("", file.name))  # the parts of a file count as one
        if whole != file and whole.exists():
            raise ValueError(f"{whole} and {file.name} are of two models; delete the older one")
        found.setdefault(whole, {}).update(_shapes_in(file))
    if not found:
        others = sorted(file.name for file in folder.glob("*.bin"))
        raise ValueError(
            f"{folder} has no weights as safetensors, only {', '.join(others) or 'other files'}; "
            "save them again with `save_pretrained`"
        )
    expected = _shapes_of(read_json(folder / "config.json"))
    for file, shapes in found.items():
        _compare(str(file), shapes, expected, AGAIN)


def plain_unet(unet) -> UNet2DConditionModel:
    """The UNet as its configuration describes it, for saving; its tensors are shared.

    It differs from the one given if that is compiled or has fused projections.

    Raises:
        ValueError: it has an adapter, or was changed in a way that its files couldn't describe.
    """
    module = plain_module(unet)
    if adapters := getattr(module, "peft_config", None):
        raise ValueError(
            f"unet has the adapters {', '.join(adapters)}, which save_pretrained can't save: save "
            "them with pipe.unet.save_lora_adapter(folder), or merge them into the weights with "
            "pipe.unet.fuse_lora() and pipe.unet.unload_lora()"
        )
    state, expected = module.state_dict(), _shapes_of(module.config)
    if any(".base_layer." in name for name in state):
        raise ValueError(
            "unet has the layers of an adapter that was deleted: call pipe.unet.unload_lora() too"
        )
    kept = {name: tensor for name, tensor in state.items() if not FUSED.search(name)}
    advice = "save the pipeline before its unet is changed"
    _compare("unet", {name: list(t.shape) for name, t in kept.items()}, expected, advice)
    check_values(kept, "unet: ", "; it is not saved")
    if len(kept) == len(state):
        return module
    with torch.device("meta"):
        plain = UNet2DConditionModel.from_config(module.config)
    plain.load_state_dict(kept, assign=True)
    return plain


def _shapes_of(config: Mapping) -> dict[str, list[int]]:
    """Tensor -> shape of a UNet with this configuration."""
    with torch.device("meta"):
        state = UNet2DConditionModel.from_config(dict(config)).state_dict()
    return {name: list(tensor.shape) for name, tensor in state.items()}


def _shapes_in(file: Path) -> dict[str, list[int]]:
    """Tensor -> shape of a safetensors file."""
    try:
        with safe_open(file, "pt") as tensors:
            return {name: tensors.get_slice(name).get_shape() for name in tensors.keys()}  # noqa: SIM118
    except SafetensorError as error:
        raise ValueError(f"{file} is not a whole safetensors file ({error}); {AGAIN}") from error


def _compare(where: str, found: Mapping, expected: Mapping, advice: str) -> None:
    missing, unexpected = sorted(expected.keys() - found.keys()), sorted(found.keys() - expected)
    for kind, names in (("lacks", missing), ("has the unexpected", unexpected)):
        if names:
            more = f" and {len(names) - 4} more" if len(names) > 4 else ""
            raise ValueError(f"{where} {kind} {', '.join(names[:4])}{more}; {advice}")
    for name, shape in expected.items():
        if found[name] != shape:
            raise ValueError(
                f"{where} has {name} of shape {found[name]}; the configuration says {shape}; "
                f"{advice}"
            )


# --------------------------------------------------------------------------------------------------
# source.py
#
# The text of this file, for saving the model again.
# --------------------------------------------------------------------------------------------------


def _own_text() -> str:
    """Reads this file, which another load may be copying at this moment, up to its last line."""
    for _ in range(100):
        text = Path(__file__).read_text(encoding="utf-8")
        if text.endswith("# The end.\n"):
            break
        time.sleep(0.01)
    return text


SOURCE = _own_text()


def source() -> str:
    """The text of this file."""
    return SOURCE


# --------------------------------------------------------------------------------------------------
# loading.py
#
# Saves a pipeline as a folder that loads without this package.
# --------------------------------------------------------------------------------------------------


TOKENIZER_CLASS = "PreTrainedTokenizerFast"
# Local paths and options that the libraries note in a configuration when they load it.
LOADING_TRACES = ("_name_or_path", "is_local", "local_files_only")
CARD = "README.md"
SAVING = ".saving-"  # prefix of a folder in the target where a model is written first


class SelfContained:
    """A pipeline whose folders and repositories load where its package is not installed.

    It goes before `DiffusionPipeline` among the bases of the pipeline's class.
    """

    @classmethod
    def module_name(cls) -> str:
        """The name of the file with the code. A digest keeps those of two versions apart."""
        return f"pipeline_{hashlib.sha256(source().encode()).hexdigest()[:8]}"

    @classmethod
    def code_files(cls) -> dict[str, str]:
        """File name -> text of the code in an exported folder.

        All code is in the first file. pipeline.py is where diffusers looks for the class that
        `custom_pipeline="user/model"` asks for.
        """
        module = cls.module_name()
        entry = (
            f'"""The code is in {module}.py."""\n\nfrom .{module} import {cls.__name__}  # noqa\n'
        )
        return {f"{module}.py": source(), "pipeline.py": entry}

    def __setattr__(self, name: str, value):
        super().__setattr__(name, value)
        if name in ("unet", "scheduler"):
            parts = (self.__dict__.get("unet"), self.__dict__.get("scheduler"))
            ids = [id_of(part) for part in parts if part is not None]
            if len(ids) == 2 and None not in ids and ids[0] != ids[1]:
                warnings.warn(
                    f"unet is of the model {ids[0]} and scheduler of {ids[1]}: its noise levels "
                    "may not be those that the unet was trained with",
                    stacklevel=3,
                )

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path, **kwargs):
        """As in diffusers, with an error that names the file where diffusers' own does not."""
        try:
            return super().from_pretrained(pretrained_model_name_or_path, **kwargs)
        except (ValueError, RuntimeError, OSError):
            folder = Path(pretrained_model_name_or_path, "unet")
            if folder.is_dir() and "unet" not in kwargs:
                check_variant(folder, kwargs.get("variant"))
                check_files(folder)
            raise

    @classmethod
    def from_pipe(cls, pipeline, **kwargs):
        """As in diffusers, but the components, which both share, keep their type."""
        if not {"torch_dtype", "dtype"} & kwargs.keys():
            kwargs["torch_dtype"] = pipeline.dtype
        return super().from_pipe(pipeline, **kwargs)

    def to(self, *args, **kwargs):
        """As in diffusers.

        Raises:
            ValueError: there is no such device, or it is "meta", which would drop the weights.
        """
        for value in (*args, *kwargs.values()):
            if isinstance(value, str | torch.device):
                check_device(value)
        return super().to(*args, **kwargs)

    def save_pretrained(
        self,
        save_directory,
        safe_serialization: bool = True,
        variant: str | None = None,
        max_shard_size: int | str | None = None,
        push_to_hub: bool = False,
        **kwargs,
    ):
        """As in diffusers, in safetensors only. The files are read again and compared.

        A model that is there is replaced as a whole, once this one is written; of the same model
        other variants stay. Files that belong to no model stay too.

        Raises:
            ValueError: safe_serialization is False, or a component can't be saved so that it loads.
            OSError: a full disk, for example; what is there is unchanged.
        """
        if not safe_serialization:
            raise ValueError(
                "safe_serialization is False; weights are saved as safetensors only, because a "
                "pickle can run code where it is loaded"
            )
        target = Path(save_directory)
        if target.parts[:1] and target.parts[0].startswith("~"):
            raise ValueError(
                f"save_directory is {str(target)!r}; Python does not expand ~: give "
                "Path(save_directory).expanduser()"
            )
        options = {"variant": variant, "max_shard_size": max_shard_size, **kwargs}
        if (unet := plain_unet(self.unet)) is not self.unet:
            plain = type(self)(unet, self.tokenizer, self.scheduler)
            return plain.save_pretrained(target, True, push_to_hub=push_to_hub, **options)
        stamp(unet, self.scheduler, id_of(unet) or digest_of(unet))
        if push_to_hub:
            options.setdefault("repo_id", target.name)
        target.mkdir(parents=True, exist_ok=True)
        with TemporaryDirectory(prefix=SAVING, dir=target) as folder:
            super().save_pretrained(folder, True, push_to_hub=push_to_hub, **options)
            self._move(Path(folder), target)

    def save_config(self, save_directory, push_to_hub: bool = False, **kwargs):
        """Writes model_index.json and the source files; `save_pretrained` calls it last."""
        folder = Path(save_directory)
        folder.mkdir(parents=True, exist_ok=True)
        for name, text in self.code_files().items():
            (folder / name).write_text(text, encoding="utf-8")
        changes = {
            # transformers 5 writes a class name that 4.x doesn't know.
            "tokenizer": {"tokenizer_class": TOKENIZER_CLASS},
            "unet": {WORDS: self.tokenizer.get_vocab()},
        }
        for name in self.components:
            for file in (folder / name).glob("*config.json"):
                text = tidy(file.read_text(encoding="utf-8"), changes.get(name, {}))
                file.write_text(text, encoding="utf-8")
                for weights in file.parent.glob("*.safetensors"):  # safetensors writes them 0600
                    weights.chmod(file.stat().st_mode)
        # transformers 4 repeats the configuration here, differently after a loading.
        (folder / "tokenizer" / "special_tokens_map.json").unlink(missing_ok=True)
        check_files(folder / "unet")  # before the index and an upload, which make it count
        super().save_config(save_directory, push_to_hub=push_to_hub, **kwargs)

    def _upload_folder(
        self,
        working_dir,
        repo_id,
        token=None,
        commit_message=None,
        create_pr=False,
        subfolder=None,
    ):
        """Uploads the model in one commit, and deletes what it replaces.

        diffusers has written a card: that of the repository, with its own tags. One that lies
        where the model is saved goes before it.
        """
        folder = Path(working_dir)
        names = [path.relative_to(folder).as_posix() for path in folder.rglob("*.*")]
        if folder.name.startswith(SAVING):
            folder = self._move(folder, folder.parent)
        index = {}
        with suppress(OSError, ValueError):  # no model is there
            index = type(self).load_config(repo_id, token=token, subfolder=subfolder)
        return upload_folder(
            repo_id=repo_id,
            folder_path=folder,
            token=token,
            commit_message=commit_message or f"Upload {type(self).__name__}",
            create_pr=create_pr,
            path_in_repo=subfolder,
            allow_patterns=names,
            delete_patterns=replaced_by(names, index, id_of(self.unet)),
        )

    def _move(self, new: Path, target: Path) -> Path:
        """Moves a model that was saved to its place; what it replaces goes.

        The index goes first and comes last, so that a mixture of two models can't be loaded.
        """
        files = sorted(new.rglob("*.*"), key=lambda path: path.name == INDEX)
        if not files:
            return target  # for an upload it was moved before
        names = [file.relative_to(new).as_posix() for file in files]
        own, index = id_of(self.unet), {}
        with suppress(OSError, ValueError):  # no index, or a damaged one
            index = read_json(target / INDEX)
        if Path(self.unet.config.get("_name_or_path") or "") == target / "unet":
            index = {MODEL_ID: own} | index  # it was loaded from there, where it had no id yet
        patterns = replaced_by(names, index, own)
        (target / INDEX).unlink(missing_ok=True)
        for folder in {(target / name).parent for name in names} - {target}:
            if folder.is_symlink():  # to the folder of another model, which stays as it is
                folder.unlink()
            folder.mkdir(exist_ok=True)
        for old in (path for pattern in patterns for path in target.glob(pattern)):
            old.unlink()
        for file, name in zip(files, names, strict=True):
            if name == CARD and (target / name).exists():
                file.unlink()
            else:
                file.replace(target / name)
        return target

    def to_json_string(self) -> str:
        """The text of model_index.json, with the class named as a file of the folder has it."""
        changes = {
            "_class_name": [self.module_name(), type(self).__name__],
            "tokenizer": ["transformers", TOKENIZER_CLASS],
            MODEL_ID: id_of(self.unet),
        }
        return tidy(super().to_json_string(), changes)

    @classmethod
    def _dict_from_json_file(cls, json_file, **kwargs):
        # The installed class runs instead of the folder's code, which needs no trust.
        index = super()._dict_from_json_file(json_file, **kwargs)
        if isinstance(index.get("_class_name"), list):
            index["_class_name"] = index["_class_name"][-1]
        return index

    def register_to_config(self, **kwargs):
        # `from_pretrained` notes the name of the pipeline when all components are loaded.
        if "_name_or_path" in kwargs:
            check_loaded(kwargs["_name_or_path"], self.unet, self.tokenizer)
        super().register_to_config(**kwargs)


def check_device(device: str | torch.device) -> None:
    """Refuses a device that is not there.

    Raises:
        ValueError: it is "meta", or a GPU that torch can't use.
    """
    try:
        place = torch.device(device)
    except RuntimeError as error:
        raise ValueError(f"device is {device!r}; give cpu, cuda or cuda:1, for example") from error
    if place.type == "meta":
        raise ValueError("device is meta, where the weights would be lost; give cpu or cuda")
    if place.type == "cuda" and (place.index or 0) >= (count := torch.cuda.device_count()):
        raise ValueError(f"device is {device}, but torch finds {count} GPUs here; give cpu")


def tidy(text: str, changes: dict) -> str:
    """A configuration in JSON with some entries changed, and without the traces of a loading."""
    table = {key: value for key, value in json.loads(text).items() if key not in LOADING_TRACES}
    return json.dumps(table | changes, indent=2, sort_keys=True) + "\n"


# --------------------------------------------------------------------------------------------------
# noise.py
#
# The noise of a call: the initial latents, and what is drawn besides them.
# --------------------------------------------------------------------------------------------------


def initial_latents(
    latents: Tensor | None, generator, shape: tuple[int, int, int, int], device: torch.device
) -> Tensor:
    """Standard normal noise, drawn or as it was given, in float32 on the device.

    Images are drawn one after the other, so that the first of four is the only one of one.

    Args:
        latents: of this shape, or None: they are drawn.
        generator: one, one for each image, or None for torch's own.
        shape: (B, C, H, W).
    """
    each = generator if isinstance(generator, list) else [generator] * shape[0]
    if len(each) != shape[0]:
        raise ValueError(
            f"generator has {len(each)} entries for {shape[0]} images; give one, or one each"
        )
    if generator is not None and not all(isinstance(item, torch.Generator) for item in each):
        raise ValueError(
            f"generator is {shown(generator)}; it must be a torch.Generator or a list of them, "
            "such as torch.Generator().manual_seed(0)"
        )
    if latents is None:
        return randn_tensor(shape, None if generator is None else each, device, torch.float32)
    found = tuple(latents.shape) if isinstance(latents, Tensor) else type(latents).__name__
    if (
        found != shape
        or not latents.is_floating_point()
        or not (read := dense(latents, "latents").float()).isfinite().all()
    ):
        raise ValueError(
            f"latents are {found}; they must be a tensor of shape {shape}, of finite floats"
        )
    return read.to(device)


def own_generators(latents: Tensor, purpose: str = "") -> list[torch.Generator]:
    """A generator on the CPU for each image, seeded with a digest of its latents and the purpose.

    So an image depends on its latents alone, and not on its place or the others in the batch.
    """
    digests = [
        hashlib.sha256(row.numpy().tobytes() + purpose.encode()).digest() for row in latents.cpu()
    ]
    seeds = [int.from_bytes(digest[:8], "little") for digest in digests]
    return [torch.Generator().manual_seed(seed) for seed in seeds]


def draw_classes(latents: Tensor, weights: Sequence[float]) -> Tensor:
    """A class for each image, drawn from its latents: (B,) in 0..K-1, or -1 for the null class.

    Args:
        latents: (B, C, H, W).
        weights: K + 1 relative frequencies, that of the null class last.
    """
    edges = torch.tensor(weights, dtype=torch.float64).cumsum(0)
    own = own_generators(latents, "class")
    draws = torch.stack([torch.rand((), generator=one, dtype=torch.float64) for one in own])
    places = torch.searchsorted(edges, draws * edges[-1], right=True)
    return torch.where(places < len(weights) - 1, places, -1)


# --------------------------------------------------------------------------------------------------
# outputs.py
#
# Reads `output_type`, and makes images of that type.
# --------------------------------------------------------------------------------------------------


@dataclass
class MultiTaskOutput(ImagePipelineOutput):
    """What a call returns.

    Attributes:
        images: as `output_type` says.
        class_labels: the class of each image, one that was drawn too; None for no class.
    """

    class_labels: Optional[list] = None  # noqa: UP045, the form that diffusers 0.36 can read


OUTPUT_TYPES = ("pil", "np", "pt", "latent")


def read_output_type(value, images: ImageFormat) -> str:
    """One of `OUTPUT_TYPES`; None is "pil" where PIL has a mode for the images, else "np"."""
    value = ("pil" if images.pil_mode else "np") if value is None else value
    if not isinstance(value, str) or value not in OUTPUT_TYPES:
        raise ValueError(
            f"output_type is {shown(value)}; it must be one of {', '.join(OUTPUT_TYPES)}"
        )
    if value == "pil" and images.pil_mode is None:
        raise ValueError(
            f"output_type is 'pil'; PIL has no mode for images of {images.words}: give 'np' or 'pt'"
        )
    return value


def to_output(latents: Tensor, mask: Tensor, source: Inputs, output_type: str, form: ImageFormat):
    """Images of the output type. Where the mask is 0 they have the pixels of the source.

    Args:
        latents: (B, C, H, W) in about [-1, 1].
        mask: (B, 1, H, W) in {0, 1}.
        source: padding, outside of its frame, is cut off, except for "latent". Images that then
            differ in size are a list.
    """
    if output_type == "latent":
        return latents
    images = torch.where(mask > 0, form.to_array(latents), source.image)
    frame = source.frame
    sizes = torch.stack([frame.amax(3).sum((1, 2)), frame.amax(2).sum((1, 2))], 1).int().tolist()
    if all(size == sizes[0] for size in sizes):
        return _typed(_cut(images, sizes[0], form), output_type, form)
    each = zip(images.split(1), sizes, strict=True)
    return [_typed(_cut(image, size, form), output_type, form)[0] for image, size in each]


def _cut(images: Tensor, size: list[int], form: ImageFormat) -> Tensor:
    left, _, top, _ = form.padding(size)
    return images[..., top : top + size[0], left : left + size[1]]


def _typed(images: Tensor, output_type: str, form: ImageFormat):
    if output_type == "pil":
        return form.to_pil(images)
    return images if output_type == "pt" else images.permute(0, 2, 3, 1).float().cpu().numpy()


# --------------------------------------------------------------------------------------------------
# solver.py
#
# Solves the probability-flow ODE with the pipeline's scheduler, known pixels held in place.
# --------------------------------------------------------------------------------------------------


def solve(
    call,
    source: Tensor,
    noise: Tensor,
    hint: Hint,
    guidance: Guidance,
    start: list[float],
    steps: int | list[float],
    generators: list[torch.Generator],
    callback: Callable | None,
    callback_inputs: list[str],
) -> Tensor:
    """Goes from the start to 0; known pixels are exact at every step.

    The samples of one start are a batch; one batch follows another.

    Args:
        call: the pipeline's copy for this call. A callback may change its state.
        source: (B, C, H, W) in [-1, 1], the known pixels where the mask is 0.
        noise: (B, C, H, W) standard normal.
        hint: what is shown, and where is painted.
        guidance: what the call's guidance composes.
        start: (B,) noise levels, of the source. From sigma_max on it is noise alone.
        steps: their number, or the noise levels that they start at.
        generators: one for each image, for schedulers that add noise.

    Returns:
        (B, C, H, W) float32.

    Raises:
        ValueError: the latents are not finite after a step.
    """
    highest = call.scheduler.config.sigma_max
    schedulers = {
        level: from_level(level, call.scheduler, steps, noise.device) for level in sorted({*start})
    }
    call._num_timesteps = sum(len(scheduler.timesteps) for scheduler in schedulers.values())

    def end_step(step: int, timestep: Tensor, x: Tensor) -> Tensor:
        if callback is not None:
            tensors = {name: {"latents": x}[name] for name in callback_inputs}
            x = _replaced(x, callback(call, step, timestep, tensors), step)
        progress.update()
        return x

    x, done = torch.empty_like(noise), 0
    with call.progress_bar(total=call._num_timesteps) as progress:
        for level, scheduler in schedulers.items():
            vars(call)["scheduler"] = scheduler  # a callback may look at it; it needs no check
            rows = [i for i, own in enumerate(start) if own == level]
            image, mask = source[rows], hint.mask[rows]
            first = scheduler.sigmas[0].item()
            free = (mask > 0) & (level >= highest)
            few = not isinstance(steps, int)
            latents = initial(image, noise[rows], hint.image[rows], free, first, few)
            own = [generators[i] for i in rows]
            parts = (image, noise[rows], mask, guidance[rows], own)
            x[rows] = _solve(call, latents, *parts, done, end_step)
            done += len(scheduler.timesteps)
    return x


def initial(
    source: Tensor, noise: Tensor, shown: Tensor, free: Tensor, sigma: float | Tensor, few: bool
) -> Tensor:
    """The latents that sampling starts from: the source with noise, or noise alone.

    Args:
        shown: (B, 3, H, W), the image of the hint.
        free: (B, 1, H, W) bool, where it is noise alone.
        sigma: the first noise level, of all or (B, 1, 1, 1).
        few: whether they are for a model of few steps.
    """
    alone = sigma * noise
    if few:
        # Where part of an image is shown, random low frequencies would contradict it.
        blank = ~shown.flatten(1).any(1)[:, None, None, None]
        alone = torch.where(blank, first_latents(noise, sigma), alone)
    return torch.where(free, alone, source + sigma * noise)


def step_down(
    denoiser: Denoiser,
    scheduler,
    i: int,
    sigmas: Sequence[float] | Tensor,
    x: Tensor,
    source: Tensor,
    noise: Tensor,
    mask: Tensor,
    generators: list[torch.Generator] | None = None,
) -> Tensor:
    """Step i of the scheduler; known pixels are exact after it.

    Args:
        sigmas: all noise levels of the scheduler; each is one for all, or (B, 1, 1, 1).
    """
    F = denoiser.output(x, sigmas[i])
    x = scheduler.step(F, scheduler.timesteps[i], x, generator=generators).prev_sample
    return torch.where(mask > 0, x, source + sigmas[i + 1] * noise)


def _solve(
    call,
    x: Tensor,
    source: Tensor,
    noise: Tensor,
    mask: Tensor,
    guidance: Guidance,
    generators: list[torch.Generator],
    done: int,
    end_step: Callable[[int, Tensor, Tensor], Tensor],
) -> Tensor:
    """Goes down the noise levels of the call's scheduler.

    Args:
        x: (B, C, H, W) latents of the first level.
        done: steps of the call before these.
        end_step: (step of the call, timestep, latents) -> latents.
    """
    scheduler = call.scheduler
    sigmas = scheduler.sigmas.tolist()
    # The first step with values that aren't finite, on the device: to read it in the loop would
    # wait for each step.
    first_bad = torch.full((), len(sigmas), device=x.device)
    for i, timestep in enumerate(scheduler.timesteps):
        if call.interrupt:
            break
        # A callback may have changed the scales.
        scales = call.guidance_scale, call.image_guidance_scale, call.guidance_interval
        parts = (scheduler, i, sigmas, x, source, noise, mask, generators)
        x = step_down(guidance.denoiser(*scales), *parts)
        x = end_step(done + i, timestep, x)
        first_bad = torch.where(x.isfinite().all(), first_bad, first_bad.clamp(max=i))
    if (step := int(first_bad)) < len(sigmas):
        raise ValueError(
            f"the latents are not finite after step {done + step + 1} of {call._num_timesteps}; "
            f"the likely cause: {_likely_cause(call)}"
        )
    return x


def from_level(start: float, scheduler, steps: int | list[float], device: torch.device):
    """A scheduler that begins at the start; of given noise levels, at the lowest from there on."""
    config = scheduler.config
    if isinstance(steps, int):
        first = min(max(start, 2 * config.sigma_min), config.sigma_max)
        own = type(scheduler).from_config(config, sigma_max=first)
        own.set_timesteps(steps, device=device)
    else:
        above = [level for level in steps if level >= start]
        levels = steps[max(len(above) - 1, 0) :]
        own = type(scheduler).from_config(config)
        own.set_timesteps(len(levels), device=device, sigmas=karras_ramp(levels, config))
    own.set_begin_index(0)
    own.is_scale_input_called = True  # `predict` scales; EDMEulerScheduler would warn
    return own


def _replaced(latents: Tensor, answer: dict | None, step: int) -> Tensor:
    """The latents, or those that a callback returned to replace them."""
    if answer is None:
        return latents
    new = answer.get("latents", latents) if isinstance(answer, dict) else None
    if not isinstance(new, Tensor) or new.shape != latents.shape:
        raise ValueError(
            "callback_on_step_end returned neither None nor a dict whose latents have the shape "
            f"{tuple(latents.shape)}"
        )
    if new is not latents and not new.isfinite().all():
        raise ValueError(
            f"callback_on_step_end returned latents that are not finite after step {step + 1}"
        )
    return new.to(latents)


def _likely_cause(call) -> str:
    """Why the latents of a call are not finite."""
    module = plain_module(call.unet)
    for name, weight in module.named_parameters():
        if not weight.is_meta and not weight.float().isfinite().all():
            return f"the weights of the unet are not finite ({name}): load the model again"
    for name in ("guidance_scale", "image_guidance_scale"):
        if getattr(call, name) > 30:
            return f"{name} is {getattr(call, name):g}: lower it"
    if module.dtype == torch.float16:
        return "float16 overflows: use pipe.to(torch.bfloat16) or pipe.to(torch.float32)"
    return "latents that are far from standard normal, or a callback that changes the pipeline"


# --------------------------------------------------------------------------------------------------
# translate.py
#
# Translation: an image of another kind is shown, and its counterpart is painted.
#
# A segmentation map becomes an image, a sketch a photograph, or the other way round. The pairs are
# columns of the dataset; each column is a task with a name of its own.
# --------------------------------------------------------------------------------------------------


class Translate(Task):
    """A task whose name, and whose column of conditions, the configuration gives."""

    name = "translate"
    required = frozenset({"image"})
    optional = frozenset({"class_label", "image_guidance_scale"})

    def __init__(self, name: str):
        self.name = name

    def draw(
        self, n: int, size: tuple[int, int], class_dropout: float, generator: torch.Generator
    ) -> Choice:
        device = generator.device
        u = torch.rand(n, generator=generator, device=device)  # as edit drops its class and source
        return Choice(
            mask=torch.ones(n, 1, *size, device=device),
            drop_class=u < class_dropout,
            drop_image=(u >= 0.5 * class_dropout) & (u < 1.5 * class_dropout),
        )

    def condition(
        self, image: Tensor, mask: Tensor, strength: Tensor | None, noise: Tensor
    ) -> Hint:
        return Hint(image=image, mask=torch.ones_like(mask))


# --------------------------------------------------------------------------------------------------
# upscale.py
#
# Super-resolution: the source is shown at a quarter of its resolution.
#
# The image given to the pipeline has the full size, as in every task, and `condition` reduces it. Who
# has only the small image enlarges it first, by repeating pixels:
# `small.resize((width, height), Image.Resampling.NEAREST)`. The mean of equal pixels is the
# pixel, so the network is shown the small image itself. Other filters give it a blurred one.
# --------------------------------------------------------------------------------------------------


FACTOR = 4  # of the resolution, in each direction


class Upscale(Task):
    name = "upscale"
    required = frozenset({"image"})
    optional = frozenset({"class_label"})

    def draw(
        self, n: int, size: tuple[int, int], class_dropout: float, generator: torch.Generator
    ) -> Choice:
        return Choice(
            mask=torch.ones(n, 1, *size, device=generator.device),
            drop_class=bernoulli(n, class_dropout, generator),
        )

    def condition(
        self, image: Tensor, mask: Tensor, strength: Tensor | None, noise: Tensor
    ) -> Hint:
        size = image.shape[-2:]
        small = adaptive_avg_pool2d(
            image, [max(side // FACTOR, 1) for side in size]
        )  # means of 4x4 pixels
        # A pixel becomes a block of its colour, so that the network's input has the full size.
        return Hint(image=interpolate(small, size, mode="nearest"), mask=torch.ones_like(mask))


# --------------------------------------------------------------------------------------------------
# pipeline.py
# --------------------------------------------------------------------------------------------------


# All tasks, by name. A new task is a file of its own and a line here.
TASKS: dict[str, Task] = {
    task.name: task
    for task in (
        Generate(),
        Inpaint(),
        Edit(),
        Colorize(),
        Upscale(),
    )
}


# What is true of the weights, besides their words, is kept in the configuration of the UNet. Names
# with an underscore pass through diffusers' loading and saving.
CHAINS = "_chains"  # of a model of few steps: the noise levels that each number of steps visits
EDITS_AT_ONCE = "_edits_at_once"  # true where an edit is one evaluation
FREQUENCIES = "_class_frequencies"  # class name -> share of the training data; NULL: without one
TRANSLATIONS = "_translations"  # the names of the tasks of the class Translate
LEARNED = (CHAINS, EDITS_AT_ONCE, FREQUENCIES, MARK, TRANSLATIONS)
# Arguments of earlier versions, and what takes their place.
REMOVED = {
    name: "mtl_diffusion.editing.whole.whole_edit, of the package, inverts the source of an edit"
    for name in ("num_inversion_steps", "source_class")
}


class MultiTaskPipeline(SelfContained, DiffusionPipeline):
    """One small UNet that generates, inpaints and edits.

    Calls may overlap, from several threads or from a callback: each has its own state.

    Args:
        unet: takes `format.input_channels` channels and one-hot tokens.
        tokenizer: its vocabulary has the tasks and classes that the model has learned.
        scheduler: `EDMDPMSolverMultistepScheduler`; `EDMEulerScheduler` for a model of few steps.
        chains: of a model of few steps that was exported by a version before 0.2; later ones are
            in the configuration of their unet.
    """

    model_cpu_offload_seq = "unet"
    _callback_tensor_inputs = ["latents"]  # noqa: RUF012, the name and type are diffusers'

    # The state of a call, in the shallow copy that it runs on. `_caller` is what was copied.
    _caller = None
    _interrupt = False
    _guidance_scale = _image_guidance_scale = 1.0
    _guidance_interval = (0.0, math.inf)
    _num_timesteps = 0

    def __init__(
        self,
        unet: UNet2DConditionModel,
        tokenizer,
        scheduler,
        chains: Optional[list] = None,  # noqa: UP045, the form that diffusers 0.36 can read
    ):
        super().__init__()
        components = {"unet": unet, "tokenizer": tokenizer, "scheduler": scheduler}
        for name, component in components.items():
            check_component(name, component)
        self.register_modules(**components)
        self._running: dict[int, MultiTaskPipeline] = {}  # the copies of calls that have not ended
        if chains is not None:
            self.register_to_config(chains=chains)
        if self.chains is not None:
            check_chains(self.chains)
        self._check_vocabulary()

    def __setattr__(self, name: str, value):
        if name.startswith("_"):  # the state of a call, and no component
            object.__setattr__(self, name, value)
            if name == "_interrupt" and value and self._caller is None:
                for call in list(self._running.values()):
                    call._interrupt = True
            return
        check_component(name, value)
        super().__setattr__(name, value)
        if name == "tokenizer":
            self.vocabulary = Vocabulary.of(value.get_vocab())

    @property
    def tasks(self) -> tuple[str, ...]:
        """Names of the tasks that this model has learned."""
        known = (*TASKS, *self.translations)
        return tuple(name for name in known if name in self.vocabulary.tasks)

    @property
    def translations(self) -> tuple[str, ...]:
        """Names of the tasks that make an image of one of another kind."""
        return tuple(self.unet.config.get(TRANSLATIONS) or ())

    @property
    def class_names(self) -> tuple[str, ...]:
        """Names of the classes, in the order of their numbers."""
        return tuple(self.vocabulary.classes)

    @property
    def format(self) -> ImageFormat:
        """Size, channels and depth of the images."""
        return ImageFormat.of(self.unet.config)

    @property
    def size(self) -> int:
        """Side of the square images in pixels; the longer side of rectangles, see `format`."""
        return max(self.format.size)

    @property
    def chains(self) -> Chains | None:
        """The noise levels of each number of steps; None: any number."""
        return self.unet.config.get(CHAINS) or self.config.get("chains")

    @property
    def class_frequencies(self) -> dict[str, float]:
        """How often a sample without a class is of each class, and of none; they sum to 1."""
        known = self.unet.config.get(FREQUENCIES) or dict.fromkeys(self.class_names, 1.0)
        total = sum(known.values())
        return {name: share / total for name, share in known.items()}

    def spec(self, task: str) -> Task:
        """The task as this model has learned it."""
        if task in self.translations:
            return Translate(task)
        at_once = task == Edit.name and self.unet.config.get(EDITS_AT_ONCE, False)
        return EditAtOnce() if at_once else TASKS[task]

    def default_steps(self, task: str) -> int:
        """num_inference_steps of a task, if it is not given."""
        if self.chains is None:
            return self.spec(task).default_steps
        lengths = [len(levels) for levels in self.chains]
        few = self.spec(task).few_steps
        return few if few in lengths else lengths[-1]

    def default_guidance(self, task: str) -> float:
        """guidance_scale of a task, if it is not given: a model of few steps has it built in."""
        return 1.0 if self.chains else self.spec(task).default_guidance_scale

    def default_guidance_interval(self, task: str) -> tuple[float, float]:
        """guidance_interval of a task, if it is not given."""
        return self.spec(task).default_guidance_interval

    @property
    def guidance_scale(self) -> float:
        return self._guidance_scale

    @property
    def image_guidance_scale(self) -> float:
        return self._image_guidance_scale

    @property
    def guidance_interval(self) -> tuple[float, float]:
        return self._guidance_interval

    @property
    def num_timesteps(self) -> int:
        return self._num_timesteps

    @property
    def interrupt(self) -> bool:
        """Whether a call ends after its current evaluation, with the image that it has by then.

        `pipe._interrupt = True` asks for it: on the pipeline that a callback gets it ends that
        call, and on the pipeline itself, as from another thread, all calls that run.
        """
        # A call inside the callback of another one ends with it.
        outer = self._caller is not None and self._caller._caller is not None
        return self._interrupt or (outer and self._caller.interrupt)

    @torch.no_grad()
    def __call__(
        self,
        task: str = "generate",
        class_label: str | int | list | None = None,
        image=None,
        mask_image=None,
        strength: float | list[float] | None = None,
        guidance_scale: float | None = None,
        image_guidance_scale: float | None = None,
        guidance_interval: tuple[float, float] | None = None,
        num_inference_steps: int | None = None,
        num_images_per_prompt: int = 1,
        generator: torch.Generator | list[torch.Generator] | None = None,
        latents: Tensor | None = None,
        output_type: str | None = None,
        return_dict: bool = True,
        callback_on_step_end: Callable | None = None,
        callback_on_step_end_tensor_inputs: list[str] = ["latents"],  # noqa: B006, diffusers' own
        **removed,
    ) -> ImagePipelineOutput | tuple:
        """Draws images. A class, image, mask or strength may be a list, one entry a sample.

        Args:
            task: one of `pipe.tasks`.
            class_label: a class's name or number, or -1 for the null class, which is none. None:
                generate draws one for each image, as often as the training data has it; for the
                other tasks the null class.
            image: the source, of `pipe.format`: PIL of its mode, or floats in [0, 1] (or in the
                model's `value_range`) as an array (H, W, C) or a tensor (C, H, W), or a batch or a
                list of these. A model with the fit "pad" takes smaller ones of one of its sides.
            mask_image: white (1) is repainted, black (0) is kept, byte for byte.
            strength: degradation of the source, from 0 (none: the source comes back) to 1 (nothing
                is left of it). None: the task's default. Of several, each is a batch of its own.
            guidance_scale: guidance by the class; 1 is off. None: `pipe.default_guidance(task)`.
            image_guidance_scale: guidance by the source; 1 is off.
            guidance_interval: the lowest and the highest noise level (sigma, both included) where
                guidance is applied; elsewhere both scales are 1, for one branch in place of 2 or 3.
                None: `pipe.default_guidance_interval(task)`; (0, math.inf) is everywhere. Source:
                Kynkäänniemi et al. 2024, arXiv:2404.07724.
            num_inference_steps: evaluations of the denoiser, each of 1 to 3 branches. None:
                `pipe.default_steps(task)`. A model of few steps takes the lengths of
                `pipe.chains`, and leaves out the first steps of an edit that is not strong.
            num_images_per_prompt: images for each sample.
            generator: one, or one for each image. Image i depends on its seed and on i alone.
            latents: (images, C, H, W) standard normal, instead of drawing them. All other
                noise of an image is derived from its latents.
            output_type: "pil"; "np" (B, H, W, C) or "pt" (B, C, H, W), floats as arrays that are
                given; or "latent", (B, C, H, W) in about [-1, 1], not clipped. None: "pil" where
                PIL has a mode for the images, else "np".
            callback_on_step_end: called as (pipe, step, timestep, tensors) after each step; it may
                return a dict with other latents. `pipe` is a shallow copy with the state of this
                call, such as its scheduler; `pipe._interrupt = True` ends the call.

        Raises:
            ValueError: an argument is out of its range, or one that the task doesn't take; or the
                latents don't stay finite.
        """
        for name in removed:
            raise TypeError(f"there is no argument {name}; {REMOVED.get(name, 'leave it out')}")
        self._check_vocabulary()
        self._check_task(
            task,
            image=image,
            mask_image=mask_image,
            class_label=class_label,
            strength=strength,
            image_guidance_scale=image_guidance_scale,
        )
        images = self.format
        output_type = read_output_type(output_type, images)
        callback = (callback_on_step_end, callback_on_step_end_tensor_inputs)
        check_callback(*callback, self._callback_tensor_inputs)
        call = self._copy_for_call()
        call._set_guidance(task, guidance_scale, image_guidance_scale, guidance_interval)
        steps = self._read_steps(task, num_inference_steps)
        spec, device = self.spec(task), self._execution_device
        count = read_count(num_images_per_prompt, "num_images_per_prompt")
        given = (class_label, image, mask_image, strength)
        source = read_inputs(spec, *given, self.class_names, images, count).to(device)
        noise = initial_latents(latents, generator, tuple(source.image.shape), device)
        own = own_generators(noise)
        label = self._draw_unset(source.label, noise) if spec.draws_class else source.label
        known = images.from_array(source.image)
        own_noise = randn_tensor(noise.shape, own, device, torch.float32)
        hint = spec.condition(known, source.mask, source.strength, own_noise)
        if images.fit == "pad":
            hint = hint.within(source.frame, known)
        conditioning = build_conditioning(hint, spec, label, self.vocabulary)
        guidance = Guidance.of(self.unet, call.scheduler, conditioning, self.vocabulary.null)
        start = spec.start(source.strength)
        start = start.tolist() if isinstance(start, Tensor) else [start] * len(noise)
        self._running[id(call)] = call
        try:
            latents = solve(call, known, noise, hint, guidance, start, steps, own, *callback)
        finally:
            del self._running[id(call)]

        self.maybe_free_model_hooks()
        if self._caller is None:  # after a call, diffusers' pipelines have its values
            for name in ("_guidance_scale", "_image_guidance_scale", "_guidance_interval"):
                setattr(self, name, getattr(call, name))
            self._num_timesteps = call._num_timesteps
        drawn = to_output(latents, hint.mask, source, output_type, images)
        names = [*self.class_names, None]  # a negative number is no class
        labels = [names[max(number, -1)] for number in label.tolist()]
        return MultiTaskOutput(drawn, labels) if return_dict else (drawn,)

    def _draw_unset(self, label: Tensor, noise: Tensor) -> Tensor:
        """The labels, with a class in place of those that are not set."""
        shares = self.class_frequencies
        weights = [shares.get(name, 0.0) for name in (*self.class_names, NULL)]
        drawn = draw_classes(noise, weights) if self.class_names else torch.full_like(label, -1)
        return torch.where(label == UNSET, drawn.to(label), label)

    def _set_guidance(self, task: str, scale, image_scale, interval) -> None:
        """Reads the arguments of guidance; None: the default of the task and the model."""
        scale = self.default_guidance(task) if scale is None else scale
        image_scale = 1.0 if image_scale is None else image_scale
        interval = self.default_guidance_interval(task) if interval is None else interval
        self._guidance_scale = read_number(scale, 0, math.inf, "guidance_scale")
        self._image_guidance_scale = read_number(image_scale, 0, math.inf, "image_guidance_scale")
        self._guidance_interval = read_interval(interval, "guidance_interval")

    def _read_steps(self, task: str, given: int | None) -> int | list[float]:
        """The number of steps; of a model of few steps, the noise levels that they start at."""
        given = self.default_steps(task) if given is None else given
        steps = read_count(given, "num_inference_steps")
        if self.chains is None:
            return steps
        if not isinstance(self.scheduler, EDMEulerScheduler):
            raise ValueError(
                f"scheduler is of the type {type(self.scheduler).__name__}; this model of few steps"
                " takes EDMEulerScheduler: pipe.scheduler = "
                "EDMEulerScheduler.from_config(pipe.scheduler.config)"
            )
        lengths = {len(levels): levels for levels in self.chains}
        if self.spec(task).at_once:
            lengths = {1: lengths[1]}
        if steps not in lengths:
            raise ValueError(
                f"num_inference_steps is {steps}; this model does {task} in "
                f"{', '.join(map(str, lengths))} steps"
            )
        return list(lengths[steps])

    def _copy_for_call(self) -> "MultiTaskPipeline":
        """A shallow copy for the state of one call. `solve` gives it schedulers of its own."""
        if self._caller is None:
            self._interrupt = False  # of earlier calls; those that run were told when it was set
        call = copy.copy(self)
        call._caller, call._interrupt = self, False
        return call

    def _check_vocabulary(self) -> None:
        """Refuses a UNet and a tokenizer of two models."""
        if self.vocabulary.size != self.unet.config.encoder_hid_dim:
            raise ValueError(
                f"the tokenizer has {self.vocabulary.size} words and the unet takes "
                f"{self.unet.config.encoder_hid_dim}; they must be from one model: compare "
                "tokenizer/tokenizer.json with encoder_hid_dim in unet/config.json"
            )

    def _check_task(self, task: str, **arguments) -> None:
        """Refuses a task the model has not learned, and arguments that don't fit the task."""
        if not isinstance(task, str) or task not in self.tasks:
            untrained = f"; {task} is a task, but this model has not learned it"
            raise ValueError(
                f"task is {shown(task)}; this model knows {', '.join(self.tasks)}"
                + (untrained if isinstance(task, str) and task in TASKS else "")
            )
        spec = self.spec(task)
        given = {name for name, value in arguments.items() if value is not None}
        if missing := spec.required - given:
            raise ValueError(f"task {task!r} needs {', '.join(sorted(missing))}; give it too")
        if unknown := given - spec.required - spec.optional:
            takes = ", ".join(sorted(spec.required | spec.optional))
            raise ValueError(
                f"task {task!r} takes no {', '.join(sorted(unknown))}; it takes {takes}"
            )


# diffusers runs this file again, in the same module, for each pipeline that it loads. What the
# first run defined stays, so that pipelines that were loaded earlier can still be pickled.
_first = globals().get("_FIRST_RUN")
if _first is not None and _first["SOURCE"] == SOURCE:
    globals().update(_first)
else:
    _FIRST_RUN = dict(globals())
# The end.
