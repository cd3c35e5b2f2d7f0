"""Pairs of a source and its whole edit by a teacher."""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ..pipeline.denoiser import Samples
from ..pipeline.edit import REGION_SHARE, STRONGEST
from ..pipeline.masks import draw_masks
from .whole import whole_edit

TEACHER_STEPS = {"steps": 7, "inversion_steps": 6}  # 31 evaluations; the edits are those of 48
WEAKEST = 0.4  # of most of the strengths: weaker edits hardly differ from their source
WEAK_SHARE = 1 / 8  # of the pairs have a strength below that
OWN_CLASS_SHARE = 1 / 16  # of the samples ask for the class of the source, which then comes back


@dataclass(frozen=True)
class EditPairs(Samples):
    """Sources and their edits, n of them.

    Attributes:
        source, edit: (n, C, H, W) as they are stored.
        mask: (n, 1, H, W) uint8 in {0, 1}, 1 = painted; elsewhere the edit is the source.
        source_label, label: (n,) int64, the class of the source and that of the edit.
        strength: (n,) float32 in (0, `STRONGEST`].
    """

    source: Tensor
    edit: Tensor
    mask: Tensor
    source_label: Tensor
    label: Tensor
    strength: Tensor

    def draw(self, n: int, random: torch.Generator) -> "EditPairs":
        """n of the pairs, each mirrored or not; some ask for the class of their source."""
        device = self.source.device
        rows, flip, own = torch.rand(3, n, generator=random, device=random.device).to(device)
        pairs = self[(rows * len(self)).long()]
        own = own < OWN_CLASS_SHARE
        edit = torch.where(own[:, None, None, None], pairs.source, pairs.edit)
        flip = (flip < 0.5)[:, None, None, None]
        backwards = torch.arange(edit.shape[-1] - 1, -1, -1, device=device)  # uint16 has no flip
        parts = {"source": pairs.source, "edit": edit, "mask": pairs.mask}
        parts = {n: torch.where(flip, part[..., backwards], part) for n, part in parts.items()}
        return replace(pairs, label=torch.where(own, pairs.source_label, pairs.label), **parts)


def draw_pairs(
    pipe, images: Tensor, labels: Tensor, random: torch.Generator, frames: Tensor | None = None
) -> EditPairs:
    """Edits each image into another class, with a strength and a mask drawn at random.

    Args:
        pipe: the teacher, see `whole_edit`.
        images: (n, C, H, W) as they are stored. labels: (n,) their classes, -1 where there is none.
        random: on the CPU.
        frames: (n, 1, H, W), 0 in padding, which is not edited. None: there is none.
    """
    n, classes = len(images), len(pipe.class_names)
    shift = torch.randint(1, max(classes, 2), (n,), generator=random)
    anything = torch.randint(classes, (n,), generator=random)
    label = torch.where(labels < 0, anything, (labels + shift) % classes)
    weak, u, region = torch.rand(3, n, generator=random)
    low = torch.where(weak < WEAK_SHARE, 0.0, WEAKEST)
    high = torch.where(weak < WEAK_SHARE, WEAKEST, STRONGEST)
    strength = high - (high - low) * u  # above 0: a strength of 0 paints nothing
    mask = draw_masks(n, images.shape[-2:], random)
    mask = torch.where((region < REGION_SHARE)[:, None, None, None], mask, torch.ones_like(mask))
    mask = mask if frames is None else mask * frames
    device, form = pipe.device, pipe.format
    inputs = (form.from_stored(images), mask, label, labels, strength)
    edited = whole_edit(pipe, *(part.to(device) for part in inputs), random, **TEACHER_STEPS)
    edit = form.to_stored(edited.cpu())
    return EditPairs(images, edit, mask.to(torch.uint8), labels, label, strength)
