"""Translation: an image of another kind is shown, and its counterpart is painted.

A segmentation map becomes an image, a sketch a photograph, or the other way round. The pairs are
columns of the dataset; each column is a task with a name of its own.
"""

import torch

from .task import Choice, Hint, Task


class Translate(Task):
    """A task whose name, and whose column of conditions, the configuration gives."""

    name = "translate"
    required = frozenset({"image"})
    optional = frozenset({"class_label", "image_guidance_scale"})

    def __init__(self, name: str):
        self.name = name

    def draw(self, n, size, class_dropout, generator):
        mask = torch.ones(n, 1, *size, device=generator.device)
        u = torch.rand(n, generator=generator, device=generator.device)
        dropped = (u >= 0.5 * class_dropout) & (u < 1.5 * class_dropout)  # as edit drops its source
        return Choice(mask, u < class_dropout, drop_image=dropped)

    def condition(self, image, mask, strength, noise):
        return Hint(image=image, mask=torch.ones_like(mask))
