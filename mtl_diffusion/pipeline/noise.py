"""The noise of a call: the initial latents, and what is drawn besides them."""

import hashlib

import torch
from diffusers.utils.torch_utils import randn_tensor
from torch import Tensor

from .inputs import dense, shown


def initial_latents(
    latents: Tensor | None, generator, shape: tuple[int, int, int, int], device: torch.device
) -> Tensor:
    """Standard normal noise, drawn or as it was given, in float32 on the device.

    Images are drawn one after the other, so that the first of four is the only one of one.

    Args:
        latents: of this shape, or None: they are drawn.
        generator: one, one for each image, or None for torch's own.
        shape: (B, 3, H, W).
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


def own_generators(latents: Tensor) -> list[torch.Generator]:
    """A generator on the CPU for each image, seeded with a digest of its latents.

    So an image depends on its latents alone, and not on its place or the others in the batch.
    """
    digests = [hashlib.sha256(row.numpy().tobytes()).digest() for row in latents.cpu()]
    seeds = [int.from_bytes(digest[:8], "little") for digest in digests]
    return [torch.Generator().manual_seed(seed) for seed in seeds]
