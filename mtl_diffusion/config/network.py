"""The network that a configuration leaves open: it follows the resolution."""

import math
from dataclasses import replace

from .fields import TrainConfig

NETWORK = ("block_out_channels", "attention_resolutions", "num_attention_heads", "norm_num_groups")
# Channels of the levels. The fine levels are narrow: a level costs four times as much as the next
# one of the same width.
WIDTHS = (32, 64, 64, 128, 128, 128)
COARSEST = 8  # levels are added until the feature maps have this side, or as long as they halve
LARGEST = 32  # side of the coarsest maps, where all pixels attend to each other


def with_network(config: TrainConfig) -> TrainConfig:
    """The configuration with a network for its resolution, in place of the fields that are None.

    Attention is at the coarsest level, the cheapest place where tokens reach the image.
    """
    widths = config.block_out_channels or list(WIDTHS[: _levels(config.size)])
    attention = config.attention_resolutions
    if attention is None:
        attention = [min(config.size) // 2 ** (len(widths) - 1)]
    return replace(
        config,
        block_out_channels=widths,
        attention_resolutions=attention,
        num_attention_heads=config.num_attention_heads or math.gcd(2, *widths),
        norm_num_groups=config.norm_num_groups or math.gcd(8, *widths),
    )


def _levels(size: tuple[int, int]) -> int:
    levels, side = 1, min(size)
    while levels < len(WIDTHS) and (side > COARSEST or levels == 1):
        if any(whole % 2**levels for whole in size):
            break
        levels, side = levels + 1, side // 2
    return levels
