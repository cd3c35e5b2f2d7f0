"""The costs of a UNet, against a count by its layers and the memory that a profiler sees."""

import pytest
import torch
from diffusers import UNet2DModel
from tiny import MODEL
from torch.profiler import ProfilerActivity, profile

from mtl_diffusion.config import TrainConfig
from mtl_diffusion.tools.flops import bytes_of_unet, flops_of_unet
from mtl_diffusion.training.model import build_unet


def test_flops_are_those_of_the_convolutions():
    """Counted a second time, from the shapes of all products."""
    counted = 0
    unet = UNet2DModel(
        sample_size=8,
        block_out_channels=(8, 8),
        layers_per_block=1,
        down_block_types=("DownBlock2D",) * 2,
        up_block_types=("UpBlock2D",) * 2,
        norm_num_groups=4,
        add_attention=False,
    )

    def count(module, inputs, output):
        nonlocal counted
        counted += 2 * output.numel() * module.weight[0].numel()

    for module in unet.modules():
        if isinstance(module, torch.nn.Conv2d | torch.nn.Linear):
            module.register_forward_hook(count)
    unet(torch.zeros(1, 3, 8, 8), 0)
    forward, both = flops_of_unet(unet)
    assert forward == counted
    # Each product has two in the backward pass, but for the first, whose input needs no gradient.
    first = (
        2 * 8 * 8 * unet.conv_in.weight.numel() + 2 * unet.time_embedding.linear_1.weight.numel()
    )
    assert both == 3 * counted - first


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_estimated_memory_is_nearly_that_at_the_peak_of_a_step(dtype):
    """Least is missing of a small network: what is gone before the backward pass begins."""
    unet = build_unet(TrainConfig(**MODEL), 12).train()
    half = torch.autocast("cpu", dtype, enabled=dtype != torch.float32)
    tokens = torch.zeros(16, 3, 12)
    inputs = (torch.zeros(16, unet.config.in_channels, 8, 8), torch.zeros(16), tokens)
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler, half:
        output = unet(*inputs, class_labels=tokens.flatten(1)).sample
        output.float().square().mean().backward()
    events = [e for e in profiler.profiler.kineto_results.events() if e.name() == "[memory]"]
    changes = torch.tensor([e.nbytes() for e in sorted(events, key=lambda e: e.start_ns())])
    fixed, of_image = bytes_of_unet(unet, None if dtype == torch.float32 else dtype)
    # A CPU without bf16 instructions keeps some float32 copies: 0.83.
    assert 0.8 < (fixed + 16 * of_image) / changes.cumsum(0).max() < 1.05
    less = bytes_of_unet(unet, checkpointing=True)[1]
    assert less < bytes_of_unet(unet)[1]
