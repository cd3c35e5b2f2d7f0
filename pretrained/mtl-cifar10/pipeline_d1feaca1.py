"""The pipeline: one model, several tasks.

pipe = DiffusionPipeline.from_pretrained("user/model", trust_remote_code=True)
pipe(task="generate", class_label="cat").images[0]
pipe(task="inpaint", image=image, mask_image=mask).images[0]
pipe(task="edit", image=image, class_label="dog", strength=0.7).images[0]

Generated from the files of mtl_diffusion that are named below. It needs torch, diffusers,
transformers, safetensors, PIL and numpy. Its name ends in a digest of its text: diffusers copies
the code of all models to one folder, where another version of the same name would replace it.
"""

import copy
import hashlib
import json
import math
import numbers
import re
import time
import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from functools import lru_cache
from itertools import pairwise
from pathlib import Path
from typing import ClassVar, Optional

import numpy as np
import torch
from diffusers import (
    DiffusionPipeline,
    EDMDPMSolverMultistepScheduler,
    EDMEulerScheduler,
    ImagePipelineOutput,
    UNet2DConditionModel,
)
from diffusers.image_processor import VaeImageProcessor
from diffusers.utils.torch_utils import randn_tensor
from PIL import Image
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase


# --------------------------------------------------------------------------------------------------
# degradation.py
#
# Blur-and-noise degradation of the source, by strength.
# --------------------------------------------------------------------------------------------------


SIGMA_DATA = 0.5  # standard deviation of images in [-1, 1], as in EDM; strength 1 is noise of it
BLUR = 0.25  # standard deviation of the low-pass at strength 1, as a share of the image's width


def dct_matrix(size: int, device: torch.device) -> Tensor:
    """(size, size) orthonormal DCT-II: row k is the cosine of k half-periods over the image."""
    k = torch.arange(size, device=device, dtype=torch.float32)
    basis = torch.cos(math.pi / size * k[:, None] * (k[None, :] + 0.5))
    basis[0] *= math.sqrt(0.5)
    return basis * math.sqrt(2 / size)


def low_pass(image: Tensor, std: Tensor) -> Tensor:
    """Gaussian blur with reflecting borders: the heat kernel, diagonal under the DCT.

    Args:
        image: (B, C, H, W), square.
        std: (B,) standard deviation of the blur in pixels, >= 0.

    Source: Rissanen et al. 2023, Generative modelling with inverse heat dissipation, eq. 6.
    """
    size = image.shape[-1]
    basis = dct_matrix(size, image.device)
    k = torch.arange(size, device=image.device, dtype=torch.float32)
    frequency = math.pi / size * k  # radians a pixel
    decay = torch.exp(-0.5 * (frequency * std[:, None]) ** 2)  # (B, size)
    kernel = basis.T @ (decay[:, :, None] * basis)  # (B, size, size)
    return torch.einsum("bij,bcjk,blk->bcil", kernel, image, kernel)


def noise_level(strength: float) -> float:
    """Noise of the degradation as a multiple of its signal, in units of image values; inf at 1."""
    if strength >= 1:
        return math.inf
    return SIGMA_DATA * math.tan(math.pi / 2 * strength**2)


def degrade(image: Tensor, strength: Tensor, noise: Tensor) -> Tensor:
    """cos(pi d / 2) low_pass(image, d BLUR W) + sin(pi d / 2) SIGMA_DATA noise, at d = strength^2.

    At every frequency the signal-to-noise ratio falls as the strength grows. Strength 0 gives the
    image back bit for bit, strength 1 gives pure noise, and the variance hardly changes. The
    square gives more of the range to weak degradations: training draws strengths uniformly, and
    edits that keep their source need weak ones.

    Args:
        image: (B, 3, H, W) in [-1, 1].
        strength: (B,) in [0, 1].
        noise: (B, 3, H, W) standard normal.
    """
    depth = strength.square()
    blurred = low_pass(image, depth * BLUR * image.shape[-1])
    d = depth[:, None, None, None]
    # cos(pi / 2) is 4e-8 in float32: zero makes strength 1 exact.
    signal = torch.where(d < 1, torch.cos(math.pi / 2 * d), 0.0)
    degraded = signal * blurred + torch.sin(math.pi / 2 * d) * SIGMA_DATA * noise
    return torch.where(d > 0, degraded, image)


# --------------------------------------------------------------------------------------------------
# chains.py
#
# Models that draw in few steps: the noise levels that they visit.
#
# A chain is the noise levels of one number of steps, the highest first. At each of its levels the
# model has learned the jump to the next one, and from the last to the image: the end of the teacher's
# probability-flow ODE from there. A jump is one Euler step, x' = (s'/s) x + (1 - s'/s) D(x; s). The
# noise level tells the model which jump is asked for, so no level belongs to two chains.
# --------------------------------------------------------------------------------------------------


Chains = Sequence[Sequence[float]]

# As shares of the highest noise level of sampling.
_SHARES = ((1.0,), (1 / 2, 0.01), (1 / 4, 0.05, 0.0125, 0.003))

# Natural images in [-1, 1] (measured on CIFAR-10): the standard deviation of a coefficient of the
# orthonormal DCT is SPECTRUM * size / max(frequency, LOWEST), and GREY the correlation of channels.
_SPECTRUM, _LOWEST, _GREY = 0.17, 0.6, 0.9


def default_chains(sigma_max: float) -> list[list[float]]:
    """The chains of 1, 2 and 4 steps; the default of sampling is the last."""
    return [[share * sigma_max for share in shares] for shares in _SHARES]


def jumps(chains: Chains) -> list[tuple[float, float]]:
    """(from, to) of every jump of every chain; to is 0 at its end."""
    return [pair for levels in chains for pair in zip(levels, [*levels[1:], 0.0], strict=True)]


def first_latents(noise: Tensor, sigma: float) -> Tensor:
    """Latents of the first level of a chain, where sigma times the noise alone would be too little.

    A chain begins where an image is not yet lost in the noise: at sigma 20 the mean of 32x32 pixels
    has a standard deviation of 9 before the noise and of 22 with it. So each frequency gets the
    variance that natural images have there, which falls as 1 / frequency^2 (Field 1987, Relations
    between the statistics of natural images and the response properties of cortical cells).

    Args:
        noise: (B, 3, H, W) standard normal, square.

    Returns:
        (B, 3, H, W), of the same directions in each frequency.
    """
    size = noise.shape[-1]
    basis = dct_matrix(size, noise.device)
    k = torch.arange(size, device=noise.device, dtype=torch.float32)
    frequency = (k[:, None].square() + k[None, :].square()).sqrt()
    variance = (_SPECTRUM * size / frequency.clamp_min(_LOWEST)).square()
    # The eigenvectors of three channels of one correlation are grey, and all that is orthogonal.
    grey = (sigma**2 + (1 + 2 * _GREY) * variance).sqrt()
    colour = (sigma**2 + (1 - _GREY) * variance).sqrt()
    coefficients = basis @ noise @ basis.T
    mean = coefficients.mean(1, keepdim=True)
    return basis.T @ (grey * mean + colour * (coefficients - mean)) @ basis


def check_chains(chains) -> None:
    """Raises a ValueError if they are not lists of falling levels, with no level twice."""
    try:
        levels = [level for chain in chains for level in chain]
        falling = all(list(chain) == sorted({*chain}, reverse=True) for chain in chains)
        lengths = [len(chain) for chain in chains]
        fits = levels and falling and all(level > 0 for level in levels) and 0 not in lengths
        fits = fits and len({*levels}) == len(levels) and len({*lengths}) == len(lengths)
    except TypeError:
        fits = False
    if not fits:
        raise ValueError(
            f"chains are {chains}; they must be lists of noise levels above 0, falling, no two of "
            "one length and no level twice: compare model_index.json with that of the published "
            "model"
        )


def karras_ramp(levels: Sequence[float], config) -> Tensor:
    """Noise levels as EDMEulerScheduler takes them: the places in [0, 1] of its Karras schedule.

    Args:
        config: the scheduler's.
    """
    low, high = (config[name] ** (1 / config.rho) for name in ("sigma_min", "sigma_max"))
    roots = torch.tensor(levels, dtype=torch.float64) ** (1 / config.rho)
    return (high - roots) / (high - low)


# --------------------------------------------------------------------------------------------------
# task.py
#
# The contract of a task: what training draws at random, and the input that it conditions on.
# --------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Choice:
    """Random draws of training for B samples of one task.

    Attributes:
        mask: (B, 1, H, W) in {0, 1}, 1 = to be painted.
        drop_class: (B,) bool, the class token becomes null.
        strength: (B,) in [0, 1], NaN for none; or None if the task has no strength.
        drop_image: (B,) bool, the condition image is hidden inside the mask and the strength
            becomes null; or None if the task drops no image.
    """

    mask: Tensor
    drop_class: Tensor
    strength: Tensor | None = None
    drop_image: Tensor | None = None


@dataclass(frozen=True)
class Hint:
    """The image that a task conditions on, for B samples.

    Attributes:
        image: (B, 3, H, W) in the range of the images, zero where nothing is shown.
        mask: (B, 1, H, W) in {0, 1}. 1 = to be painted: the loss is taken there alone.
            0 = known: `image` is exact there, and comes out unchanged.
        strength: (B,) in [0, 1], NaN for none; or None if the task has no strength.
    """

    image: Tensor
    mask: Tensor
    strength: Tensor | None = None


class Task(ABC):
    """A task is a name, the arguments it takes when sampling, and two functions.

    Both functions use torch alone and are vectorised over the batch. They get all randomness as
    arguments, so that a training step is a function of its key.

    Class attributes:
        name: the value of `pipe(task=name)`, and the name of the task's token.
        required: arguments of the pipeline that the task needs.
        optional: further arguments of the pipeline that it takes. Any other one is refused.
        default_strength: the strength when sampling without one; None if the task takes none.
        default_steps: steps when sampling without a number of them.
        default_guidance_scale: the guidance scale when sampling without one; 1 is off.
        default_guidance_interval: the lowest and highest noise level (sigma) of guidance when
            sampling without them.
        local_guidance: whether generate, if the model has learned it, gives the direction of the
            class, and guidance is weaker where the class makes little difference to the source.
        default_inversion_steps: steps of the inversion of the source when sampling without a
            number of them; 0 is off.
        few_steps: steps of a model that draws in few steps, when sampling without a number of
            them; None: those of its last chain.
    """

    name: ClassVar[str]
    required: ClassVar[frozenset[str]] = frozenset()
    optional: ClassVar[frozenset[str]] = frozenset()
    default_strength: ClassVar[float | None] = None
    default_steps: ClassVar[int] = 18
    default_guidance_scale: ClassVar[float] = 1.0
    default_guidance_interval: ClassVar[tuple[float, float]] = (0.0, math.inf)
    local_guidance: ClassVar[bool] = False
    default_inversion_steps: ClassVar[int] = 0
    few_steps: ClassVar[int | None] = None

    ARGUMENTS: ClassVar[frozenset[str]] = frozenset(
        {"image", "mask_image", "class_label", "strength", "image_guidance_scale"}
        | {"num_inversion_steps", "source_class"}
    )

    def __init_subclass__(cls, **kwargs):
        super().__init_subclass__(**kwargs)
        name = cls.__dict__.get("name")
        if not (isinstance(name, str) and name.isidentifier() and name.islower()):
            raise TypeError(f"{cls.__name__}.name must be a lower-case identifier, not {name!r}")
        if unknown := (cls.required | cls.optional) - Task.ARGUMENTS:
            raise TypeError(
                f"{cls.__name__} takes {sorted(unknown)}, but a task may take only "
                f"{sorted(Task.ARGUMENTS)}"
            )
        if both := cls.required & cls.optional:
            raise TypeError(f"{cls.__name__} has {sorted(both)} both as required and as optional")
        takes_strength = "strength" in cls.required | cls.optional
        default = cls.default_strength
        if takes_strength and (default is None or not 0 <= default <= 1):
            raise TypeError(f"{cls.__name__} takes a strength: give a default_strength in [0, 1]")
        if not cls.default_guidance_scale >= 0:
            raise TypeError(f"{cls.__name__}.default_guidance_scale must be 0 or more; 1 is off")

    @abstractmethod
    def draw(self, n: int, size: int, class_dropout: float, generator: torch.Generator) -> Choice:
        """Draws a training input for n samples, on the generator's device.

        Args:
            n: number of samples, possibly 0.
            size: height and width of the images in pixels.
            class_dropout: probability in [0, 1) that the class token is dropped.
            generator: the only source of randomness.
        """

    @abstractmethod
    def condition(
        self, image: Tensor, mask: Tensor, strength: Tensor | None, noise: Tensor
    ) -> Hint:
        """Builds the conditioning input. Training and sampling both call this.

        Args:
            image: (B, 3, H, W) in [-1, 1], the source. A task without a source gets zeros.
            mask: (B, 1, H, W) in {0, 1}, 1 = to be painted.
            strength: (B,) in [0, 1]. A task without a strength ignores it.
            noise: (B, 3, H, W) standard normal, for degrading the source. It is independent of
                the noise of the diffusion, which a task never gets.
        """

    def start(self, strength: float | None) -> float:
        """The noise level (sigma) where sampling starts, from the source with that much noise.

        Above the highest noise level of the sampler it starts from noise alone.

        Args:
            strength: in [0, 1], None if the task has none.
        """
        return math.inf


def bernoulli(n: int, probability: float, generator: torch.Generator) -> Tensor:
    """(n,) bool, each true with the given probability."""
    return torch.rand(n, generator=generator, device=generator.device) < probability


# --------------------------------------------------------------------------------------------------
# tokens.py
#
# The meaning of the tokens, read from the tokenizer's vocabulary.
#
# Ids are stored in the vocabulary alone. Its words are `<null>`, `<task:NAME>`, `<class:NAME>`,
# `<strength:I>` for the levels I / (L - 1), and `<reserved:I>`: ids that a new task or class can
# take without changing a shape.
# --------------------------------------------------------------------------------------------------


NULL = "<null>"
WORD = re.compile(r"<(task|class|strength|reserved):(.+)>", re.DOTALL)


@dataclass(frozen=True)
class Vocabulary:
    """The ids of a model's words.

    Attributes:
        null: id of the null token; it replaces tokens that are dropped.
        tasks: task name -> id.
        classes: class name -> id, in the order of the class labels.
        strengths: ids of the strength levels, from 0 to 1.
        reserved: ids that are free.
        size: number of ids, V.
    """

    null: int
    tasks: dict[str, int]
    classes: dict[str, int]
    strengths: tuple[int, ...]
    reserved: tuple[int, ...]
    size: int

    @classmethod
    def of(cls, words: Mapping[str, int]) -> "Vocabulary":
        """Reads word -> id, as `tokenizer.get_vocab()` gives it.

        Raises:
            ValueError: the words aren't those of such a vocabulary.
        """
        if sorted(words.values()) != list(range(len(words))) or NULL not in words:
            raise ValueError(
                f"the tokenizer's vocabulary has {len(words)} words; it needs {NULL} and the ids "
                f"0..{len(words) - 1}, each once. Load a tokenizer that was saved with this model."
            )
        kinds = {"task": {}, "class": {}, "strength": {}, "reserved": {}}
        for word, index in sorted(words.items(), key=lambda item: item[1]):
            if word == NULL:
                continue
            match = WORD.fullmatch(word)
            if match is None:
                raise ValueError(f"the tokenizer's vocabulary has the word {word!r}, of no kind")
            kinds[match[1]][match[2]] = index
        levels = kinds["strength"]
        if len(levels) < 2 or set(levels) != {str(i) for i in range(len(levels))}:
            raise ValueError(
                f"the tokenizer's vocabulary has the strength levels {sorted(levels)}; it needs "
                "two or more, numbered from 0"
            )
        return cls(
            null=words[NULL],
            tasks=kinds["task"],
            classes=kinds["class"],
            strengths=tuple(levels[str(i)] for i in range(len(levels))),
            reserved=tuple(kinds["reserved"].values()),
            size=len(words),
        )

    def class_ids(self, labels: Tensor) -> Tensor:
        """Class labels (B,) -> ids (B,). A negative label means no class."""
        table = _table((*self.classes.values(), self.null), labels.device)
        return table[torch.where(labels < 0, len(self.classes), labels)]

    def tokens(self, task: Tensor | int, label: Tensor, strength: Tensor | None) -> Tensor:
        """The three tokens of B samples, as distributions over the vocabulary.

        Args:
            task: (B,) ids, or one id for all.
            label: (B,) class ids, not labels.
            strength: (B,) in [0, 1], NaN or None for null. Two neighbouring levels share it.

        Returns:
            (B, 3, V) float32: task, class, strength; each row sums to 1.
        """
        task = torch.full_like(label, task) if isinstance(task, int) else task
        null = self._one_hot(torch.full_like(label, self.null))
        ids = self._one_hot(torch.stack([task, label], 1))
        if strength is None:
            return torch.cat([ids, null[:, None]], dim=1)
        known = ~strength.isnan()
        position = strength.nan_to_num().clamp(0, 1) * (len(self.strengths) - 1)
        low = position.floor().clamp(max=len(self.strengths) - 2)
        share = (position - low)[:, None]
        levels = _table(self.strengths, label.device)
        low = low.long()
        level = (1 - share) * self._one_hot(levels[low]) + share * self._one_hot(levels[low + 1])
        third = torch.where(known[:, None], level, null)
        return torch.cat([ids, third[:, None]], dim=1)

    def _one_hot(self, ids: Tensor) -> Tensor:
        """(...) ids -> (..., V) float32. torch's one_hot is of integers and waits for the ids."""
        zeros = torch.zeros(*ids.shape, self.size, device=ids.device, dtype=torch.float32)
        return zeros.scatter_(-1, ids[..., None], 1.0)


@lru_cache(maxsize=32)
def _table(ids: tuple[int, ...], device: torch.device) -> Tensor:
    """The ids on a device. Cached: a fresh copy in each step would synchronise with the host."""
    return torch.tensor(ids, device=device)


# --------------------------------------------------------------------------------------------------
# denoiser.py
#
# The denoiser: its conditioning, EDM preconditioning around a stock UNet, and guidance.
#
# Notation of Karras et al. 2022, arXiv:2206.00364:
#     D(x; sigma) = c_skip x + c_out F(c_in x, c_noise).
# Everything here returns F. The scheduler holds c_skip, c_out, c_in and c_noise, for training too.
# --------------------------------------------------------------------------------------------------


CHANNELS = 7  # noisy image with the known pixels in it, condition image, mask
TASK, CLASS, STRENGTH = range(3)  # places in the sequence of tokens


@dataclass(frozen=True)
class Conditioning:
    """The inputs of the denoiser besides the noisy image, for B samples.

    Attributes:
        image: (B, 3, H, W) the condition image, in the range of the images; zero where none is.
        mask: (B, 1, H, W) in {0, 1}, 1 = to be painted.
        tokens: (B, 3, V) task, class, strength: a distribution over the vocabulary each.
    """

    image: Tensor
    mask: Tensor
    tokens: Tensor

    def __len__(self) -> int:
        return len(self.image)

    def __getitem__(self, rows) -> "Conditioning":
        return Conditioning(*(getattr(self, field.name)[rows] for field in fields(self)))

    @staticmethod
    def cat(parts: list["Conditioning"]) -> "Conditioning":
        return Conditioning(
            *(torch.cat([getattr(p, f.name) for p in parts]) for f in fields(Conditioning))
        )

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


@dataclass(frozen=True)
class LocalGuidance:
    """Guidance by the difference that a class makes to another task, pixel by pixel.

    Attributes:
        base: the conditioning that is guided: of the class of the source, or of none.
        guide: the conditioning of the other task, with the class.
        weight: (B, 1, H, W), multiplies the guidance scale.
    """

    base: Conditioning
    guide: Conditioning
    weight: Tensor

    def __getitem__(self, rows) -> "LocalGuidance":
        return LocalGuidance(self.base[rows], self.guide[rows], self.weight[rows])


def build_conditioning(
    hint: Hint, task: Task, label: Tensor, vocabulary: Vocabulary
) -> Conditioning:
    """A task's conditioning image and tokens, encoded for the UNet.

    Args:
        label: (B,) class labels in 0..K-1, negative for none.
    """
    tokens = vocabulary.tokens(
        vocabulary.tasks[task.name], vocabulary.class_ids(label), hint.strength
    )
    return Conditioning(image=hint.image, mask=hint.mask, tokens=tokens)


def predict(unet, scheduler, noisy: Tensor, sigma: Tensor, conditioning: Conditioning) -> Tensor:
    """The raw output F of the network.

    Args:
        unet: a UNet2DConditionModel with `CHANNELS` input channels and one-hot tokens.
        scheduler: an EDM scheduler, which computes the preconditioning.
        noisy: (B, 3, H, W) float32, image + sigma noise. Known pixels of it are not used.
        sigma: (B, 1, 1, 1), because (B,) would broadcast along the width in silence.

    Returns:
        (B, 3, H, W) float32.
    """
    if sigma.shape != (len(noisy), 1, 1, 1):
        raise ValueError(
            f"sigma has shape {tuple(sigma.shape)}; it must be ({len(noisy)}, 1, 1, 1)"
        )
    # c_in scales the noisy channels alone; the condition image is scaled to unit variance.
    noisy = scheduler.precondition_inputs(noisy, sigma)
    shown = conditioning.image / scheduler.config.sigma_data
    # Known pixels replace the noisy ones, too: short runs learn to use them in the channels of the
    # pixels that they paint, and hardly from other channels.
    noisy = torch.where(conditioning.mask > 0, noisy, shown)
    channels = torch.cat([noisy, shown, conditioning.mask], dim=1).to(unet.dtype)
    tokens = conditioning.tokens.to(unet.dtype)
    timestep = scheduler.precondition_noise(sigma).flatten().to(unet.dtype)  # (B,)
    output = unet(
        channels,
        timestep,
        encoder_hidden_states=tokens,
        class_labels=tokens.flatten(1),
        return_dict=False,
    )[0]
    return output.float()


def predict_guided(
    unet,
    scheduler,
    noisy: Tensor,
    sigma: Tensor,
    conditioning: Conditioning,
    null: int,
    guidance_scale: float = 1.0,
    image_guidance_scale: float = 1.0,
    local: LocalGuidance | None = None,
) -> Tensor:
    """F(0,0) + s_I [F(I,0) - F(0,0)] + s_C [F(I,c) - F(I,0)], all evaluations in one batch.

    A scale of 1 is off. The weights sum to 1, so combining F equals combining D. A branch of weight
    zero is not evaluated: one evaluation without guidance, two where s_I is 1, else up to three.
    With local guidance, where s_C is neither 0 nor 1, the last difference is that of another task,
    and F(I,0) that of another class: three evaluations, or four.

    Args:
        null: id of the null token.
        guidance_scale: s_C, the class's.
        image_guidance_scale: s_I, the condition image's.

    Source: Brooks et al. 2023, InstructPix2Pix, eq. 3.
    """
    if local is None or guidance_scale in (0, 1):
        branches = [
            (guidance_scale, conditioning),
            (image_guidance_scale - guidance_scale, conditioning.without(CLASS, null)),
            (1 - image_guidance_scale, conditioning.without_image(null).without(CLASS, null)),
        ]
    else:
        weight = guidance_scale * local.weight
        branches = [
            (weight, local.guide),
            (-weight, local.guide.without(CLASS, null)),
            (image_guidance_scale, local.base),
            (1 - image_guidance_scale, local.base.without_image(null).without(CLASS, null)),
        ]
    branches = [(w, branch) for w, branch in branches if isinstance(w, Tensor) or w != 0]
    n = len(branches)
    F = predict(
        unet,
        scheduler,
        noisy.repeat(n, 1, 1, 1),
        sigma.repeat(n, 1, 1, 1),
        Conditioning.cat([branch for _, branch in branches]),
    )
    return sum(weight * part for (weight, _), part in zip(branches, F.chunk(n), strict=True))


# --------------------------------------------------------------------------------------------------
# generate.py
#
# Generation without a source, with a class or without.
# --------------------------------------------------------------------------------------------------


class Generate(Task):
    name = "generate"
    optional = frozenset({"class_label"})
    default_guidance_scale = 2.0
    # At higher noise levels guidance costs diversity. Kynkäänniemi et al. 2024, arXiv:2404.07724.
    default_guidance_interval = (0.28, 2.9)

    def draw(self, n: int, size: int, class_dropout: float, generator: torch.Generator) -> Choice:
        return Choice(
            mask=torch.ones(n, 1, size, size, device=generator.device),
            drop_class=bernoulli(n, class_dropout, generator),
        )

    def condition(
        self, image: Tensor, mask: Tensor, strength: Tensor | None, noise: Tensor
    ) -> Hint:
        return Hint(image=torch.zeros_like(image), mask=torch.ones_like(mask))


# --------------------------------------------------------------------------------------------------
# inputs.py
#
# Reads the arguments of the pipeline as tensors; errors name what came and what to do.
# --------------------------------------------------------------------------------------------------


MAX_COUNT = 10_000  # of steps, and of images for each sample
WHITE_MODES = ("1", "L", "RGB")  # of PIL images that serve as masks: white is 255 in each


@dataclass(frozen=True)
class Inputs:
    """The arguments of a call as tensors, one entry a sample.

    Attributes:
        image: (B, 3, H, W) in [0, 1]. mask: (B, 1, H, W) in {0, 1}. label: (B,), -1 for none.
        strength: (B,) in [0, 1], or None if the task takes none.
        source_class: (B,) that of the image, -1 for none.
    """

    image: Tensor
    mask: Tensor
    label: Tensor
    strength: Tensor | None
    source_class: Tensor


def read_images(value, size: int, name: str = "image") -> Tensor:
    """Images as (B, 3, size, size) float32 in [0, 1].

    Takes a PIL image, an array (H, W, 3), a tensor (3, H, W), a batch of either with one more
    axis in front, or a list of them. Arrays and tensors are floats in [0, 1], which is what
    `output_type="np"` and `"pt"` give.
    """
    return torch.cat([_image(item, size, name) for item in _items(value, name, "image")])


def read_masks(value, size: int, name: str = "mask_image") -> Tensor:
    """Masks as (B, 1, size, size) float32 in {0, 1}: white (1) is repainted, black (0) is kept.

    Takes PIL images of the modes in `WHITE_MODES`, and arrays or tensors of floats in [0, 1] or
    booleans: one mask as (H, W), or with its one channel; several as (B, 1, H, W), (B, H, W, 1) or
    a list. Values of one half and more are white. Warns of masks without black or white.
    """
    masks = torch.cat([_mask(item, size, name) for item in _items(value, name, "mask")])
    for share, meaning in ((0.0, "nothing is repainted"), (1.0, "nothing is kept")):
        if found := (masks.mean(dim=(1, 2, 3)) == share).sum():
            color = "black" if share == 0 else "white"
            warnings.warn(f"{name}: {found} of {len(masks)} all {color}: {meaning}", stacklevel=5)
    return masks


def read_labels(value, classes: Sequence[str], name: str = "class_label") -> Tensor:
    """Class labels as (B,) int64 in 0..K-1, -1 for none, from names, numbers, None or a list."""
    items = _entries(value, name, "a class name, a number or None")
    return torch.tensor([_label(item, classes, name) for item in items])


def read_numbers(value, low: float, high: float, name: str) -> Tensor:
    """One number or a list of them as (B,) float32, each in [low, high]."""
    items = _entries(value, name, f"a number from {low} to {high}")
    read = [read_number(item, low, high, name) for item in items]
    return torch.tensor(read, dtype=torch.float32)


def read_number(value, low: float, high: float, name: str) -> float:
    """A finite number in [low, high]. True and False are not numbers."""
    number = _number(value)
    if number is None or not math.isfinite(number) or not low <= number <= high:
        upper = f"to {high}" if math.isfinite(high) else "upwards"
        raise ValueError(f"{name} is {shown(value)}; it must be a number from {low} {upper}")
    return number


def read_interval(value, name: str) -> tuple[float, float]:
    """Two numbers, 0 <= low <= high; high may be infinite."""
    is_pair = isinstance(value, list | tuple) and len(value) == 2
    ends = [_number(end) for end in value] if is_pair else [None]
    if None in ends or not 0 <= ends[0] <= ends[1]:
        raise ValueError(
            f"{name} is {shown(value)}; it must be two numbers, the lower one first and 0 or more, "
            "such as (0.28, 2.9), or None"
        )
    return ends[0], ends[1]


def read_count(value, name: str, least: int = 1) -> int:
    """A whole number from `least` to `MAX_COUNT`. True and False are not numbers."""
    is_whole = isinstance(value, numbers.Integral) and not isinstance(value, bool)
    if not is_whole or not least <= value <= MAX_COUNT:
        raise ValueError(
            f"{name} is {shown(value)}; it must be a whole number from {least} to {MAX_COUNT:,}"
        )
    return int(value)


def repeat_to_batch(parts: dict[str, Tensor]) -> dict[str, Tensor]:
    """Repeats arguments that were given once, so that each has one entry a sample."""
    lengths = {name: len(part) for name, part in parts.items()}
    size = max(lengths.values())
    if any(length not in (1, size) for length in lengths.values()):
        raise ValueError(
            "the arguments have different lengths: "
            + ", ".join(f"{name} {length}" for name, length in lengths.items())
            + "; give each of them once, or as often as the longest"
        )
    return {name: part.expand(size, *part.shape[1:]) for name, part in parts.items()}


def dense(value: Tensor, name: str) -> Tensor:
    """The tensor on the CPU, without its gradient.

    Raises:
        ValueError: it is sparse, nested, quantized or on the meta device.
    """
    if value.layout is not torch.strided or value.is_nested or value.is_quantized or value.is_meta:
        kind = "without values (on the meta device)" if value.is_meta else "sparse or quantized"
        raise ValueError(f"{name} is a tensor that is {kind}; give a dense one, as to_dense() does")
    return value.detach().cpu()


def shown(value) -> str:
    """A value in an error message: its repr on one line, shortened."""
    try:
        text = " ".join(repr(value).split())
    except Exception:  # such as an integer of more digits than Python prints
        text = f"a {type(value).__name__} that cannot be printed"
    return text if len(text) <= 80 else f"{text[:77]}..."


def _number(value) -> float | None:
    """A real number as a float, infinite if it is too large; None for anything else."""
    if not isinstance(value, numbers.Real) or isinstance(value, bool):
        return None
    try:
        return float(value)
    except OverflowError:
        return math.inf if value > 0 else -math.inf


def _entries(value, name: str, wanted: str) -> list:
    """The entries of a list, tuple, array or tensor; any other value is its only entry."""
    if isinstance(value, Tensor):
        value = dense(value, name)
    items = value.tolist() if isinstance(value, Tensor | np.ndarray) else value
    items = list(items) if isinstance(items, list | tuple) else [items]
    if not items:
        raise ValueError(f"{name} is an empty list; give {wanted}")
    return items


def _items(value, name: str, kind: str) -> list:
    """A batch as a list of single pictures."""
    if isinstance(value, list | tuple):
        if not value:
            raise ValueError(f"{name} is an empty list; give at least one {kind}")
        return [item for part in value for item in _items(part, name, kind)]
    if isinstance(value, Image.Image):
        return [value]
    if not isinstance(value, np.ndarray | Tensor) or (
        isinstance(value, np.ndarray) and value.dtype.kind not in "biufc"  # numbers and booleans
    ):
        raise ValueError(
            f"{name} is a {type(value).__name__}"
            f"{f' of {value.dtype}' if isinstance(value, np.ndarray) else ''}; it must be a PIL "
            "image, a numpy array of floats, a tensor, or a list of these"
        )
    if isinstance(value, Tensor):
        value = dense(value, name)
    if value.ndim > 2 and len(value) == 0:
        raise ValueError(f"{name} is an empty batch; give at least one {kind}")
    return list(value) if value.ndim == 4 else [value]


def _image(item, size: int, name: str) -> Tensor:
    if isinstance(item, Image.Image):
        if item.mode != "RGB":
            raise ValueError(
                f"{name} is a PIL image of mode {item.mode}; it must be RGB: "
                f'give {name}.convert("RGB")'
            )
        _check_size(item.height, item.width, size, name)
        return torch.from_numpy(np.array(item)).permute(2, 0, 1)[None].float() / 255
    pixels = _floats(item, name)
    if isinstance(item, np.ndarray):
        if pixels.ndim != 3 or pixels.shape[-1] != 3:
            raise ValueError(
                f"{name} is an array of shape {item.shape}; it must be (H, W, 3), or (B, H, W, 3)"
            )
        pixels = pixels.permute(2, 0, 1)
    elif pixels.ndim != 3 or pixels.shape[0] != 3:
        raise ValueError(
            f"{name} is a tensor of shape {tuple(item.shape)}; it must be (3, H, W), or "
            "(B, 3, H, W): the channels come first"
        )
    _check_size(*pixels.shape[1:], size, name)
    return pixels[None]


def _mask(item, size: int, name: str) -> Tensor:
    if isinstance(item, Image.Image):
        if item.mode not in WHITE_MODES:
            raise ValueError(
                f"{name} is a PIL image of mode {item.mode}; it must be {', '.join(WHITE_MODES)}, "
                f"white where it is repainted: give np.asarray({name}) > 0 if it has zeros where "
                f'it is kept, or {name}.convert("RGB") if it looks black and white'
            )
        _check_size(item.height, item.width, size, name)
        mask = torch.from_numpy(np.array(item.convert("L"))).float() / 255
        white = 255
    else:
        is_bool = item.dtype == (torch.bool if isinstance(item, Tensor) else bool)
        mask = _tensor(item).float() if is_bool else _floats(item, name)
        white = 1
        if mask.ndim == 3:
            # (3, H, W) could be one mask in color or three masks: so it is refused.
            channel = 0 if len(mask) == 1 else -1
            if mask.shape[channel] != 1:
                raise ValueError(
                    f"{name} has shape {tuple(item.shape)}; a mask has one channel, or none: give "
                    "several as a list or as (B, 1, H, W), and one in color as its mean over the "
                    "channels"
                )
            mask = mask.squeeze(channel)
        if mask.ndim != 2:
            raise ValueError(
                f"{name} has shape {tuple(item.shape)}; it must be (H, W), or a list of that"
            )
        _check_size(*mask.shape, size, name)
    brightest = mask.max().item()
    if 0 < brightest < 0.5:
        raise ValueError(
            f"{name} has values up to {brightest * white:.3g}, so nothing would be repainted; "
            f"white is {white}: give np.asarray({name}) > 0 if it has zeros where it is kept"
        )
    return (mask >= 0.5).float()[None, None]


def _tensor(item: np.ndarray | Tensor) -> Tensor:
    """On the CPU, from arrays of any byte order and strides."""
    if isinstance(item, Tensor):
        return item.detach().cpu()
    if item.dtype.kind == "f":
        with np.errstate(over="ignore"):  # what is too large becomes infinite, and is refused
            item = item.astype(np.float32)
    return torch.from_numpy(np.array(item, dtype=item.dtype.newbyteorder("=")))


def _floats(item: np.ndarray | Tensor, name: str) -> Tensor:
    is_float = item.dtype.kind == "f" if isinstance(item, np.ndarray) else item.is_floating_point()
    if not is_float:
        raise ValueError(
            f"{name} has the type {item.dtype}; arrays and tensors must be floats in [0, 1]: "
            "divide by 255, or give PIL images"
        )
    pixels = _tensor(item).float()
    if not pixels.isfinite().all():
        raise ValueError(f"{name} has NaN or infinite values; it must lie in [0, 1]")
    if pixels.numel() and (pixels.min() < 0 or pixels.max() > 1):
        raise ValueError(
            f"{name} has values from {pixels.min():.3g} to {pixels.max():.3g}; it must lie in "
            "[0, 1]: divide 0..255 by 255, map [-1, 1] by x / 2 + 0.5"
        )
    return pixels


def _check_size(height: int, width: int, size: int, name: str) -> None:
    if (height, width) != (size, size):
        raise ValueError(
            f"{name} is {width}x{height} pixels; this model takes {size}x{size}: resize it, for a "
            f"PIL image with {name}.resize(({size}, {size}))"
        )


def _label(item, classes: Sequence[str], name: str) -> int:
    if item is None:
        return -1
    if not classes:
        raise ValueError(
            f"{name} is {shown(item)}; this model has no classes: leave it out, or give None"
        )
    if isinstance(item, str):
        if item not in classes:
            known = ", ".join(classes[:20])
            more = f" and {len(classes) - 20} more" if len(classes) > 20 else ""
            raise ValueError(f"{name} is {shown(item)}; this model knows {known}{more}")
        return list(classes).index(item)
    is_index = isinstance(item, numbers.Integral) and not isinstance(item, bool)
    if not is_index or not 0 <= item < len(classes):
        raise ValueError(
            f"{name} is {shown(item)}; it must be a class name, a number from 0 to "
            f"{len(classes) - 1}, or None"
        )
    return int(item)


# --------------------------------------------------------------------------------------------------
# noise.py
#
# The noise of a call: the initial latents, and what is drawn besides them.
# --------------------------------------------------------------------------------------------------


def initial_latents(
    latents: Tensor | None, generator, shape: tuple[int, int, int, int], device: torch.device
) -> Tensor:
    """Standard normal noise, drawn or as it was given, in float32 on the device.

    Images are drawn one after the other, so that the first of four is the only one of one.

    Args:
        latents: of this shape, or None: they are drawn.
        generator: one, one for each image, or None for torch's own.
        shape: (B, 3, H, W).
    """
    each = generator if isinstance(generator, list) else [generator] * shape[0]
    if len(each) != shape[0]:
        raise ValueError(
            f"generator has {len(each)} entries for {shape[0]} images; give one, or one each"
        )
    if generator is not None and not all(isinstance(item, torch.Generator) for item in each):
        raise ValueError(
            f"generator is {shown(generator)}; it must be a torch.Generator or a list of them, "
            "such as torch.Generator().manual_seed(0)"
        )
    if latents is None:
        return randn_tensor(shape, None if generator is None else each, device, torch.float32)
    found = tuple(latents.shape) if isinstance(latents, Tensor) else type(latents).__name__
    if (
        found != shape
        or not latents.is_floating_point()
        or not (read := dense(latents, "latents").float()).isfinite().all()
    ):
        raise ValueError(
            f"latents are {found}; they must be a tensor of shape {shape}, of finite floats"
        )
    return read.to(device)


def own_generators(latents: Tensor) -> list[torch.Generator]:
    """A generator on the CPU for each image, seeded with a digest of its latents.

    So an image depends on its latents alone, and not on its place or the others in the batch.
    """
    digests = [hashlib.sha256(row.numpy().tobytes()).digest() for row in latents.cpu()]
    seeds = [int.from_bytes(digest[:8], "little") for digest in digests]
    return [torch.Generator().manual_seed(seed) for seed in seeds]


# --------------------------------------------------------------------------------------------------
# class_mask.py
#
# Where a class makes a difference to an image: a mask for an edit, and its guidance by pixel.
# --------------------------------------------------------------------------------------------------


MASK_SIGMA = 1.0  # noise level at which answers are compared: objects are seen, details are not
MASK_DRAWS = 2  # of noise, each with one evaluation of two branches
MASK_BLUR = 0.05  # standard deviation of the smoothing, as a share of the image's width


def relevance(difference: Tensor, mask: Tensor) -> Tensor:
    """(B, 1, H, W) in [0, 2): 2 d / (d + mean of d), the mean over the painted pixels.

    It is 1 where the class makes as much difference as on average, and 0 where it makes none.

    Args:
        difference: (B, 1, H, W) d, of `_class_difference`.
        mask: (B, 1, H, W) in {0, 1}, 1 = painted.
    """
    difference = difference.clamp_min(0)  # smoothing rounds
    painted = mask.sum((1, 2, 3), keepdim=True).clamp_min(1)
    mean = (difference * mask).sum((1, 2, 3), keepdim=True) / painted
    return 2 * difference / (difference + mean).clamp_min(torch.finfo(mean.dtype).tiny)


class GeneratesMasks:
    """What a pipeline does with the difference that a class makes: a mask, and local guidance.

    `generate_mask` is named after the method of diffusers' DiffEdit pipeline.
    """

    @torch.no_grad()
    def generate_mask(
        self,
        image,
        class_label: str | int | list,
        share: float = 0.6,
        generator: torch.Generator | list[torch.Generator] | None = None,
    ) -> Tensor:
        """Where a class makes the most difference to an image: a `mask_image` for its edit.

        There the denoiser of generate answers differently with the class and without it. An edit
        inside it leaves the rest of the image alone, byte for byte. Two evaluations of two
        branches.

        Args:
            image: one or several, as in a call.
            class_label: a class for each image, as in a call.
            share: of the pixels that are white, above 0 and up to 1.
            generator: one, or one for each image.

        Returns:
            (B, 1, size, size), 1 where it is white and 0 elsewhere.

        Raises:
            ValueError: an argument is out of its range, or the model has not learned generate.

        Source: DiffEdit, Couairon et al. 2022, arXiv:2210.11427.
        """
        self._check_vocabulary()
        self._check_task("generate")
        if not (share := read_number(share, 0, 1, "share")):
            raise ValueError("share is 0; it must be above 0")
        source = self._read_source(Generate(), class_label, image, None, None, 1)
        if (source.label < 0).any():
            raise ValueError("class_label has None in it; a mask needs a class")
        known = 2 * source.image - 1
        guide = self._generate_conditioning(known, source.label)
        difference = self._class_difference(known, guide, generator)
        limit = difference.flatten(1).quantile(1 - share, dim=1)
        self.maybe_free_model_hooks()
        return (difference >= limit[:, None, None, None]).float()

    def _local_guidance(
        self,
        task: Task,
        known: Tensor,
        base: Conditioning,
        label: Tensor,
        start: list[float],
        generators: list[torch.Generator],
    ) -> LocalGuidance | None:
        """Generate's guidance by the class, for a task that takes it; None: the task's own.

        Generate has nothing but the class to go by, so it knows better what the class changes. What
        starts from noise alone has nothing of the source, and the same scale everywhere.

        Args:
            known: (B, 3, H, W) in [-1, 1], the source.
            base: what is guided.
            label: (B,) classes.
            start: (B,) noise levels where sampling starts.
        """
        guided = self.guidance_scale not in (0, 1) and not self.interrupt
        if not (guided and task.local_guidance and "generate" in self.tasks):
            return None
        guide = self._generate_conditioning(known, label)
        shown = [level < self.scheduler.config.sigma_max for level in start]
        weight = torch.ones_like(known[:, :1])
        if any(shown):
            difference = self._class_difference(known, guide, generators)
            rows = torch.tensor(shown, device=known.device).view(-1, 1, 1, 1)
            weight = torch.where(rows, relevance(difference, base.mask), weight)
        return LocalGuidance(base, guide, weight)

    def _generate_conditioning(self, known: Tensor, label: Tensor) -> Conditioning:
        """Generate's, for images of these shapes and classes."""
        task, blank = Generate(), torch.zeros_like(known)
        hint = task.condition(blank, torch.ones_like(known[:, :1]), None, blank)
        return build_conditioning(hint, task, label, self.vocabulary)

    def _class_difference(self, known: Tensor, guide: Conditioning, generator) -> Tensor:
        """(B, 1, H, W) how much the class changes the answer of generate: squared, smoothed.

        Args:
            known: (B, 3, H, W) in [-1, 1].
            guide: generate's, with the class.
            generator: one, or one for each image, or None.
        """
        # A model of few steps knows the noise levels of its chains.
        levels = [level for chain in self.chains or [] for level in chain] or [MASK_SIGMA]
        sigma = min(levels, key=lambda level: abs(math.log(level / MASK_SIGMA)))
        squares = []
        for _ in range(MASK_DRAWS):
            noise = initial_latents(None, generator, tuple(known.shape), known.device)
            squares.append(self._difference(known + sigma * noise, sigma, guide))
        blur = torch.full((len(known),), MASK_BLUR * self.size, device=known.device)
        return low_pass(torch.stack(squares).mean(0), blur)

    def _difference(self, noisy: Tensor, sigma: float, conditioning: Conditioning) -> Tensor:
        """(B, 1, H, W) squared difference that the class makes to the network's answer."""
        both = Conditioning.cat([conditioning, conditioning.without(CLASS, self.vocabulary.null)])
        sigmas = torch.full((len(both), 1, 1, 1), sigma, device=noisy.device)
        output = predict(self.unet, self.scheduler, noisy.repeat(2, 1, 1, 1), sigmas, both)
        given, without = output.chunk(2)
        return (given - without).square().sum(1, keepdim=True)


# --------------------------------------------------------------------------------------------------
# colorize.py
#
# Colorization: the source's luminance is shown, degraded by the strength.
# --------------------------------------------------------------------------------------------------


LUMA = (0.299, 0.587, 0.114)  # ITU-R BT.601, the weights of PIL's convert("L")


class Colorize(Task):
    name = "colorize"
    required = frozenset({"image"})
    optional = frozenset({"class_label", "strength"})
    default_strength = 0.0

    def draw(self, n: int, size: int, class_dropout: float, generator: torch.Generator) -> Choice:
        device = generator.device
        # Half the samples show the grey image as it is, which is what most users ask for.
        strength = torch.rand(n, generator=generator, device=device)
        return Choice(
            mask=torch.ones(n, 1, size, size, device=device),
            strength=torch.where(bernoulli(n, 0.5, generator), strength, 0.0),
            drop_class=bernoulli(n, class_dropout, generator),
        )

    def condition(self, image: Tensor, mask: Tensor, strength: Tensor, noise: Tensor) -> Hint:
        # Plain numbers: training would wait until a tensor of them is on the device.
        grey = sum(weight * part for weight, part in zip(LUMA, image.split(1, dim=1), strict=True))
        return Hint(
            image=degrade(grey.expand_as(image), strength, noise),
            mask=torch.ones_like(mask),
            strength=strength,
        )


# --------------------------------------------------------------------------------------------------
# components.py
#
# Checks of the components of a pipeline.
# --------------------------------------------------------------------------------------------------


SCHEDULERS = (EDMDPMSolverMultistepScheduler, EDMEulerScheduler)


def plain_module(unet) -> nn.Module:
    """The module that `torch.compile` wrapped, or the module itself."""
    return getattr(unet, "_orig_mod", unet)


def check_component(name: str, value) -> None:
    """Checks the type and the settings of a component; other names are ignored.

    Raises:
        ValueError: the pipeline can't work with it.
    """
    checks = {"unet": _check_unet, "tokenizer": _check_tokenizer, "scheduler": _check_scheduler}
    if name in checks:
        checks[name](value)


def _check_unet(unet) -> None:
    module = plain_module(unet)
    if not isinstance(module, UNet2DConditionModel):
        hint = ""
        if isinstance(getattr(module, "module", None), UNet2DConditionModel):
            hint = "; give its .module"
        elif hasattr(module, "get_base_model"):
            hint = "; give its .get_base_model(), which keeps the adapters"
        raise ValueError(
            f"unet is {_kind(unet)}; it must be a UNet2DConditionModel, compiled or not{hint}"
        )
    config = module.config
    if (config.in_channels, config.out_channels) != (CHANNELS, 3):
        raise ValueError(
            f"unet takes {config.in_channels} channels and gives {config.out_channels}; a unet of "
            f"this pipeline takes {CHANNELS} and gives 3"
        )


def _check_tokenizer(tokenizer) -> None:
    if not isinstance(tokenizer, PreTrainedTokenizerBase):
        raise ValueError(
            f"tokenizer is {_kind(tokenizer)}; it must be the tokenizer that was saved with the "
            "unet, such as PreTrainedTokenizerFast.from_pretrained(folder, subfolder='tokenizer')"
        )


def _check_scheduler(scheduler) -> None:
    if not isinstance(scheduler, SCHEDULERS):
        names = " or ".join(kind.__name__ for kind in SCHEDULERS)
        raise ValueError(
            f"scheduler is {_kind(scheduler)}; it must be {names}, such as "
            "EDMEulerScheduler.from_config(pipe.scheduler.config)"
        )
    config = scheduler.config
    numbers = [config[name] for name in ("sigma_min", "sigma_max", "sigma_data")]
    low, high, data = (
        n if isinstance(n, int | float) and math.isfinite(n) and n > 0 else None for n in numbers
    )
    if None in (low, high, data) or low >= high:
        raise ValueError(
            f"scheduler has sigma_min {numbers[0]}, sigma_max {numbers[1]} and sigma_data "
            f"{numbers[2]}; they must be finite and above 0, sigma_min below sigma_max: compare "
            "scheduler/scheduler_config.json with that of the published model"
        )


def _kind(value) -> str:
    return "None" if value is None else f"of the type {type(value).__name__}"


# --------------------------------------------------------------------------------------------------
# masks.py
#
# The kinds of masks that inpainting learns: (B, 1, H, W) in {0, 1}, 1 = to be painted.
#
# Every kind is drawn for the whole batch at once, on the generator's device, without a loop over
# samples and without waiting for the device.
# --------------------------------------------------------------------------------------------------


def _uniform(shape: tuple[int, ...], low: float, high: float, generator: torch.Generator) -> Tensor:
    return low + (high - low) * torch.rand(shape, generator=generator, device=generator.device)


def _pixels(size: int, device: torch.device) -> Tensor:
    """(size,) centres of the pixels as shares of the width, in (0, 1)."""
    return (torch.arange(size, device=device) + 0.5) / size


def _box(top: Tensor, bottom: Tensor, left: Tensor, right: Tensor, size: int) -> Tensor:
    """(..., size, size) bool from borders (...) in shares of the width."""
    p = _pixels(size, top.device)
    rows = (p >= top[..., None]) & (p < bottom[..., None])
    columns = (p >= left[..., None]) & (p < right[..., None])
    return rows[..., :, None] & columns[..., None, :]


def center(n: int, size: int, generator: torch.Generator) -> Tensor:
    """A square in the middle, half as wide as the image: the benchmark of the literature."""
    low = torch.full((n,), 0.25, device=generator.device)
    high = torch.full((n,), 0.75, device=generator.device)
    return _box(low, high, low, high, size)[:, None]


def boxes(n: int, size: int, generator: torch.Generator) -> Tensor:
    """One to three boxes, each side between a fifth and three fifths of the image's."""
    sides = _uniform((n, 3, 2), 0.2, 0.6, generator)
    corner = _uniform((n, 3, 2), 0.0, 1.0, generator) * (1 - sides)
    end = corner + sides
    drawn = _box(corner[..., 0], end[..., 0], corner[..., 1], end[..., 1], size)  # (n, 3, H, W)
    count = torch.randint(1, 4, (n, 1), generator=generator, device=generator.device)
    used = torch.arange(3, device=generator.device) < count
    return (drawn & used[..., None, None]).any(dim=1, keepdim=True)


def strokes(n: int, size: int, generator: torch.Generator) -> Tensor:
    """Free-form: a thick brush dragged along a random walk of six segments."""
    start = _uniform((n, 1, 2), 0.1, 0.9, generator)
    step = _uniform((n, 6, 2), -0.45, 0.45, generator)
    # Reflect the walk at the borders, so that the brush stays on the image.
    path = torch.cat([start, start + step.cumsum(dim=1)], dim=1)  # (n, 7, 2)
    path = 1 - (path.remainder(2) - 1).abs()
    a, b = path[:, :-1, None, None], path[:, 1:, None, None]  # (n, 6, 1, 1, 2)
    p = _pixels(size, generator.device)
    point = torch.stack(torch.meshgrid(p, p, indexing="ij"), dim=-1)  # (H, W, 2)
    along = ((point - a) * (b - a)).sum(-1) / (b - a).square().sum(-1).clamp_min(1e-8)
    nearest = a + along.clamp(0, 1)[..., None] * (b - a)
    distance = (point - nearest).square().sum(-1).amin(dim=1)  # (n, H, W)
    radius = _uniform((n, 1, 1), 0.05, 0.12, generator)
    return (distance < radius.square())[:, None]


def half(n: int, size: int, generator: torch.Generator) -> Tensor:
    """The left, right, upper or lower half."""
    upper = (_pixels(size, generator.device) < 0.5)[:, None].expand(size, size)
    sides = torch.stack([upper, ~upper, upper.T, ~upper.T])
    return sides[torch.randint(4, (n,), generator=generator, device=generator.device)][:, None]


def border(n: int, size: int, generator: torch.Generator) -> Tensor:
    """Everything around a kept square in the middle: outpainting."""
    margin = _uniform((n,), 0.15, 0.35, generator)
    return ~_box(margin, 1 - margin, margin, 1 - margin, size)[:, None]


def pixels(n: int, size: int, generator: torch.Generator) -> Tensor:
    """Each pixel on its own, half to nineteen twentieths of them missing."""
    share = _uniform((n, 1, 1, 1), 0.5, 0.95, generator)
    return _uniform((n, 1, size, size), 0.0, 1.0, generator) < share


MASKS: dict[str, Callable[[int, int, torch.Generator], Tensor]] = {
    "center": center,
    "boxes": boxes,
    "strokes": strokes,
    "half": half,
    "border": border,
    "pixels": pixels,
}


def draw_masks(n: int, size: int, generator: torch.Generator, kind: str | None = None) -> Tensor:
    """(n, 1, size, size) float in {0, 1}, 1 = to be painted; never empty, never everything.

    Args:
        kind: a key of `MASKS`, or None for a random kind a sample.
    """
    if kind is not None and kind not in MASKS:
        raise ValueError(f"kind is {kind!r}; it must be one of {', '.join(MASKS)}")
    kinds = list(MASKS) if kind is None else [kind]
    drawn = torch.stack([MASKS[name](n, size, generator) for name in kinds])
    which = torch.randint(len(kinds), (n,), generator=generator, device=generator.device)
    mask = drawn[which, torch.arange(n, device=generator.device)].float()
    # A mask without a hole has no loss, and one without a known pixel is generation.
    share = mask.mean(dim=(1, 2, 3), keepdim=True)
    return torch.where((share > 0) & (share < 1), mask, center(n, size, generator).float())


# --------------------------------------------------------------------------------------------------
# edit.py
#
# Class-guided editing: the source is shown degraded, with the class that it is turned into.
#
# There are no edited pairs to learn from. Training shows a degraded image with its own class;
# sampling gives another class. The strength is the amount of the degradation, and the noise level
# where sampling starts: from the source, carried there by the model itself without a class. So what
# the class does not change comes back as it was; and guidance is weak where the class makes little
# difference.
# --------------------------------------------------------------------------------------------------


# Noise level where sampling starts, over that of the degradation. With less noise fewer edits reach
# their class, with more noise less of the source is kept.
START = 3.0
REGION_SHARE = 0.25  # share of the samples that edit only a region; the others edit everything


class Edit(Task):
    name = "edit"
    required = frozenset({"image", "class_label"})
    optional = frozenset(
        {"mask_image", "strength", "image_guidance_scale", "num_inversion_steps", "source_class"}
    )
    default_strength = 0.8
    default_steps = 12
    default_guidance_scale = 4.0
    local_guidance = True
    default_inversion_steps = 8

    def draw(self, n: int, size: int, class_dropout: float, generator: torch.Generator) -> Choice:
        device = generator.device
        region = bernoulli(n, REGION_SHARE, generator)[:, None, None, None]
        mask = draw_masks(n, size, generator)
        # Guidance needs F(I, 0) and F(0, 0). Class and image are each dropped with the probability
        # class_dropout: half of the time alone, half of the time together.
        u = torch.rand(n, generator=generator, device=device)
        return Choice(
            mask=torch.where(region, mask, torch.ones_like(mask)),
            strength=torch.rand(n, generator=generator, device=device),
            drop_class=u < class_dropout,
            drop_image=(u >= 0.5 * class_dropout) & (u < 1.5 * class_dropout),
        )

    def condition(self, image: Tensor, mask: Tensor, strength: Tensor, noise: Tensor) -> Hint:
        # Strength 0 degrades nothing: nothing is painted, and the source comes out unchanged.
        mask = mask * (strength > 0)[:, None, None, None]
        shown = torch.where(mask > 0, degrade(image, strength, noise), image)
        return Hint(image=shown, mask=mask, strength=strength)

    def start(self, strength: float) -> float:
        return START * noise_level(strength)


# --------------------------------------------------------------------------------------------------
# inpaint.py
#
# Inpainting: the known pixels are shown, the others are painted.
# --------------------------------------------------------------------------------------------------


class Inpaint(Task):
    name = "inpaint"
    required = frozenset({"image", "mask_image"})
    optional = frozenset({"class_label"})
    # What is shown leaves little to decide: two steps complete the holes of photographs better than
    # four, and those of the shapes nearly as well (docs/results.md).
    few_steps = 2

    def draw(self, n: int, size: int, class_dropout: float, generator: torch.Generator) -> Choice:
        return Choice(
            mask=draw_masks(n, size, generator),
            drop_class=bernoulli(n, class_dropout, generator),
        )

    def condition(
        self, image: Tensor, mask: Tensor, strength: Tensor | None, noise: Tensor
    ) -> Hint:
        return Hint(image=image * (1 - mask), mask=mask)


# --------------------------------------------------------------------------------------------------
# ode.py
#
# The probability-flow ODE of a denoiser, with noise levels of each sample's own.
# --------------------------------------------------------------------------------------------------


# Curvature of the levels between the ends. Karras's 7 is for levels that don't end at 0.
RHO = 4


def ode_end(
    denoised: Callable[[Tensor, Tensor], Tensor], x: Tensor, sigma: Tensor, end: Tensor, steps: int
) -> Tensor:
    """Solves dx/dsigma = (x - D(x; sigma)) / sigma from sigma to end, by DPM-Solver++ (2M).

    Args:
        denoised: D, (B, 3, H, W) from x and sigma.
        x: (B, 3, H, W). sigma, end: (B, 1, 1, 1) noise levels, all down (sigma > end >= 0), or all
            up (0 < sigma < end).
        steps: evaluations of D.

    Source: Lu et al. 2022, arXiv:2211.01095, algorithm 2, for noise that is added unscaled.
    """
    roots = sigma ** (1 / RHO), end ** (1 / RHO)
    grid = [torch.lerp(*roots, k / steps) ** RHO for k in range(steps)] + [end]
    before, length_before = None, None
    for now, then in pairwise(grid):
        length = now.log() - then.log()
        D = denoised(x, now)
        direction = D
        if before is not None:
            # The step to 0 has infinite length in ln sigma, so it is of first order.
            ahead = torch.where(then > 0, length / (2 * length_before), 0.0)
            direction = D + ahead * (D - before)
        x = torch.lerp(direction, x, then / now)
        before, length_before = D, length
    return x


# --------------------------------------------------------------------------------------------------
# inversion.py
#
# The inversion of a source: the noise from which the model itself would draw it.
# --------------------------------------------------------------------------------------------------


LOWEST = 0.01  # noise level that an image is taken to have: it can't be seen


def read_inversion_steps(given: int | None, default: int, chains: Chains | None) -> int:
    """num_inversion_steps of a call. A model of few steps, which has chains, takes 0 alone."""
    if given is None:
        return 0 if chains else default
    steps = read_count(given, "num_inversion_steps", least=0)
    if steps and chains:
        raise ValueError(
            f"num_inversion_steps is {steps}; a model of few steps knows the noise levels of its "
            "chains alone, and can't invert an image: leave it out, or give 0"
        )
    return steps


def invert(
    call,
    image: Tensor,
    noise: Tensor,
    conditioning: Conditioning,
    start: list[float],
    steps: int,
) -> Tensor:
    """The noise with which the image would have come out of the sampler.

    Carries the image up the probability-flow ODE to the start, from a noise level too low to see.
    Below sigma_max image + start noise is then where the image comes from.

    Args:
        image: (B, 3, H, W) in [-1, 1].
        noise: (B, 3, H, W) standard normal, for the images that start from noise alone.
        conditioning: with the class of the image, or with none.
        start: (B,) noise levels.
        steps: evaluations of the denoiser.

    Source: Song et al. 2021, arXiv:2010.02502, section 4.3.
    """
    level = torch.tensor(start, device=image.device, dtype=torch.float32)
    rows = ((level > LOWEST) & (level < call.scheduler.config.sigma_max)).nonzero()[:, 0]
    if not len(rows):
        return noise
    conditions = conditioning[rows]

    def denoised(x: Tensor, sigma: Tensor) -> Tensor:
        if call.interrupt:
            return x  # no further evaluation; the sampler then takes no step
        F = predict(call.unet, call.scheduler, x, sigma, conditions)
        progress.update()
        return call.scheduler.precondition_outputs(x, F, sigma)

    end = level[rows].view(-1, 1, 1, 1)
    with call.progress_bar(total=steps) as progress:
        x = ode_end(denoised, image[rows], torch.full_like(end, LOWEST), end, steps)
    inverted = noise.clone()
    inverted[rows] = (x - image[rows]) / end
    return inverted


# --------------------------------------------------------------------------------------------------
# source.py
#
# The text of this file, for saving the model again.
# --------------------------------------------------------------------------------------------------


def _own_text() -> str:
    """Reads this file, which another load may be copying at this moment, up to its last line."""
    for _ in range(100):
        text = Path(__file__).read_text(encoding="utf-8")
        if text.endswith("# The end.\n"):
            break
        time.sleep(0.01)
    return text


SOURCE = _own_text()


def source() -> str:
    """The text of this file."""
    return SOURCE


# --------------------------------------------------------------------------------------------------
# loading.py
#
# Saves a pipeline as a folder that loads without this package, and checks what was loaded.
# --------------------------------------------------------------------------------------------------


TOKENIZER_CLASS = "PreTrainedTokenizerFast"
# Local paths and options that the libraries note in a configuration when they load it.
LOADING_TRACES = ("_name_or_path", "is_local", "local_files_only")
WORDS = "_vocabulary"  # in unet/config.json: the words the weights were trained with
CARD = "README.md"
AGAIN = "download or save the model again"
SHARD = re.compile(r"-\d{5}-of-\d{5}")  # in the name of a part of the weights
FUSED = re.compile(r"\.to_q?kv\.(weight|bias)$")  # copies that fuse_qkv_projections() adds
FINITE_DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


class SelfContained:
    """A pipeline whose folders and repositories load where its package is not installed.

    It goes before `DiffusionPipeline` among the bases of the pipeline's class.
    """

    @classmethod
    def module_name(cls) -> str:
        """The name of the file with the code. A digest keeps those of two versions apart."""
        return f"pipeline_{hashlib.sha256(source().encode()).hexdigest()[:8]}"

    @classmethod
    def code_files(cls) -> dict[str, str]:
        """File name -> text of the code in an exported folder.

        All code is in the first file. pipeline.py is where diffusers looks for the class that
        `custom_pipeline="user/model"` asks for.
        """
        module = cls.module_name()
        entry = (
            f'"""The code is in {module}.py."""\n\nfrom .{module} import {cls.__name__}  # noqa\n'
        )
        return {f"{module}.py": source(), "pipeline.py": entry}

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path, **kwargs):
        """As in diffusers, with an error that names the file where diffusers' own does not."""
        try:
            return super().from_pretrained(pretrained_model_name_or_path, **kwargs)
        except (ValueError, RuntimeError):
            folder = Path(pretrained_model_name_or_path, "unet")
            if folder.is_dir() and "unet" not in kwargs:
                check_files(folder)
            raise

    def save_pretrained(self, save_directory, safe_serialization: bool = True, *args, **kwargs):
        """As in diffusers, in safetensors only. The files are read again and compared.

        Raises:
            ValueError: safe_serialization is False, or a component can't be saved so that it loads.
        """
        if not safe_serialization:
            raise ValueError(
                "safe_serialization is False; weights are saved as safetensors only, because a "
                "pickle can run code where it is loaded"
            )
        if (unet := plain_unet(self.unet)) is not self.unet:
            plain = type(self)(unet, self.tokenizer, self.scheduler, self.chains)
            return plain.save_pretrained(save_directory, safe_serialization, *args, **kwargs)
        # A string: diffusers splits it for the name of a repository.
        return super().save_pretrained(str(save_directory), True, *args, **kwargs)

    def save_config(self, save_directory, push_to_hub: bool = False, **kwargs):
        """Writes model_index.json and the source files; `save_pretrained` calls it last."""
        folder = Path(save_directory)
        folder.mkdir(parents=True, exist_ok=True)
        for file in folder.glob(f"pipeline_{'[0-9a-f]' * 8}.py"):  # of another version
            file.unlink()
        for name, text in self.code_files().items():
            (folder / name).write_text(text, encoding="utf-8")
        changes = {
            # transformers 5 writes a class name that 4.x doesn't know.
            "tokenizer": {"tokenizer_class": TOKENIZER_CLASS},
            "unet": {WORDS: self.tokenizer.get_vocab()},
        }
        for name in self.components:
            for file in (folder / name).glob("*config.json"):
                text = tidy(file.read_text(encoding="utf-8"), changes.get(name, {}))
                file.write_text(text, encoding="utf-8")
        # transformers 4 repeats the configuration here, differently after a loading.
        (folder / "tokenizer" / "special_tokens_map.json").unlink(missing_ok=True)
        check_files(folder / "unet")  # before the index and an upload, which make it count
        # diffusers writes another card over this one before it uploads.
        card = folder / CARD
        self._card = card.read_text(encoding="utf-8") if card.is_file() else None
        super().save_config(save_directory, push_to_hub=push_to_hub, **kwargs)

    def _upload_folder(self, working_dir, *args, **kwargs):
        if self._card is not None:
            Path(working_dir, CARD).write_text(self._card, encoding="utf-8")
        return super()._upload_folder(working_dir, *args, **kwargs)

    def to_json_string(self) -> str:
        """The text of model_index.json, with the class named as a file of the folder has it."""
        changes = {
            "_class_name": [self.module_name(), type(self).__name__],
            "tokenizer": ["transformers", TOKENIZER_CLASS],
        }
        return tidy(super().to_json_string(), changes)

    @classmethod
    def _dict_from_json_file(cls, json_file, **kwargs):
        # The installed class runs instead of the folder's code, which needs no trust.
        index = super()._dict_from_json_file(json_file, **kwargs)
        if isinstance(index.get("_class_name"), list):
            index["_class_name"] = index["_class_name"][-1]
        return index

    def register_to_config(self, **kwargs):
        # `from_pretrained` notes the name of the pipeline when all components are loaded.
        if "_name_or_path" in kwargs:
            check_loaded(kwargs["_name_or_path"], self.unet, self.tokenizer)
        super().register_to_config(**kwargs)


def tidy(text: str, changes: dict) -> str:
    """A configuration in JSON with some entries changed, and without the traces of a loading."""
    table = {key: value for key, value in json.loads(text).items() if key not in LOADING_TRACES}
    return json.dumps(table | changes, indent=2, sort_keys=True) + "\n"


def check_loaded(pipeline: str, unet, tokenizer) -> None:
    """Checks the UNet and the tokenizer of a pipeline that was loaded.

    diffusers only warns of a tensor that is missing, and initializes it at random.

    Args:
        pipeline: folder or name on the Hub, as it was given for loading.
        unet: loaded now, or given by the user; only the files that were loaded now are checked.

    Raises:
        ValueError: a tensor is missing, unexpected, of another shape or not finite; the weights
            aren't safetensors; or they were trained with another vocabulary.
    """
    module = plain_module(unet)
    folder = Path(module.config.get("_name_or_path") or "unet")
    cache = "models--" + str(pipeline).replace("/", "--")  # where the Hub's client keeps it
    if folder.name == "unet" and (folder.parent == Path(pipeline) or cache in folder.parts):
        check_files(folder)
    check_values(module.state_dict(), f"{folder}: ", f" after loading; {AGAIN}")
    trained, words = module.config.get(WORDS), tokenizer.get_vocab()
    if trained is not None and trained != words:
        moved = sorted(w for w in {*trained, *words} if trained.get(w) != words.get(w))
        raise ValueError(
            f"{folder.with_name('tokenizer') / 'tokenizer.json'} is of another model than "
            f"{folder}: they differ in the ids of {', '.join(moved[:8])}; {AGAIN}"
        )


def check_values(state: Mapping[str, Tensor], where: str, advice: str) -> None:
    """Refuses tensors without values, and plain ones that are not finite."""
    for name, tensor in state.items():
        if tensor.is_meta:
            raise ValueError(f"{where}{name} has no value{advice}")
        is_plain = type(tensor) in (Tensor, nn.Parameter) and tensor.dtype in FINITE_DTYPES
        if is_plain and not tensor.isfinite().all():
            raise ValueError(f"{where}{name} has NaN or infinite values{advice}")


def check_files(folder: Path) -> None:
    """Compares the files of weights in a UNet's folder with its configuration.

    Raises:
        ValueError: it names the file and the tensor.
    """
    found: dict[Path, dict[str, list[int]]] = {}
    for file in sorted(folder.glob("*.safetensors")):
        whole = file.with_name(SHARD.sub("", file.name))  # the parts of a file count as one
        found.setdefault(whole, {}).update(_shapes_in(file))
    if not found:
        others = sorted(file.name for file in folder.glob("*.bin"))
        raise ValueError(
            f"{folder} has no weights as safetensors, only {', '.join(others) or 'other files'}; "
            "save them again with `save_pretrained`"
        )
    expected = _shapes_of(json.loads((folder / "config.json").read_text(encoding="utf-8")))
    for file, shapes in found.items():
        _compare(str(file), shapes, expected, AGAIN)


def plain_unet(unet) -> UNet2DConditionModel:
    """The UNet as its configuration describes it, for saving; its tensors are shared.

    It differs from the one given if that is compiled or has fused projections.

    Raises:
        ValueError: it has an adapter, or was changed in a way that its files couldn't describe.
    """
    module = plain_module(unet)
    if adapters := getattr(module, "peft_config", None):
        raise ValueError(
            f"unet has the adapters {', '.join(adapters)}, which save_pretrained can't save: save "
            "them with pipe.unet.save_lora_adapter(folder), or merge them into the weights with "
            "pipe.unet.fuse_lora() and pipe.unet.unload_lora()"
        )
    state, expected = module.state_dict(), _shapes_of(module.config)
    kept = {name: tensor for name, tensor in state.items() if not FUSED.search(name)}
    advice = "save the pipeline before its unet is changed"
    _compare("unet", {name: list(t.shape) for name, t in kept.items()}, expected, advice)
    check_values(kept, "unet: ", "; it is not saved")
    if len(kept) == len(state):
        return module
    with torch.device("meta"):
        plain = UNet2DConditionModel.from_config(module.config)
    plain.load_state_dict(kept, assign=True)
    return plain


def _shapes_of(config: Mapping) -> dict[str, list[int]]:
    """Tensor -> shape of a UNet with this configuration."""
    with torch.device("meta"):
        state = UNet2DConditionModel.from_config(dict(config)).state_dict()
    return {name: list(tensor.shape) for name, tensor in state.items()}


def _shapes_in(file: Path) -> dict[str, list[int]]:
    """Tensor -> shape of a safetensors file."""
    try:
        with safe_open(file, "pt") as tensors:
            return {name: tensors.get_slice(name).get_shape() for name in tensors.keys()}  # noqa: SIM118
    except SafetensorError as error:
        raise ValueError(f"{file} is not a whole safetensors file ({error}); {AGAIN}") from error


def _compare(where: str, found: Mapping, expected: Mapping, advice: str) -> None:
    missing, unexpected = sorted(expected.keys() - found.keys()), sorted(found.keys() - expected)
    for kind, names in (("lacks", missing), ("has the unexpected", unexpected)):
        if names:
            more = f" and {len(names) - 4} more" if len(names) > 4 else ""
            raise ValueError(f"{where} {kind} {', '.join(names[:4])}{more}; {advice}")
    for name, shape in expected.items():
        if found[name] != shape:
            raise ValueError(
                f"{where} has {name} of shape {found[name]}; the configuration says {shape}; "
                f"{advice}"
            )


# --------------------------------------------------------------------------------------------------
# outputs.py
#
# Reads `output_type`, and makes images of that type.
# --------------------------------------------------------------------------------------------------


OUTPUT_TYPES = ("pil", "np", "pt", "latent")


def check_output_type(value) -> None:
    """Refuses what is none of `OUTPUT_TYPES`."""
    if not isinstance(value, str) or value not in OUTPUT_TYPES:
        raise ValueError(
            f"output_type is {shown(value)}; it must be one of {', '.join(OUTPUT_TYPES)}"
        )


def to_output(latents: Tensor, mask: Tensor, source: Tensor, output_type: str):
    """Images of the output type. Where the mask is 0 they have the pixels of the source.

    Args:
        latents: (B, 3, H, W) in about [-1, 1].
        mask: (B, 1, H, W) in {0, 1}. source: (B, 3, H, W) in [0, 1].
    """
    if output_type == "latent":
        return latents
    images = torch.where(mask > 0, (latents / 2 + 0.5).clamp(0, 1), source)
    if output_type != "pt":
        images = VaeImageProcessor.pt_to_numpy(images)
    return VaeImageProcessor.numpy_to_pil(images) if output_type == "pil" else images


# --------------------------------------------------------------------------------------------------
# solver.py
#
# Solves the probability-flow ODE with the pipeline's scheduler, known pixels held in place.
# --------------------------------------------------------------------------------------------------


def solve(
    call,
    source: Tensor,
    noise: Tensor,
    conditioning: Conditioning,
    start: list[float],
    steps: int | list[float],
    generators: list[torch.Generator],
    callback: Callable | None,
    callback_inputs: list[str],
    local: LocalGuidance | None,
) -> Tensor:
    """Goes from the start to 0; known pixels are exact at every step.

    The samples of one start are a batch; one batch follows another.

    Args:
        call: the pipeline's copy for this call. A callback may change its state.
        source: (B, 3, H, W) in [-1, 1], the known pixels where the mask is 0.
        noise: (B, 3, H, W) standard normal.
        start: (B,) noise levels, of the source. From sigma_max on it is noise alone.
        steps: their number, or the noise levels that they start at.
        generators: one for each image, for schedulers that add noise.
        local: takes the place of the task's own guidance by the class; None: nothing does.

    Returns:
        (B, 3, H, W) float32.

    Raises:
        ValueError: the latents are not finite after a step.
    """
    highest = call.scheduler.config.sigma_max
    schedulers = {
        level: _from_level(level, call.scheduler, steps, noise.device) for level in sorted({*start})
    }
    call._num_timesteps = sum(len(scheduler.timesteps) for scheduler in schedulers.values())

    def end_step(step: int, timestep: Tensor, x: Tensor) -> Tensor:
        if callback is not None:
            tensors = {name: {"latents": x}[name] for name in callback_inputs}
            x = _replaced(x, callback(call, step, timestep, tensors), step)
        progress.update()
        return x

    x, done = torch.empty_like(noise), 0
    with call.progress_bar(total=call._num_timesteps) as progress:
        for level, scheduler in schedulers.items():
            call.scheduler = scheduler  # a callback may look at it
            rows = [i for i, own in enumerate(start) if own == level]
            image, conditions = source[rows], conditioning[rows]
            first = scheduler.sigmas[0].item()
            latents = image + first * noise[rows]
            if level >= highest:
                latents = torch.where(conditions.mask > 0, first * noise[rows], latents)
                if not isinstance(steps, int):
                    # Where part of an image is shown, random low frequencies would contradict it.
                    shown = conditions.image.flatten(1).any(1)[:, None, None, None]
                    latents = torch.where(shown, latents, first_latents(noise[rows], first))
            own = [generators[i] for i in rows]
            guidance = None if local is None else local[rows]
            x[rows] = _solve(
                call, latents, image, noise[rows], conditions, own, done, end_step, guidance
            )
            done += len(scheduler.timesteps)
    return x


def _solve(
    call,
    x: Tensor,
    source: Tensor,
    noise: Tensor,
    conditioning: Conditioning,
    generators: list[torch.Generator],
    done: int,
    end_step: Callable[[int, Tensor, Tensor], Tensor],
    local: LocalGuidance | None,
) -> Tensor:
    """Goes down the noise levels of the call's scheduler.

    Args:
        x: (B, 3, H, W) latents of the first level.
        done: steps of the call before these.
        end_step: (step of the call, timestep, latents) -> latents.
    """
    scheduler = call.scheduler
    sigmas = scheduler.sigmas.tolist()
    low, high = call.guidance_interval
    slack = 1 + 1e-5  # schedules are rounded: a sigma_max of 80 comes out as 79.99998
    guided = [low / slack <= sigma <= high * slack for sigma in sigmas]
    hole = conditioning.mask > 0
    # The first step with values that aren't finite, on the device: to read it in the loop would
    # wait for each step.
    first_bad = torch.full((), len(guided), device=x.device)
    for i, timestep in enumerate(scheduler.timesteps):
        if call.interrupt:
            break
        F = predict_guided(
            call.unet,
            scheduler,
            x,
            torch.full((len(x), 1, 1, 1), sigmas[i], device=x.device, dtype=torch.float32),
            conditioning,
            call.vocabulary.null,
            call.guidance_scale if guided[i] else 1.0,
            call.image_guidance_scale if guided[i] else 1.0,
            local,
        )
        x = scheduler.step(F, timestep, x, generator=generators).prev_sample
        x = torch.where(hole, x, source + sigmas[i + 1] * noise)
        x = end_step(done + i, timestep, x)
        first_bad = torch.where(x.isfinite().all(), first_bad, first_bad.clamp(max=i))
    if (step := int(first_bad)) < len(guided):
        raise ValueError(
            f"the latents are not finite after step {done + step + 1} of {call._num_timesteps}; "
            f"the likely cause: {_likely_cause(call)}"
        )
    return x


def _from_level(start: float, scheduler, steps: int | list[float], device: torch.device):
    """A scheduler that begins at the start; of given noise levels, at the lowest from there on."""
    config = scheduler.config
    if isinstance(steps, int):
        first = min(max(start, 2 * config.sigma_min), config.sigma_max)
        own = type(scheduler).from_config(config, sigma_max=first)
        own.set_timesteps(steps, device=device)
    else:
        above = [level for level in steps if level >= start]
        levels = steps[max(len(above) - 1, 0) :]
        own = type(scheduler).from_config(config)
        own.set_timesteps(len(levels), device=device, sigmas=karras_ramp(levels, config))
    own.set_begin_index(0)
    own.is_scale_input_called = True  # `predict` scales; EDMEulerScheduler would warn
    return own


def _replaced(latents: Tensor, answer: dict | None, step: int) -> Tensor:
    """The latents, or those that a callback returned to replace them."""
    if answer is None:
        return latents
    new = answer.get("latents", latents) if isinstance(answer, dict) else None
    if not isinstance(new, Tensor) or new.shape != latents.shape:
        raise ValueError(
            "callback_on_step_end returned neither None nor a dict whose latents have the shape "
            f"{tuple(latents.shape)}"
        )
    if new is not latents and not new.isfinite().all():
        raise ValueError(
            f"callback_on_step_end returned latents that are not finite after step {step + 1}"
        )
    return new.to(latents)


def _likely_cause(call) -> str:
    """Why the latents of a call are not finite."""
    module = plain_module(call.unet)
    for name, weight in module.named_parameters():
        if not weight.is_meta and not weight.float().isfinite().all():
            return f"the weights of the unet are not finite ({name}): load the model again"
    for name in ("guidance_scale", "image_guidance_scale"):
        if getattr(call, name) > 30:
            return f"{name} is {getattr(call, name):g}: lower it"
    if module.dtype == torch.float16:
        return "float16 overflows: use pipe.to(torch.bfloat16) or pipe.to(torch.float32)"
    return "latents that are far from standard normal, or a callback that changes the pipeline"


# --------------------------------------------------------------------------------------------------
# pipeline.py
# --------------------------------------------------------------------------------------------------


# All tasks, by name. A new task is a file of its own and a line here.
TASKS: dict[str, Task] = {
    task.name: task
    for task in (
        Generate(),
        Inpaint(),
        Edit(),
        Colorize(),
    )
}


class MultiTaskPipeline(SelfContained, GeneratesMasks, DiffusionPipeline):
    """One small UNet that generates, inpaints and edits.

    Calls may overlap, from several threads or from a callback: each has its own state.

    Args:
        unet: takes `denoiser.CHANNELS` channels and one-hot tokens.
        tokenizer: its vocabulary has the tasks and classes that the model has learned.
        scheduler: `EDMDPMSolverMultistepScheduler` or `EDMEulerScheduler`.
        chains: of a model that draws in few steps, the noise levels that each number of steps
            visits; with `EDMEulerScheduler`.
    """

    model_cpu_offload_seq = "unet"
    _callback_tensor_inputs = ["latents"]  # noqa: RUF012, the name and type are diffusers'

    # The state of a call, in the shallow copy that it runs on. `_caller` is what was copied.
    _caller = None
    _interrupt = False
    _guidance_scale = _image_guidance_scale = 1.0
    _guidance_interval = (0.0, math.inf)
    _num_timesteps = 0

    def __init__(
        self,
        unet: UNet2DConditionModel,
        tokenizer,
        scheduler,
        chains: Optional[list] = None,  # noqa: UP045, the form that diffusers 0.36 can read
    ):
        super().__init__()
        components = {"unet": unet, "tokenizer": tokenizer, "scheduler": scheduler}
        for name, component in components.items():
            check_component(name, component)
        self.register_modules(**components)
        if chains is not None:
            check_chains(chains)
            self.register_to_config(chains=chains)
        self._check_vocabulary()

    def __setattr__(self, name: str, value):
        check_component(name, value)
        super().__setattr__(name, value)
        if name == "tokenizer":
            self.vocabulary = Vocabulary.of(value.get_vocab())

    @property
    def tasks(self) -> tuple[str, ...]:
        """Names of the tasks that this model has learned."""
        return tuple(name for name in TASKS if name in self.vocabulary.tasks)

    @property
    def class_names(self) -> tuple[str, ...]:
        """Names of the classes, in the order of their numbers."""
        return tuple(self.vocabulary.classes)

    @property
    def size(self) -> int:
        """Height and width of the images in pixels."""
        return self.unet.config.sample_size

    @property
    def chains(self) -> Chains | None:
        """The noise levels of each number of steps; None: any number."""
        return self.config.get("chains")

    def default_steps(self, task: str) -> int:
        """num_inference_steps of a task, if it is not given."""
        if self.chains is None:
            return TASKS[task].default_steps
        lengths = [len(levels) for levels in self.chains]
        few = TASKS[task].few_steps
        return few if few in lengths else lengths[-1]

    def default_guidance(self, task: str) -> float:
        """guidance_scale of a task, if it is not given: a model of few steps has it built in."""
        return 1.0 if self.chains else TASKS[task].default_guidance_scale

    def default_guidance_interval(self, task: str) -> tuple[float, float]:
        """guidance_interval of a task, if it is not given."""
        return TASKS[task].default_guidance_interval

    @property
    def guidance_scale(self) -> float:
        return self._guidance_scale

    @property
    def image_guidance_scale(self) -> float:
        return self._image_guidance_scale

    @property
    def guidance_interval(self) -> tuple[float, float]:
        return self._guidance_interval

    @property
    def num_timesteps(self) -> int:
        return self._num_timesteps

    @property
    def interrupt(self) -> bool:
        """Whether a call ends after its current evaluation, with the image that it has by then.

        `pipe._interrupt = True` asks for it: on the pipeline that a callback gets it ends that
        call, and on the pipeline itself, as from another thread, all calls that run.
        """
        return self._interrupt or (self._caller is not None and self._caller.interrupt)

    @torch.no_grad()
    def __call__(
        self,
        task: str = "generate",
        class_label: str | int | list | None = None,
        image=None,
        mask_image=None,
        strength: float | list[float] | None = None,
        guidance_scale: float | None = None,
        image_guidance_scale: float | None = None,
        guidance_interval: tuple[float, float] | None = None,
        num_inference_steps: int | None = None,
        num_inversion_steps: int | None = None,
        source_class: str | int | list | None = None,
        num_images_per_prompt: int = 1,
        generator: torch.Generator | list[torch.Generator] | None = None,
        latents: Tensor | None = None,
        output_type: str = "pil",
        return_dict: bool = True,
        callback_on_step_end: Callable | None = None,
        callback_on_step_end_tensor_inputs: list[str] = ["latents"],  # noqa: B006, diffusers' own
    ) -> ImagePipelineOutput | tuple:
        """Draws images. A class, image, mask or strength may be a list, one entry a sample.

        Args:
            task: one of `pipe.tasks`.
            class_label: a class's name or number, None for no class.
            image: the source, `pipe.size` pixels square: PIL, or floats in [0, 1] as an array
                (H, W, 3) or a tensor (3, H, W), or a batch or a list of these.
            mask_image: white (1) is repainted, black (0) is kept, byte for byte.
            strength: degradation of the source, from 0 (none: the source comes back) to 1 (nothing
                is left of it). None: the task's default. Of several, each is a batch of its own.
            guidance_scale: guidance by the class; 1 is off. None: `pipe.default_guidance(task)`.
                Of an edit it is the scale where the class makes as much difference to the source
                as on average: up to twice as much where it makes more, 0 where it makes none.
            image_guidance_scale: guidance by the source; 1 is off.
            guidance_interval: the lowest and the highest noise level (sigma, both included) where
                guidance is applied; elsewhere both scales are 1, for one branch in place of 2 or 3.
                None: `pipe.default_guidance_interval(task)`; (0, math.inf) is everywhere. Source:
                Kynkäänniemi et al. 2024, arXiv:2404.07724.
            num_inference_steps: evaluations of the denoiser, each of 1 to 3 branches. None:
                `pipe.default_steps(task)`. A model of few steps takes the lengths of
                `pipe.chains`, and leaves out the first steps of an edit that is not strong.
            num_inversion_steps: evaluations that carry the source of an edit up to the noise
                level where it starts, so that what the class does not change comes back as it was.
                0: the source with random noise, for edits that differ from seed to seed. None:
                the task's default; of a model of few steps, which can't do it, 0.
            source_class: the class of an edit's source, if it is known: more of the source is kept.
            num_images_per_prompt: images for each sample.
            generator: one, or one for each image. Image i depends on its seed and on i alone.
            latents: (images, 3, size, size) standard normal, instead of drawing them. All other
                noise of an image is derived from its latents.
            output_type: "pil"; "np" (B, H, W, 3) or "pt" (B, 3, H, W), floats in [0, 1]; or
                "latent", (B, 3, H, W) in about [-1, 1], not clipped.
            callback_on_step_end: called as (pipe, step, timestep, tensors) after each step; it may
                return a dict with other latents. `pipe` is a shallow copy with the state of this
                call, such as its scheduler; `pipe._interrupt = True` ends the call.

        Raises:
            ValueError: an argument is out of its range, or one that the task doesn't take; or the
                latents don't stay finite.
        """
        self._check_vocabulary()
        self._check_task(
            task,
            image=image,
            mask_image=mask_image,
            class_label=class_label,
            strength=strength,
            image_guidance_scale=image_guidance_scale,
            num_inversion_steps=num_inversion_steps,
            source_class=source_class,
        )
        check_output_type(output_type)
        self._check_callback(callback_on_step_end, callback_on_step_end_tensor_inputs)
        call = self._copy_for_call()
        call._set_guidance(task, guidance_scale, image_guidance_scale, guidance_interval)
        steps = self._read_steps(task, num_inference_steps)
        spec, device = TASKS[task], self._execution_device
        inversion_steps = read_inversion_steps(
            num_inversion_steps, spec.default_inversion_steps, self.chains
        )
        if source_class is not None and self.chains:
            raise ValueError(
                "source_class is given; a model of few steps has its guidance built in, and can't "
                "use it: leave it out"
            )
        count = read_count(num_images_per_prompt, "num_images_per_prompt")
        source = self._read_source(
            spec, class_label, image, mask_image, strength, count, source_class
        )
        noise = initial_latents(latents, generator, tuple(source.image.shape), device)
        own = own_generators(noise)
        known = 2 * source.image - 1
        own_noise = randn_tensor(noise.shape, own, device, torch.float32)
        hint = spec.condition(known, source.mask, source.strength, own_noise)
        conditioning = build_conditioning(hint, spec, source.label, self.vocabulary)
        callback = (callback_on_step_end, callback_on_step_end_tensor_inputs)
        strengths = [None] * len(noise) if source.strength is None else source.strength.tolist()
        start = [spec.start(strength) for strength in strengths]
        base = build_conditioning(hint, spec, source.source_class, self.vocabulary)
        if inversion_steps:
            noise = invert(call, known, noise, base, start, inversion_steps)
        local = call._local_guidance(spec, known, base, source.label, start, own)
        latents = solve(call, known, noise, conditioning, start, steps, own, *callback, local)

        self.maybe_free_model_hooks()
        if self._caller is None:  # after a call, diffusers' pipelines have its values
            for name in ("_guidance_scale", "_image_guidance_scale", "_guidance_interval"):
                setattr(self, name, getattr(call, name))
            self._num_timesteps = call._num_timesteps
        images = to_output(latents, conditioning.mask, source.image, output_type)
        return ImagePipelineOutput(images=images) if return_dict else (images,)

    def _set_guidance(self, task: str, scale, image_scale, interval) -> None:
        """Reads the arguments of guidance; None: the default of the task and the model."""
        scale = self.default_guidance(task) if scale is None else scale
        image_scale = 1.0 if image_scale is None else image_scale
        interval = self.default_guidance_interval(task) if interval is None else interval
        self._guidance_scale = read_number(scale, 0, math.inf, "guidance_scale")
        self._image_guidance_scale = read_number(image_scale, 0, math.inf, "image_guidance_scale")
        self._guidance_interval = read_interval(interval, "guidance_interval")

    def _read_steps(self, task: str, given: int | None) -> int | list[float]:
        """The number of steps; of a model of few steps, the noise levels that they start at."""
        given = self.default_steps(task) if given is None else given
        steps = read_count(given, "num_inference_steps")
        if self.chains is None:
            return steps
        if not isinstance(self.scheduler, EDMEulerScheduler):
            raise ValueError(
                f"scheduler is of the type {type(self.scheduler).__name__}; this model of few steps"
                " takes EDMEulerScheduler: pipe.scheduler = "
                "EDMEulerScheduler.from_config(pipe.scheduler.config)"
            )
        lengths = {len(levels): levels for levels in self.chains}
        if steps not in lengths:
            raise ValueError(
                f"num_inference_steps is {steps}; this model draws in "
                f"{', '.join(map(str, lengths))} steps"
            )
        return list(lengths[steps])

    def _copy_for_call(self) -> "MultiTaskPipeline":
        """A shallow copy for the state of one call. `solve` gives it schedulers of its own."""
        if self._caller is None:
            self._interrupt = False  # of earlier calls
        call = copy.copy(self)
        call._caller, call._interrupt = self, False
        return call

    def _check_vocabulary(self) -> None:
        """Refuses a UNet and a tokenizer of two models."""
        if self.vocabulary.size != self.unet.config.encoder_hid_dim:
            raise ValueError(
                f"the tokenizer has {self.vocabulary.size} words and the unet takes "
                f"{self.unet.config.encoder_hid_dim}; they must be from one model: compare "
                "tokenizer/tokenizer.json with encoder_hid_dim in unet/config.json"
            )

    def _check_task(self, task: str, **arguments) -> None:
        """Refuses a task the model has not learned, and arguments that don't fit the task."""
        if not isinstance(task, str) or task not in self.tasks:
            untrained = f"; {task} is a task, but this model has not learned it"
            raise ValueError(
                f"task is {shown(task)}; this model knows {', '.join(self.tasks)}"
                + (untrained if isinstance(task, str) and task in TASKS else "")
            )
        spec = TASKS[task]
        given = {name for name, value in arguments.items() if value is not None}
        if missing := spec.required - given:
            raise ValueError(f"task {task!r} needs {', '.join(sorted(missing))}; give it too")
        if unknown := given - spec.required - spec.optional:
            takes = ", ".join(sorted(spec.required | spec.optional))
            raise ValueError(
                f"task {task!r} takes no {', '.join(sorted(unknown))}; it takes {takes}"
            )

    def _check_callback(self, callback: Callable | None, inputs: list[str]) -> None:
        if callback is not None and not callable(callback):
            raise ValueError(
                f"callback_on_step_end is {shown(callback)}; it must be a function or None"
            )
        known = self._callback_tensor_inputs
        if not isinstance(inputs, list | tuple) or any(name not in known for name in inputs):
            raise ValueError(
                f"callback_on_step_end_tensor_inputs is {shown(inputs)}; it must be a list, and "
                f"may have {', '.join(known)}"
            )

    def _read_source(
        self, spec: Task, class_label, image, mask_image, strength, repeat: int, source_class=None
    ) -> Inputs:
        """The arguments as tensors of one length on the device, each entry repeated.

        Without a source the image is zero and all of it is painted.
        """
        parts = {"class_label": read_labels(class_label, self.class_names)}
        if "class_label" in spec.required and (parts["class_label"] < 0).any():
            raise ValueError(f"class_label has None in it; task {spec.name!r} needs a class")
        strength = spec.default_strength if strength is None else strength
        if strength is not None:
            parts["strength"] = read_numbers(strength, 0, 1, "strength")
        if image is not None:
            parts["image"] = read_images(image, self.size)
        if mask_image is not None:
            parts["mask_image"] = read_masks(mask_image, self.size)
        if source_class is not None:
            parts["source_class"] = read_labels(source_class, self.class_names, "source_class")
        shape = (1, 3, self.size, self.size)
        parts.setdefault("image", torch.zeros(shape, dtype=torch.float32))
        parts.setdefault("mask_image", torch.ones(shape, dtype=torch.float32)[:, :1])
        parts.setdefault("source_class", torch.tensor([-1]))
        parts = {
            name: part.repeat_interleave(repeat, 0).to(self._execution_device)
            for name, part in repeat_to_batch(parts).items()
        }
        return Inputs(
            parts["image"],
            parts["mask_image"],
            parts["class_label"],
            parts.get("strength"),
            parts["source_class"],
        )


# diffusers runs this file again, in the same module, for each pipeline that it loads. What the
# first run defined stays, so that pipelines that were loaded earlier can still be pickled.
_first = globals().get("_FIRST_RUN")
if _first is not None and _first["SOURCE"] == SOURCE:
    globals().update(_first)
else:
    _FIRST_RUN = dict(globals())
# The end.
