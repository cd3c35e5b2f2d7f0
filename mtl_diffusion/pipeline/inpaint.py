"""Inpainting: the known pixels are shown, the others are painted."""

from dataclasses import replace

from .masks import draw_masks
from .task import Hint, Task


class Inpaint(Task):
    name = "inpaint"
    required = frozenset({"image", "mask_image"})
    optional = frozenset({"class_label"})
    holes_from_data = True
    # What is shown leaves little to decide: on CIFAR-10 two steps complete holes better than four.
    few_steps = 2

    def draw(self, n, size, class_dropout, generator):
        mask = draw_masks(n, size, generator)
        return replace(super().draw(n, size, class_dropout, generator), mask=mask)

    def condition(self, image, mask, strength, noise):
        return Hint(image=image * (1 - mask), mask=mask)
