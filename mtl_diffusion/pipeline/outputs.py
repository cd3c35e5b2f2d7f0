"""Reads `output_type`, and makes images of that type."""

from dataclasses import dataclass
from typing import Optional

import torch
from diffusers import ImagePipelineOutput
from torch import Tensor

from .format import ImageFormat
from .inputs import Inputs, shown


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
