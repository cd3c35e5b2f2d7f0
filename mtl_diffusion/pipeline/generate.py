"""Generation without a source, with a class or without."""

import torch
from torch import Tensor

from .task import Choice, Hint, Task, bernoulli


class Generate(Task):
    name = "generate"
    optional = frozenset({"class_label"})
    draws_class = True  # p(x) is the sum over the classes of p(c) p(x | c)
    default_guidance_scale = 2.0
    # At higher noise levels guidance costs diversity. Kynkäänniemi et al. 2024, arXiv:2404.07724.
    default_guidance_interval = (0.28, 2.9)

    def draw(
        self, n: int, size: tuple[int, int], class_dropout: float, generator: torch.Generator
    ) -> Choice:
        return Choice(
            mask=torch.ones(n, 1, *size, device=generator.device),
            drop_class=bernoulli(n, class_dropout, generator),
        )

    def condition(
        self, image: Tensor, mask: Tensor, strength: Tensor | None, noise: Tensor
    ) -> Hint:
        return Hint(image=torch.zeros_like(image), mask=torch.ones_like(mask))
