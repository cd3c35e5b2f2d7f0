"""Tensors: asynchronous copies from host to device, the ranges of pixels, and digests."""

import hashlib

import torch
from safetensors.torch import save
from torch import Tensor, nn


def to_device(tensor: Tensor, device: torch.device) -> Tensor:
    """Copies a CPU tensor to `device` without waiting for the work that is queued there.

    CUDA does that from pinned memory only.
    """
    if device.type == "cuda":
        return tensor.pin_memory().to(device, non_blocking=True)
    return tensor.to(device)


def to_unit_range(images: Tensor) -> Tensor:
    """uint8 pixels -> float32 in [-1, 1], of the same shape and on the same device."""
    return images.float() / 127.5 - 1


def mirrored(images: Tensor) -> Tensor:
    """Flipped left to right, which torch does not do for uint16 itself."""
    if images.dtype == torch.uint16:
        return images.view(torch.int16).flip(-1).view(torch.uint16)
    return images.flip(-1)


def weights_digest(module: nn.Module) -> str:
    """16 hex digits of the sha256 of a module's weights, the same on every device."""
    tensors = {name: tensor.cpu().contiguous() for name, tensor in module.state_dict().items()}
    return hashlib.sha256(save(tensors)).hexdigest()[:16]
