"""The whole edit of a model of many steps: up the ODE as the source, down again with a new class.

The source is carried to the noise from which the model itself would have drawn it, so what the
class does not change comes back as it was. On the way down the class guides by the difference that
it makes to *generate*, which has nothing but the class to go by, and most where it makes the most.
"""

import torch
from diffusers.utils.torch_utils import randn_tensor
from torch import Tensor

from ..pipeline.degradation import low_pass
from ..pipeline.denoiser import CLASS, Conditioning, Denoiser, build_conditioning
from ..pipeline.edit import STRONGEST, Edit
from ..pipeline.generate import Generate
from .ode import ode_end

LOWEST = 0.01  # noise level that an image is taken to have: it can't be seen
GUIDANCE_SCALE = 4.0  # of generate's direction
RELEVANCE_SIGMA = 1.0  # where answers are compared: objects are seen there, details are not
RELEVANCE_DRAWS = 2  # of noise
RELEVANCE_BLUR = 0.05  # standard deviation of the smoothing, as a share of the shorter side


@torch.no_grad()
def whole_edit(
    pipe,
    image: Tensor,
    mask: Tensor,
    label: Tensor,
    source_label: Tensor,
    strength: Tensor,
    generator: torch.Generator | list[torch.Generator],
    guidance_scale: float = GUIDANCE_SCALE,
    steps: int = Edit.default_steps,
    inversion_steps: int = 8,
    local: bool = True,
) -> Tensor:
    """Edits in `inversion_steps` evaluations, 4 for the weights, and 3 for each of the steps.

    An edit into the class of the source is the source.

    Args:
        pipe: a pipeline of many steps that has learned edit and generate.
        image: (B, C, H, W) in [-1, 1], the sources.
        mask: (B, 1, H, W) in {0, 1}, 1 = painted. Where it is 0 the source comes back.
        label: (B,) the classes that are asked for.
        source_label: (B,) those of the sources, -1 where it is not known.
        strength: (B,) in [0, 1]; from `STRONGEST` on it acts as that.
        generator: one, or one for each image, for the noise of the degradation and of the weights.
        guidance_scale: of generate's direction; 0 is off, which gives the source back.
        local: whether each pixel has a weight of its own; otherwise all weights are 1.

    Returns:
        (B, C, H, W) in [-1, 1].

    Source of the inversion: Song et al. 2021, arXiv:2010.02502, section 4.3.
    """
    if pipe.chains is not None or not {"edit", "generate"} <= set(pipe.tasks):
        raise ValueError(
            "pipe must be a pipeline of many steps that has learned edit and generate; it knows "
            f"{', '.join(pipe.tasks)}{' in few steps' if pipe.chains is not None else ''}"
        )
    strength = strength.clamp(max=STRONGEST)
    start = Edit().start(strength)
    other_class = (label != source_label).to(start.device)
    rows = ((start > LOWEST) & other_class).nonzero()[:, 0]  # other edits are their sources
    if not len(rows):
        return image.clone()
    edited, painted = image.clone(), mask > 0
    given = (image, mask, label, source_label, strength, start.view(-1, 1, 1, 1))
    source, mask, label, source_label, strength, start = (part[rows] for part in given)
    if isinstance(generator, list):
        generator = [generator[i] for i in rows.tolist()]

    network, words = (pipe.unet, pipe.scheduler), pipe.vocabulary
    noise = randn_tensor(source.shape, generator, source.device)
    hint = Edit().condition(source, mask, strength, noise)
    base = Denoiser.of(*network, build_conditioning(hint, Edit(), source_label, words))
    x = ode_end(base, source, torch.full_like(start, LOWEST), start, inversion_steps)

    hint = Generate().condition(source, mask, None, noise)
    toward = build_conditioning(hint, Generate(), label, words)
    away = toward.without(CLASS, words.null)
    weight = guidance_scale
    if local:
        weight *= relevance(class_difference(pipe, source, toward, away, generator), mask)
    direction = Denoiser.of(*network, toward) - Denoiser.of(*network, away)
    edited[rows] = ode_end(base + weight * direction, x, start, torch.zeros_like(start), steps)
    return torch.where(painted, edited.clamp(-1, 1), image)


def class_difference(
    pipe, image: Tensor, toward: Conditioning, away: Conditioning, generator
) -> Tensor:
    """(B, 1, H, W) how much the class changes the answer of generate: squared, smoothed.

    `image` is (B, C, H, W) in [-1, 1]; generate is conditioned with the class, and without it.
    Source: DiffEdit, Couairon et al. 2022, arXiv:2210.11427.
    """
    network = pipe.unet, pipe.scheduler
    both = Denoiser.of(*network, Conditioning.cat([toward, away]))
    total = torch.zeros_like(image[:, :1])
    for _ in range(RELEVANCE_DRAWS):
        noise = randn_tensor(image.shape, generator, image.device)
        noisy = image + RELEVANCE_SIGMA * noise
        given, without = both(noisy.repeat(2, 1, 1, 1), RELEVANCE_SIGMA).chunk(2)
        total += (given - without).square().sum(1, keepdim=True)
    blur = torch.full((len(image),), RELEVANCE_BLUR * min(image.shape[-2:]), device=image.device)
    return low_pass(total / RELEVANCE_DRAWS, blur)


def relevance(difference: Tensor, mask: Tensor) -> Tensor:
    """(B, 1, H, W) in [0, 2): 2 d / (d + mean of d), the mean over the painted pixels.

    It is 1 where the class makes as much difference d as on average, and 0 where it makes none.
    Both arguments are (B, 1, H, W); the mask is 1 where it is painted, else 0.
    """
    difference = difference.clamp_min(0)  # smoothing rounds
    painted = mask.sum((1, 2, 3), keepdim=True).clamp_min(1)
    mean = (difference * mask).sum((1, 2, 3), keepdim=True) / painted
    return 2 * difference / (difference + mean).clamp_min(torch.finfo(mean.dtype).tiny)
