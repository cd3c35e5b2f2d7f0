"""The arithmetic of a UNet, counted."""

import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode


def flops_of_unet(unet: nn.Module) -> tuple[int, int]:
    """FLOPs of one image: (forward, forward and backward) of a UNet of diffusers.

    A fresh copy on the CPU is counted, because the counter doesn't see into compiled code. The
    device and the precision don't change the count.
    """
    unet = type(unet).from_config(unet.config).train()
    size = unet.config.sample_size  # a pair of a rectangle's
    size = (size, size) if isinstance(size, int) else size
    inputs = {
        "sample": torch.zeros(1, unet.config.in_channels, *size),
        "timestep": torch.zeros(1),
    }
    if "encoder_hid_dim" in unet.config:  # ours, with one-hot tokens
        tokens = torch.zeros(1, 3, unet.config.encoder_hid_dim)
        inputs |= {"encoder_hidden_states": tokens, "class_labels": tokens.flatten(1)}
    # The counter knows the products of attention, but not the CPU's fused kernel.
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        output = unet(**inputs).sample
        forward = counter.get_total_flops()
        output.sum().backward()
        return forward, counter.get_total_flops()
