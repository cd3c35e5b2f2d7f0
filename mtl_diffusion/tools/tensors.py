"""What the host has decided, brought to the device without waiting for the device."""

import torch
from torch import Tensor


def upload(tensor: Tensor, device: torch.device) -> Tensor:
    """The CPU tensor on `device`. Work that is queued there goes on, and so does the caller.

    CUDA takes only pinned memory that way: from other memory it first ends all that is queued.
    """
    if device.type == "cuda":
        return tensor.pin_memory().to(device, non_blocking=True)
    return tensor.to(device)
