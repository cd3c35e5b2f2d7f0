"""Generation without a source, with a class or without."""

import torch

from .task import Hint, Task


class Generate(Task):
    name = "generate"
    optional = frozenset({"class_label"})
    draws_class = True  # p(x) is the sum over the classes of p(c) p(x | c)
    default_guidance_scale = 2.0
    # At higher noise levels guidance costs diversity. Kynkäänniemi et al. 2024, arXiv:2404.07724.
    default_guidance_interval = (0.28, 2.9)

    def condition(self, image, mask, strength, noise):
        return Hint(image=torch.zeros_like(image), mask=torch.ones_like(mask))
