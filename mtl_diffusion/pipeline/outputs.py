"""Reads `output_type`, and makes images of that type."""

from dataclasses import dataclass
from typing import Optional

import torch
from diffusers import ImagePipelineOutput
from torch import Tensor

from .format import ImageFormat
from .inputs import Inputs, wrong


@dataclass
class MultiTaskOutput(ImagePipelineOutput):
    """What a call returns.

    Attributes:
        images: as `output_type` says.
        class_labels: the class of each image, one that was drawn too; None for no class.
    """

    class_labels: Optional[list] = None  # noqa: UP045, the form that diffusers 0.36 can read


def read_output_type(value, images: ImageFormat) -> str:
    """An output type; "pil" where PIL has a mode for the images. None: the first."""
    types = ["pil"] * (images.pil_mode is not None) + ["np", "pt", "latent"]
    value = types[0] if value is None else value
    if value not in types:
        raise wrong("output_type", value, f"one of {', '.join(types)} for images of {images.words}")
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
    if form.fit != "pad":
        return _typed(images, output_type, form)
    frames = zip(images.split(1), source.frame[:, 0] > 0, strict=True)
    each = [image[:, :, frame.any(1)][..., frame.any(0)] for image, frame in frames]
    if len({one.shape for one in each}) == 1:
        return _typed(torch.cat(each), output_type, form)
    return [_typed(one, output_type, form)[0] for one in each]


def _typed(images: Tensor, output_type: str, form: ImageFormat):
    if output_type == "pil":
        return form.to_pil(images)
    return images if output_type == "pt" else images.permute(0, 2, 3, 1).float().cpu().numpy()
