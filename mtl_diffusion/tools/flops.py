"""The arithmetic of a UNet, counted."""

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode


def flops_of_unet(unet: nn.Module) -> tuple[int, int]:
    """FLOPs of one image: (forward, forward and backward) of a UNet of diffusers.

    A copy without memory is counted, because the counter doesn't see into compiled code. The
    device and the precision don't change the count.
    """
    size = unet.config.sample_size
    with torch.device("meta"):
        copy = type(unet).from_config(unet.config).train()
        inputs = {
            "sample": torch.zeros(1, unet.config.in_channels, size, size),
            "timestep": torch.zeros(1),
        }
        if "encoder_hid_dim" in unet.config:  # ours, with one-hot tokens
            tokens = torch.zeros(1, 3, unet.config.encoder_hid_dim)
            inputs |= {"encoder_hidden_states": tokens, "class_labels": tokens.flatten(1)}
    with FlopCounterMode(display=False) as counter:
        output = copy(**inputs).sample
        forward = counter.get_total_flops()
        output.sum().backward()
        return forward, counter.get_total_flops()
