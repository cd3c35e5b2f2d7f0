"""Colorization: the source's luminance is shown, degraded by the strength."""

from dataclasses import replace

import torch

from .degradation import degrade
from .task import Hint, Task, bernoulli

LUMA = (0.299, 0.587, 0.114)  # ITU-R BT.601, the weights of PIL's convert("L")


class Colorize(Task):
    name = "colorize"
    required = frozenset({"image"})
    optional = frozenset({"class_label", "strength"})
    default_strength = 0.0

    def draw(self, n, size, class_dropout, generator):
        # Half the samples show the grey image as it is, which is what most users ask for.
        strength = torch.rand(n, generator=generator, device=generator.device)
        strength = torch.where(bernoulli(n, 0.5, generator), strength, 0.0)
        return replace(super().draw(n, size, class_dropout, generator), strength=strength)

    def condition(self, image, mask, strength, noise):
        # Plain numbers: training would wait until a tensor of them is on the device.
        *rgb, rest = image.split([1, 1, 1, image.shape[1] - 3], dim=1)  # alpha is shown as it is
        grey = sum(weight * part for weight, part in zip(LUMA, rgb, strict=True))
        shown = torch.cat([grey, grey, grey, rest], dim=1)
        return Hint(degrade(shown, strength, noise), torch.ones_like(mask), strength)
