"""Class-guided editing: a source and a class go in, the source turned into that class comes out.

There are no edited pairs to learn from. The first stage of training shows a degraded image with its
own class (`Edit`); sampling gives another class, and starts from the source with noise. The second
stage learns from whole edits that the first one made (`EditAtOnce`): one evaluation is an edit.
"""

import math

import torch
from torch import Tensor

from .degradation import degrade, low_pass, noise_level
from .masks import draw_masks
from .task import Choice, Hint, Task

# Noise level where sampling starts, over that of the degradation. With less noise fewer edits reach
# their class, with more noise less of the source is kept.
START = 3.0
STRONGEST = 0.95  # of the edits that are learned whole
# Of an edit in one evaluation: the change with half of the largest weight, as a share of the mean,
# and the blur of the changes, as a share of the shorter side.
HALF, CHANGE_BLUR = 0.3, 0.05
REGION_SHARE = 0.25  # share of the samples that edit only a region; the others edit everything


class Edit(Task):
    name = "edit"
    required = frozenset({"image", "class_label"})
    optional = frozenset({"mask_image", "strength", "image_guidance_scale"})
    default_strength = 0.7  # less guidance needs more, and keeps less of the source
    default_steps = 12
    default_guidance_scale = 6.0

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

    It is answered in one evaluation from noise alone. The answer is the mean of many edits: too
    near to the source where they change it, and slightly changed everywhere else. So each pixel's
    change has a weight (`change`), which guidance_scale multiplies. By default generate sharpens
    the edit in a second evaluation. At strength 1, where nothing of the source is left in the
    teacher's edits, they are random, and their mean is a blur: so the strength acts as `STRONGEST`
    from there on.
    """

    name = "edit"
    default_strength = 0.9  # a learned edit is weaker than its teacher's of the same strength
    default_guidance_scale = 1.5
    few_steps = 2
    at_once = True

    def condition(self, image, mask, strength, noise):
        mask = mask * (strength > 0)[:, None, None, None]
        return Hint(image=image, mask=mask, strength=strength.clamp(max=STRONGEST))

    def start(self, strength):
        return math.inf

    def change(
        self,
        edited: Tensor,
        image: Tensor,
        mask: Tensor,
        scale: float = default_guidance_scale,
    ) -> Tensor:
        """(B, 1, H, W) weights of the change from the image to the edit, in [0, scale).

        Where it is painted they are scale d / (d + HALF m), elsewhere 0: d is the squared change,
        smoothed, and m its mean over the painted pixels. The images are (B, C, H, W); the mask is
        (B, 1, H, W) in {0, 1}, 1 where it is painted.
        """
        blur = torch.full_like(image[:, 0, 0, 0], CHANGE_BLUR * min(image.shape[-2:]))
        d = low_pass((edited - image).square().sum(1, keepdim=True), blur).clamp_min(0)
        m = (d * mask).sum((1, 2, 3), keepdim=True)
        m = m / mask.sum((1, 2, 3), keepdim=True).clamp_min(1)
        return scale * mask * d / (d + HALF * m).clamp_min(torch.finfo(d.dtype).tiny)
