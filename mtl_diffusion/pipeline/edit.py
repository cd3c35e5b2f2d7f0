"""Class-guided editing: a source and a class go in, the source turned into that class comes out.

There are no edited pairs to learn from. The first stage of training shows a degraded image with its
own class (`Edit`); sampling gives another class, and starts from the source with noise. The second
stage learns from whole edits that the first one made (`EditAtOnce`): one evaluation is an edit.
"""

import math

import torch

from .degradation import degrade, noise_level
from .masks import draw_masks
from .task import Choice, Hint, Task

# Noise level where sampling starts, over that of the degradation. With less noise fewer edits reach
# their class, with more noise less of the source is kept.
START = 3.0
STRONGEST = 0.95  # of the edits that are learned whole
REGION_SHARE = 0.25  # share of the samples that edit only a region; the others edit everything


class Edit(Task):
    name = "edit"
    required = frozenset({"image", "class_label"})
    optional = frozenset({"mask_image", "strength", "image_guidance_scale"})
    default_strength = 0.8
    default_steps = 12
    default_guidance_scale = 4.0

    def draw(self, n, size, class_dropout, generator):
        device = generator.device
        region = torch.rand(n, generator=generator, device=device) < REGION_SHARE
        mask = torch.where(region[:, None, None, None], draw_masks(n, size, generator), 1.0)
        # Guidance needs F(I, 0) and F(0, 0). Class and image are each dropped with the probability
        # class_dropout: half of the time alone, half of the time together.
        u = torch.rand(n, generator=generator, device=device)
        dropped = (u >= 0.5 * class_dropout) & (u < 1.5 * class_dropout)
        strength = torch.rand(n, generator=generator, device=device)
        return Choice(mask, u < class_dropout, strength, dropped)

    def condition(self, image, mask, strength, noise):
        # Strength 0 degrades nothing: nothing is painted, and the source comes out unchanged.
        mask = mask * (strength > 0)[:, None, None, None]
        shown = torch.where(mask > 0, degrade(image, strength, noise), image)
        return Hint(image=shown, mask=mask, strength=strength)

    def start(self, strength):
        return START * noise_level(strength)


class EditAtOnce(Edit):
    """The edit of a model that was taught whole edits: the source is shown as it is.

    It is answered in one evaluation from noise alone, which is soft where the teacher's edits
    differ. By default generate sharpens it in a second one, and keeps less of it. At strength 1,
    where nothing of the source is left in the teacher's edits, they are random, and their mean is a
    blur: so the strength acts as `STRONGEST` from there on.
    """

    name = "edit"
    default_strength = 0.9  # a learned edit is weaker than its teacher's of the same strength
    few_steps = 2
    at_once = True

    def condition(self, image, mask, strength, noise):
        mask = mask * (strength > 0)[:, None, None, None]
        return Hint(image=image, mask=mask, strength=strength.clamp(max=STRONGEST))

    def start(self, strength):
        return math.inf
