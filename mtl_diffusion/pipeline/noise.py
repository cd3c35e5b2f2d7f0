"""The noise of a call: the initial latents, and what is drawn besides them."""

import hashlib
from collections.abc import Sequence

import torch
from diffusers.utils.torch_utils import randn_tensor
from torch import Tensor

from .inputs import wrong


def initial_latents(
    latents: Tensor | None, generator, shape: tuple[int, int, int, int], device: torch.device
) -> Tensor:
    """Standard normal noise (B, C, H, W), drawn or as it was given, in float32 on the device.

    Images are drawn one after the other, so that the first of four is the only one of one.
    """
    each = generator if isinstance(generator, list) else [generator] * shape[0]
    kinds = {torch.Generator} if generator is not None else {type(None)}
    if len(each) != shape[0] or {type(item) for item in each} != kinds:
        wanted = f"a torch.Generator, or a list of one for each of {shape[0]} images"
        raise wrong("generator", generator, wanted)
    if latents is None:
        return randn_tensor(shape, None if generator is None else each, device, torch.float32)
    found = tuple(latents.shape) if isinstance(latents, Tensor) else type(latents).__name__
    if found != shape or not latents.is_floating_point() or not latents.isfinite().all():
        raise ValueError(
            f"latents are {found}; they must be a tensor of shape {shape}, of finite floats"
        )
    return latents.detach().to(device, torch.float32)


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

    `weights` are K + 1 relative frequencies, that of the null class last.
    """
    edges = torch.tensor(weights, dtype=torch.float64).cumsum(0)
    own = own_generators(latents, "class")
    draws = torch.stack([torch.rand((), generator=one, dtype=torch.float64) for one in own])
    places = torch.searchsorted(edges, draws * edges[-1], right=True)
    return torch.where(places < len(weights) - 1, places, -1)
