"""Reads `output_type`, and makes images of that type."""

import torch
from diffusers.image_processor import VaeImageProcessor
from torch import Tensor

from .inputs import shown

OUTPUT_TYPES = ("pil", "np", "pt", "latent")


def check_output_type(value) -> None:
    """Refuses what is none of `OUTPUT_TYPES`."""
    if not isinstance(value, str) or value not in OUTPUT_TYPES:
        raise ValueError(
            f"output_type is {shown(value)}; it must be one of {', '.join(OUTPUT_TYPES)}"
        )


def to_output(latents: Tensor, mask: Tensor, source: Tensor, output_type: str):
    """Images of the output type. Where the mask is 0 they have the pixels of the source.

    Args:
        latents: (B, 3, H, W) in about [-1, 1].
        mask: (B, 1, H, W) in {0, 1}. source: (B, 3, H, W) in [0, 1].
    """
    if output_type == "latent":
        return latents
    images = torch.where(mask > 0, (latents / 2 + 0.5).clamp(0, 1), source)
    if output_type != "pt":
        images = VaeImageProcessor.pt_to_numpy(images)
    return VaeImageProcessor.numpy_to_pil(images) if output_type == "pil" else images
