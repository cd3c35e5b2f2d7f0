"""Inpainting: the known pixels are shown, the others are painted."""

import torch
from torch import Tensor

from .masks import draw_masks
from .task import Choice, Hint, Task, bernoulli


class Inpaint(Task):
    name = "inpaint"
    required = frozenset({"image", "mask_image"})
    optional = frozenset({"class_label"})
    holes_from_data = True
    # What is shown leaves little to decide: two steps complete the holes of photographs better than
    # four, and those of the shapes nearly as well (docs/mtl-cifar10-fewstep.md).
    few_steps = 2

    def draw(
        self, n: int, size: tuple[int, int], class_dropout: float, generator: torch.Generator
    ) -> Choice:
        return Choice(
            mask=draw_masks(n, size, generator),
            drop_class=bernoulli(n, class_dropout, generator),
        )

    def condition(
        self, image: Tensor, mask: Tensor, strength: Tensor | None, noise: Tensor
    ) -> Hint:
        return Hint(image=image * (1 - mask), mask=mask)
