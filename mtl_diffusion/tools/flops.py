"""The arithmetic and the memory of a UNet, counted."""

from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode


def flops_of_unet(unet: nn.Module) -> tuple[int, int]:
    """FLOPs of one image: (forward, forward and backward) of a UNet of diffusers.

    A fresh copy on the CPU is counted, because the counter doesn't see into compiled code. The
    device and the precision don't change the count.
    """
    unet = type(unet).from_config(unet.config).train()
    # The counter knows the products of attention, but not the CPU's fused kernel.
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        output = unet(**_inputs(unet, 1)).sample
        forward = counter.get_total_flops()
        output.sum().backward()
        return forward, counter.get_total_flops()


def bytes_of_unet(
    unet: nn.Module, dtype: torch.dtype | None = None, checkpointing: bool = False
) -> tuple[int, int]:
    """Bytes that a forward pass keeps for the backward pass: (of any batch, of each image of it).

    As in `flops_of_unet`, a copy on the CPU is counted. Weights are not.

    Args:
        dtype: of autocast. None: float32.
        checkpointing: of gradients, which keeps less.
    """
    unet = type(unet).from_config(unet.config).train()
    if checkpointing:
        unet.enable_gradient_checkpointing()
    weights = {p.untyped_storage().data_ptr() for p in unet.parameters()}

    def kept(images: int) -> int:
        found: dict[int, int] = {}

        def note(tensor: Tensor) -> Tensor:
            storage = tensor.untyped_storage()
            if storage.data_ptr() not in weights:
                found[storage.data_ptr()] = storage.nbytes()
            return tensor

        half = nullcontext() if dtype is None else torch.autocast("cpu", dtype)
        with half, saved_tensors_hooks(note, lambda tensor: tensor):
            output = unet(**_inputs(unet, images)).sample  # alive: so is all that was kept
        del output
        return sum(found.values())

    one, two = kept(1), kept(2)
    return 2 * one - two, two - one


def _inputs(unet: nn.Module, images: int) -> dict[str, Any]:
    size = unet.config.sample_size  # a pair of a rectangle's
    size = (size, size) if isinstance(size, int) else size
    inputs = {
        "sample": torch.zeros(images, unet.config.in_channels, *size),
        "timestep": torch.zeros(images),
    }
    if "encoder_hid_dim" in unet.config:  # ours, with one-hot tokens
        tokens = torch.zeros(images, 3, unet.config.encoder_hid_dim)
        inputs |= {"encoder_hidden_states": tokens, "class_labels": tokens.flatten(1)}
    return inputs
