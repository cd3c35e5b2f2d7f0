import torch
from diffusers import UNet2DModel

from mtl_diffusion.tools.flops import flops_of_unet


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
