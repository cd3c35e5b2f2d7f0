"""Translation: an image of another kind is shown, and its counterpart is painted.

A segmentation map becomes an image, a sketch a photograph, or the other way round. The pairs are
columns of the dataset; each column is a task with a name of its own.
"""

import torch
from torch import Tensor

from .task import Choice, Hint, Task


class Translate(Task):
    """A task whose name, and whose column of conditions, the configuration gives."""

    name = "translate"
    required = frozenset({"image"})
    optional = frozenset({"class_label", "image_guidance_scale"})

    def __init__(self, name: str):
        self.name = name

    def draw(
        self, n: int, size: tuple[int, int], class_dropout: float, generator: torch.Generator
    ) -> Choice:
        device = generator.device
        u = torch.rand(n, generator=generator, device=device)  # as edit drops its class and source
        return Choice(
            mask=torch.ones(n, 1, *size, device=device),
            drop_class=u < class_dropout,
            drop_image=(u >= 0.5 * class_dropout) & (u < 1.5 * class_dropout),
        )

    def condition(
        self, image: Tensor, mask: Tensor, strength: Tensor | None, noise: Tensor
    ) -> Hint:
        return Hint(image=image, mask=torch.ones_like(mask))
