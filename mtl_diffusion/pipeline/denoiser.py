"""The denoiser: its conditioning, EDM preconditioning around a stock UNet, and guidance.

Notation of Karras et al. 2022, arXiv:2206.00364:
    D(x; sigma) = c_skip x + c_out F(c_in x, c_noise).
The scheduler holds c_skip, c_out, c_in and c_noise, for training too.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor

from .task import Hint, Task
from .tokens import Vocabulary

TASK, CLASS, STRENGTH = range(3)  # places in the sequence of tokens


class Samples:
    """A dataclass of tensors with an entry for each sample; a field may be None."""

    def __len__(self) -> int:
        return len(next(iter(vars(self).values())))

    def __getitem__(self, rows):
        return self._each(lambda part: part[rows])

    def to(self, device: torch.device):
        return self._each(lambda part: part.to(device))

    def _each(self, change):
        parts = vars(self).values()
        return type(self)(*(None if part is None else change(part) for part in parts))

    @classmethod
    def cat(cls, several: Sequence):
        return cls(*map(torch.cat, zip(*(vars(one).values() for one in several), strict=True)))


@dataclass(frozen=True)
class Conditioning(Samples):
    """The inputs of the denoiser besides the noisy image, for B samples.

    Attributes:
        image: (B, C, H, W) the condition image, in the range of the images; zero where none is.
        mask: (B, 1, H, W) in {0, 1}, 1 = to be painted.
        tokens: (B, 3, V) task, class, strength: a distribution over the vocabulary each.
    """

    image: Tensor
    mask: Tensor
    tokens: Tensor

    def without(self, place: int, null: int, rows: Tensor | None = None) -> "Conditioning":
        """Sets the token at a place to null, for all samples or for the rows (B,) bool."""
        tokens = self.tokens.clone()
        nothing = torch.zeros_like(tokens[:, place])
        nothing[:, null] = 1
        if rows is not None:
            nothing = torch.where(rows[:, None], nothing, tokens[:, place])
        tokens[:, place] = nothing
        return replace(self, tokens=tokens)

    def without_image(self, null: int, rows: Tensor | None = None) -> "Conditioning":
        """Hides the image inside the mask, and with it the strength."""
        known = self.image * (1 - self.mask)
        if rows is not None:
            known = torch.where(rows[:, None, None, None], known, self.image)
        return replace(self.without(STRENGTH, null, rows), image=known)


def build_conditioning(
    hint: Hint, task: Task, label: Tensor, vocabulary: Vocabulary
) -> Conditioning:
    """A task's conditioning, for class labels (B,) in 0..K-1, negative for none."""
    words = vocabulary.tasks[task.name], vocabulary.class_ids(label), hint.strength
    return Conditioning(hint.image, hint.mask, vocabulary.tokens(*words))


def predict(unet, scheduler, noisy: Tensor, sigma: Tensor, conditioning: Conditioning) -> Tensor:
    """The raw output F of the network.

    Args:
        unet: a UNet2DConditionModel with `ImageFormat.input_channels` and one-hot tokens.
        scheduler: an EDM scheduler, which computes the preconditioning.
        noisy: (B, C, H, W) float32, image + sigma noise. Known pixels of it are not used.
        sigma: (B, 1, 1, 1), because (B,) would broadcast along the width in silence.

    Returns:
        (B, C, H, W) float32.
    """
    samples = noisy.shape[0]  # len() would fix it in a graph that is traced
    if sigma.shape != (samples, 1, 1, 1):
        raise ValueError(f"sigma has shape {tuple(sigma.shape)}; it must be ({samples}, 1, 1, 1)")
    # c_in scales the noisy channels alone; the condition image is scaled to unit variance.
    noisy = scheduler.precondition_inputs(noisy, sigma)
    shown = conditioning.image / scheduler.config.sigma_data
    # Known pixels replace the noisy ones, too: short runs learn to use them in the channels of the
    # pixels that they paint, and hardly from other channels.
    noisy = torch.where(conditioning.mask > 0, noisy, shown)
    channels = torch.cat([noisy, shown, conditioning.mask], dim=1).to(unet.dtype)
    tokens = conditioning.tokens.to(unet.dtype)
    timestep = scheduler.precondition_noise(sigma).flatten().to(unet.dtype)  # (B,)
    words = {"encoder_hidden_states": tokens, "class_labels": tokens.flatten(1)}
    return unet(channels, timestep, **words, return_dict=False)[0].float()


class Term(NamedTuple):
    """The answer to one conditioning, and its weight inside an interval of noise levels.

    Attributes:
        weight: a number, or (B, 1, 1, 1) or (B, 1, H, W).
        low, high: both included; numbers, or (B, 1, 1, 1). Elsewhere the weight is 0.
    """

    conditioning: Conditioning
    weight: float | Tensor = 1.0
    low: float | Tensor = 0.0
    high: float | Tensor = math.inf

    def weight_at(self, sigma: float | Tensor) -> float | Tensor:
        """The weight at a noise level, or at one of each sample (B, 1, 1, 1)."""
        if not isinstance(self.weight, Tensor) and not self.weight:
            return 0.0
        slack = 1 + 1e-5  # schedules are rounded: a sigma_max of 80 comes out as 79.99998
        return self.weight * ((self.low / slack <= sigma) & (sigma <= self.high * slack))


@dataclass(frozen=True)
class Denoiser:
    """D(x; sigma) of the network and a conditioning, or a weighted sum of several such answers.

    `a + scale * (b - c)` guides a denoiser by the difference of two, and `within` limits the
    difference to some noise levels. A sum that is called has weights that add up to 1 everywhere.
    All conditionings are evaluated in one batch, and those without weight are not.
    """

    unet: object
    scheduler: object
    terms: tuple[Term, ...]

    @classmethod
    def of(cls, unet, scheduler, conditioning: Conditioning) -> "Denoiser":
        """The denoiser of one conditioning; for unet and scheduler see `predict`."""
        return cls(unet, scheduler, (Term(conditioning),))

    def __add__(self, other: "Denoiser") -> "Denoiser":
        return replace(self, terms=self.terms + other.terms)

    def __sub__(self, other: "Denoiser") -> "Denoiser":
        return self + -1.0 * other

    def __rmul__(self, scale: float | Tensor) -> "Denoiser":
        """Scaled by a number, or by (B, 1, 1, 1) or (B, 1, H, W)."""
        terms = (term._replace(weight=scale * term.weight) for term in self.terms)
        return replace(self, terms=tuple(terms))

    def within(self, low: float | Tensor, high: float | Tensor) -> "Denoiser":
        """Zero outside of the noise levels low to high. Kynkaanniemi et al. 2024, 2404.07724."""
        return replace(self, terms=tuple(t._replace(low=low, high=high) for t in self.terms))

    def __call__(self, x: Tensor, sigma: float | Tensor) -> Tensor:
        """D, (B, C, H, W) float32.

        Args:
            x: (B, C, H, W) float32, image + sigma noise.
            sigma: one noise level for all samples, or (B, 1, 1, 1).
        """
        levels = _levels(sigma, x)
        return self.scheduler.precondition_outputs(x, self.output(x, sigma), levels)

    def output(self, x: Tensor, sigma: float | Tensor) -> Tensor:
        """F of that D, as diffusers' schedulers take it: the weights sum to 1, so F combines alike.

        With noise levels of each sample, each conditioning is evaluated for those samples alone
        where its weight is not 0; the host then waits for the weights.
        """
        weights: dict[int, list] = {}  # of equal conditionings, which are evaluated once
        for term in self.terms:
            found = weights.setdefault(id(term.conditioning), [term.conditioning, 0])
            found[1] = found[1] + term.weight_at(sigma)
        levels, parts = _levels(sigma, x), []
        for conditioning, weight in weights.values():
            if not isinstance(weight, Tensor):
                if weight:
                    parts.append((slice(None), weight, conditioning))
            elif not isinstance(sigma, Tensor) or torch.compiler.is_exporting():
                parts.append((slice(None), weight, conditioning))
            elif len(rows := weight.expand(len(x), -1, -1, -1).flatten(1).any(1).nonzero()[:, 0]):
                parts.append((rows, weight[rows], conditioning[rows]))
        F = predict(
            self.unet,
            self.scheduler,
            torch.cat([x[rows] for rows, _, _ in parts]),
            torch.cat([levels[rows] for rows, _, _ in parts]),
            Conditioning.cat([conditioning for _, _, conditioning in parts]),
        ).split([conditioning.mask.shape[0] for _, _, conditioning in parts])
        total = torch.zeros_like(x)
        for (rows, weight, _), part in zip(parts, F, strict=True):
            if isinstance(rows, slice):
                total = total + weight * part
            else:
                total = total.index_add(0, rows, weight * part)
        return total


def guided(
    unet,
    scheduler,
    conditioning: Conditioning,
    null: int,
    scale: float | Tensor,
    image_scale: float | Tensor = 1.0,
    interval: tuple[float | Tensor, float | Tensor] = (0.0, math.inf),
) -> Denoiser:
    """D(0,0) + s_I [D(I,0) - D(0,0)] + s_C [D(I,c) - D(I,0)] in an interval, else D(I,c).

    A scale of 1 is off: one evaluation of both, two where s_I is 1, else three.

    Args:
        null: id of the null token.
        scale: s_C, the class's. image_scale: s_I, the condition image's.
        interval: the lowest and the highest noise level.

    Source: Brooks et al. 2023, InstructPix2Pix, eq. 3.
    """
    image = conditioning.without(CLASS, null)
    neither = image.without_image(null)
    both, image, neither = (
        Denoiser.of(unet, scheduler, one) for one in (conditioning, image, neither)
    )
    by_class = (scale - 1) * (both - image)
    by_image = (image_scale - 1) * (image - neither)
    return both + by_class.within(*interval) + by_image.within(*interval)


def _levels(sigma: float | Tensor, x: Tensor) -> Tensor:
    """(B, 1, 1, 1)."""
    if isinstance(sigma, Tensor):
        return sigma
    return torch.full((x.shape[0], 1, 1, 1), sigma, device=x.device, dtype=torch.float32)
