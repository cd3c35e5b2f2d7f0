"""The model that diffusers' unconditional script trains: the UNet2DModel nearest to our UNet."""

from dataclasses import dataclass

from diffusers import UNet2DConditionModel, UNet2DModel

from ..tools.flops import flops_of_unet


@dataclass(frozen=True)
class Twin:
    """A UNet2DModel with our channels, and the FLOPs of an image, forward and backward, of both."""

    unet: UNet2DModel
    flops: int
    our_flops: int


def build_twin(ours: UNet2DConditionModel) -> Twin:
    """The UNet2DModel with our channels whose measured FLOPs are nearest to ours.

    Its blocks have neither cross-attention nor feed-forward layers. To make up for these, it may
    have attention at other levels, and one more residual layer a level.
    """
    _, our_flops = flops_of_unet(ours)
    levels = len(ours.config.block_out_channels)
    layers = ours.config.layers_per_block
    twins = [
        _unet(ours, first, extra)
        for extra in (layers, layers + 1)
        for first in range(levels, -1, -1)
    ]
    costs = [flops_of_unet(twin)[1] for twin in twins]
    nearest = min(range(len(twins)), key=lambda i: abs(costs[i] - our_flops))
    return Twin(twins[nearest], costs[nearest], our_flops)


def _unet(ours: UNet2DConditionModel, first: int, layers: int) -> UNet2DModel:
    """Attends from level `first` on."""
    config, channels = ours.config, ours.config.block_out_channels
    attends = [level >= first for level in range(len(channels))]
    return UNet2DModel(
        sample_size=config.sample_size,
        block_out_channels=tuple(channels),
        layers_per_block=layers,
        down_block_types=tuple("AttnDownBlock2D" if a else "DownBlock2D" for a in attends),
        up_block_types=tuple("AttnUpBlock2D" if a else "UpBlock2D" for a in attends[::-1]),
        # In UNet2DModel it is the channels of a head, in ours the number of heads.
        attention_head_dim=channels[-1] // config.attention_head_dim,
        norm_num_groups=config.norm_num_groups,
        dropout=config.dropout,
    )
