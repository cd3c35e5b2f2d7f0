"""The images of a model: their size, channels and depth, and how numbers stand for them.

Three ranges occur. The network has [-1, 1]. A dataset stores the numbers of its files. Arrays that
a user gives and gets are floats in [0, 1], or in `value_range` where the model has one.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

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
        known = {f.name: getattr(self, f.name) for f in fields(self)[2:]}
        known = {f: known[f] for f in known if known[f] != getattr(ImageFormat, f)}
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
        return self._from(images, self.stored_range)

    def to_stored(self, images: Tensor) -> Tensor:
        """Images in [-1, 1] -> numbers to store, clipped and rounded: undoes `from_stored`."""
        return self._rounded(self._to(images, self.stored_range))

    def from_array(self, images: Tensor) -> Tensor:
        """A user's numbers -> float32 in [-1, 1]."""
        return self._from(images, self.array_range)

    def to_array(self, images: Tensor) -> Tensor:
        """Images in about [-1, 1] -> a user's numbers, clipped."""
        return self._to(images, self.array_range)

    def stored_as_array(self, images: Tensor) -> Tensor:
        """Stored numbers -> a user's, the same ones if there is a `value_range`."""
        return images.float() if self.value_range else images.float() / HIGHEST[self.dtype]

    def array_as_stored(self, images: Tensor) -> Tensor:
        """A user's numbers -> those to store, rounded; exact for what `stored_as_array` gave."""
        return self._rounded(images if self.value_range else images * HIGHEST[self.dtype])

    def from_pil(self, image: Image.Image) -> Tensor:
        """A PIL image of `pil_mode` -> (C, H, W) in a user's numbers."""
        pixels = torch.from_numpy(np.array(image, dtype=self.dtype))
        return self.stored_as_array(torch.atleast_3d(pixels).permute(2, 0, 1))

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
        raise ValueError(
            f"{name} is {width}x{height} pixels; this model takes {self.width}x{self.height}"
            f"{smaller}: resize it"
        )

    def _from(self, images: Tensor, ends: tuple[float, float]) -> Tensor:
        low, high = ends
        images = (images.float() - low) / ((high - low) / 2) - 1
        if self.mode != "RGBA":
            return images
        # Colours under clear alpha are arbitrary in files, so they are made equal: black.
        seen = images[:, 3:] > -1
        return torch.cat([torch.where(seen, images[:, :3], -1.0), images[:, 3:]], dim=1)

    def _to(self, images: Tensor, ends: tuple[float, float]) -> Tensor:
        low, high = ends
        return (images.clamp(-1, 1) + 1) * ((high - low) / 2) + low

    def _rounded(self, numbers: Tensor) -> Tensor:
        rounded = numbers if self.dtype == "float32" else numbers.round()
        return rounded.to(getattr(torch, self.dtype))
