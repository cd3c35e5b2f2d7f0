"""Super-resolution: the source is shown at a quarter of its resolution.

The image given to the pipeline has the full size, as in every task, and `condition` reduces it. Who
has only the small image enlarges it first, by repeating pixels:
`small.resize((width, height), Image.Resampling.NEAREST)`. The mean of equal pixels is the
pixel, so the network is shown the small image itself. Other filters give it a blurred one.
"""

import torch
from torch.nn.functional import adaptive_avg_pool2d, interpolate

from .task import Hint, Task

FACTOR = 4  # of the resolution, in each direction


class Upscale(Task):
    name = "upscale"
    required = frozenset({"image"})
    optional = frozenset({"class_label"})

    def condition(self, image, mask, strength, noise):
        size = image.shape[-2:]
        small = adaptive_avg_pool2d(image, [max(side // FACTOR, 1) for side in size])  # means
        # A pixel becomes a block of its colour, so that the network's input has the full size.
        return Hint(image=interpolate(small, size, mode="nearest"), mask=torch.ones_like(mask))
