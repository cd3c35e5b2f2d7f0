"""The pipeline of this model, MultiTaskPipeline, and its tasks.

Generated from the files of mtl_diffusion that are named below. It needs torch, diffusers,
transformers, safetensors, PIL and numpy. Its name ends in a digest of its text: diffusers copies
the code of all models to one folder, where another version of the same name would replace it.
"""

# --------------------------------------------------------------------------------------------------
# degradation.py
# --------------------------------------------------------------------------------------------------
"""Blur-and-noise degradation of the source, by strength."""

import math

import torch
from torch import Tensor

SIGMA_DATA = 0.5  # standard deviation of images in [-1, 1], as in EDM; strength 1 is noise of it
BLUR = 0.25  # standard deviation of the low-pass at strength 1, as a share of the shorter side


def dct_matrix(size: int, device: torch.device) -> Tensor:
    """(size, size) orthonormal DCT-II: row k is the cosine of k half-periods over the image."""
    k = torch.arange(size, device=device, dtype=torch.float32)
    basis = torch.cos(math.pi / size * k[:, None] * (k[None, :] + 0.5))
    basis[0] *= math.sqrt(0.5)
    return basis * math.sqrt(2 / size)


def low_pass(image: Tensor, std: Tensor) -> Tensor:
    """Gaussian blur of (B, C, H, W) with reflecting borders: the heat kernel, diagonal in the DCT.

    `std` is (B,), its standard deviation in pixels, >= 0.
    Source: Rissanen et al. 2023, Generative modelling with inverse heat dissipation, eq. 6.
    """
    rows, columns = (_heat_kernel(size, std) for size in image.shape[-2:])
    return torch.einsum("bij,bcjk,blk->bcil", rows, image, columns)


def _heat_kernel(size: int, std: Tensor) -> Tensor:
    """(B, size, size) the blur of a line of pixels, as a matrix."""
    basis = dct_matrix(size, std.device)
    k = torch.arange(size, device=std.device, dtype=torch.float32)
    frequency = math.pi / size * k  # radians a pixel
    decay = torch.exp(-0.5 * (frequency * std[:, None]) ** 2)  # (B, size)
    return basis.T @ (decay[:, :, None] * basis)


def noise_level(strength: Tensor) -> Tensor:
    """Noise of the degradation as a multiple of its signal, in units of image values; inf at 1."""
    depth = strength.square()
    return torch.where(depth < 1, SIGMA_DATA * torch.tan(math.pi / 2 * depth), math.inf)


def degrade(image: Tensor, strength: Tensor, noise: Tensor) -> Tensor:
    """cos(pi d / 2) low_pass(image, d BLUR W) + sin(pi d / 2) SIGMA_DATA noise, at d = strength^2.

    At every frequency the signal-to-noise ratio falls as the strength grows. Strength 0 gives the
    image back bit for bit, strength 1 gives pure noise, and the variance hardly changes. The
    square gives more of the range to weak degradations: training draws strengths uniformly, and
    edits that keep their source need weak ones.

    Args:
        image: (B, C, H, W) in [-1, 1].
        strength: (B,) in [0, 1].
        noise: (B, C, H, W) standard normal.
    """
    depth = strength.square()
    blurred = low_pass(image, depth * BLUR * min(image.shape[-2:]))
    d = depth[:, None, None, None]
    # cos(pi / 2) is 4e-8 in float32: zero makes strength 1 exact.
    signal = torch.where(d < 1, torch.cos(math.pi / 2 * d), 0.0)
    degraded = signal * blurred + torch.sin(math.pi / 2 * d) * SIGMA_DATA * noise
    return torch.where(d > 0, degraded, image)


# --------------------------------------------------------------------------------------------------
# chains.py
# --------------------------------------------------------------------------------------------------
"""Models that draw in few steps: the noise levels that they visit.

A chain is the noise levels of one number of steps, the highest first. At each of its levels the
model has learned the jump to the next one, and from the last to the image: the end of the teacher's
probability-flow ODE from there. A jump is one Euler step, x' = (s'/s) x + (1 - s'/s) D(x; s). The
noise level tells the model which jump is asked for, so no level belongs to two chains.
"""

from collections.abc import Sequence

import torch
from torch import Tensor


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

    The noise is (B, C, H, W) standard normal; so are the latents, but for their scale.
    """
    (channels, height, width), device = noise.shape[1:], noise.device
    side = (height * width) ** 0.5
    rows, columns = dct_matrix(height, device), dct_matrix(width, device)
    y, x = (
        torch.arange(size, device=device, dtype=torch.float32) * (side / size)
        for size in (height, width)
    )
    frequency = (y[:, None].square() + x[None, :].square()).sqrt()
    variance = (_SPECTRUM * side / frequency.clamp_min(_LOWEST)).square()
    # The eigenvectors of channels of one correlation are grey, and all that is orthogonal.
    grey = (sigma**2 + (1 + (channels - 1) * _GREY) * variance).sqrt()
    colour = (sigma**2 + (1 - _GREY) * variance).sqrt()
    coefficients = rows @ noise @ columns.T
    mean = coefficients.mean(1, keepdim=True)
    return rows.T @ (grey * mean + colour * (coefficients - mean)) @ columns


# --------------------------------------------------------------------------------------------------
# task.py
# --------------------------------------------------------------------------------------------------
"""The contract of a task: what training draws at random, and the input that it conditions on."""

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor


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
        image: (B, C, H, W) in the range of the images, zero where nothing is shown.
        mask: (B, 1, H, W) in {0, 1}. 1 = to be painted: the loss is taken there alone.
            0 = known: `image` is exact there, and comes out unchanged.
        strength: (B,) in [0, 1], NaN for none; or None if the task has no strength.
    """

    image: Tensor
    mask: Tensor
    strength: Tensor | None = None

    def within(self, frame: Tensor, image: Tensor) -> "Hint":
        """The same inside a frame (B, 1, H, W) in {0, 1}; outside the image is known: padding."""
        shown = torch.where(frame > 0, self.image, image)
        return Hint(image=shown, mask=self.mask * frame, strength=self.strength)


class Task(ABC):
    """A task is a name, the arguments it takes when sampling, and two functions.

    Both functions use torch alone and are vectorised over the batch. They get all randomness as
    arguments, so that a training step is a function of its key.

    Class attributes:
        name: the value of `pipe(task=name)`, and the name of the task's token.
        required, optional: arguments of the pipeline that it takes. Any other one is refused.
        default_strength: in [0, 1]; None if the task takes none.
        default_guidance_scale: 1 is off.
        default_guidance_interval: the lowest and highest noise level (sigma) of guidance.
        draws_class: whether a sample without a class is one of a class that is drawn as often as
            the training data has it; else it is drawn with the null class.
        holes_from_data: whether training takes masks of the dataset, too, where it has some.
        few_steps: default_steps of a model of few steps; None: those of its last chain.
        at_once: whether such a model takes one step, and by generate a second one.
    """

    name: ClassVar[str]
    required: ClassVar[frozenset[str]] = frozenset()
    optional: ClassVar[frozenset[str]] = frozenset()
    default_strength: ClassVar[float | None] = None
    default_steps: ClassVar[int] = 18
    default_guidance_scale: ClassVar[float] = 1.0
    default_guidance_interval: ClassVar[tuple[float, float]] = (0.0, math.inf)
    draws_class: ClassVar[bool] = False
    holes_from_data: ClassVar[bool] = False
    few_steps: ClassVar[int | None] = None
    at_once: ClassVar[bool] = False

    ARGUMENTS: ClassVar[frozenset[str]] = frozenset(
        {"image", "mask_image", "class_label", "strength", "image_guidance_scale"}
    )

    def __init_subclass__(cls, **kwargs):
        super().__init_subclass__(**kwargs)
        name = cls.__dict__.get("name")
        if not (isinstance(name, str) and name.isidentifier() and name.islower()):
            raise TypeError(f"{cls.__name__}.name must be a lower-case identifier, not {name!r}")
        if unknown := (cls.required | cls.optional) - Task.ARGUMENTS:
            raise TypeError(f"{cls.__name__} takes {sorted(unknown)}, which no call has")
        if "strength" in cls.required | cls.optional and cls.default_strength is None:
            raise TypeError(f"{cls.__name__} takes a strength: give a default_strength in [0, 1]")

    def draw(
        self, n: int, size: tuple[int, int], class_dropout: float, generator: torch.Generator
    ) -> Choice:
        """Draws a training input for n samples, on the generator's device.

        Unless a task says otherwise all is painted, and only the class is dropped.

        Args:
            n: number of samples, possibly 0.
            size: height and width of the images in pixels.
            class_dropout: probability in [0, 1) that the class token is dropped.
        """
        mask = torch.ones(n, 1, *size, device=generator.device)
        return Choice(mask, bernoulli(n, class_dropout, generator))

    @abstractmethod
    def condition(
        self, image: Tensor, mask: Tensor, strength: Tensor | None, noise: Tensor
    ) -> Hint:
        """Builds the conditioning input. Training and sampling both call this.

        Args:
            image: (B, C, H, W) in [-1, 1], the source; zeros for a task without one.
            mask: (B, 1, H, W) in {0, 1}, 1 = to be painted.
            strength: (B,) in [0, 1]. A task without a strength ignores it.
            noise: (B, C, H, W) standard normal, for degrading the source; not the noise of the
                diffusion, which a task never gets.
        """

    def start(self, strength: Tensor | None) -> Tensor | float:
        """The noise level (sigma) where sampling starts: (B,), or one for all.

        It starts from the source with that much noise; above the sampler's highest level, from
        noise alone. The strength is (B,) in [0, 1], None if the task has none.
        """
        return math.inf


def bernoulli(n: int, probability: float, generator: torch.Generator) -> Tensor:
    """(n,) bool, each true with the given probability."""
    return torch.rand(n, generator=generator, device=generator.device) < probability


# --------------------------------------------------------------------------------------------------
# colorize.py
# --------------------------------------------------------------------------------------------------
"""Colorization: the source's luminance is shown, degraded by the strength."""

from dataclasses import replace

import torch


LUMA = (0.299, 0.587, 0.114)  # ITU-R BT.601, the weights of PIL's convert("L")


class Colorize(Task):
    name = "colorize"
    required = frozenset({"image"})
    optional = frozenset({"class_label", "strength"})
    default_strength = 0.0

    def draw(self, n, size, class_dropout, generator):
        # Half the samples show the grey image as it is, which is what most users ask for.
        strength = torch.rand(n, generator=generator, device=generator.device)
        strength = torch.where(bernoulli(n, 0.5, generator), strength, 0.0)
        return replace(super().draw(n, size, class_dropout, generator), strength=strength)

    def condition(self, image, mask, strength, noise):
        # Plain numbers: training would wait until a tensor of them is on the device.
        *rgb, rest = image.split([1, 1, 1, image.shape[1] - 3], dim=1)  # alpha is shown as it is
        grey = sum(weight * part for weight, part in zip(LUMA, rgb, strict=True))
        shown = torch.cat([grey, grey, grey, rest], dim=1)
        return Hint(degrade(shown, strength, noise), torch.ones_like(mask), strength)


# --------------------------------------------------------------------------------------------------
# tokens.py
# --------------------------------------------------------------------------------------------------
"""The meaning of the tokens, read from the tokenizer's vocabulary.

Ids are stored in the vocabulary alone. Its words are `<null>`, `<task:NAME>`, `<class:NAME>`,
`<strength:I>` for the levels I / (L - 1), `<augment:NAME>` for the amounts of an augmentation in
training, and `<reserved:I>`: ids that a new word can take without changing a shape.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

NULL = "<null>"
WORD = re.compile(r"<(task|class|strength|augment|reserved):(.+)>", re.DOTALL)


@dataclass(frozen=True)
class Vocabulary:
    """The ids of a model's words.

    Attributes:
        null: id of the null token; it replaces tokens that are dropped.
        tasks, classes: name -> id; classes in the order of the class labels.
        strengths: ids of the strength levels, from 0 to 1.
        augments: name -> id, of what training tells of an augmentation; else nothing has them.
        reserved: ids that are free.
        size: number of ids, V.
    """

    null: int
    tasks: dict[str, int]
    classes: dict[str, int]
    strengths: tuple[int, ...]
    augments: dict[str, int]
    reserved: tuple[int, ...]
    size: int

    @classmethod
    def of(cls, words: Mapping[str, int]) -> "Vocabulary":
        """Reads word -> id, as `tokenizer.get_vocab()` gives it.

        Raises:
            ValueError: the words aren't those of such a vocabulary.
        """
        kinds = {"task": {}, "class": {}, "strength": {}, "augment": {}, "reserved": {}}
        for word, index in sorted(words.items(), key=lambda item: item[1]):
            if match := WORD.fullmatch(word):
                kinds[match[1]][match[2]] = index
        levels = [kinds["strength"].get(str(i)) for i in range(len(kinds["strength"]))]
        dense = sorted(words.values()) == [*range(1 + sum(map(len, kinds.values())))]
        if NULL not in words or not dense or len(levels) < 2 or None in levels:
            raise ValueError(
                f"the tokenizer's vocabulary has {len(words)} words; it needs {NULL}, two or more "
                "strength levels, numbered from 0, tasks, classes and reserved words alone, and the"
                " ids from 0 on, each once. Load a tokenizer that was saved with this model."
            )
        return cls(
            null=words[NULL],
            tasks=kinds["task"],
            classes=kinds["class"],
            strengths=tuple(levels),
            augments=kinds["augment"],
            reserved=tuple(kinds["reserved"].values()),
            size=len(words),
        )

    def class_ids(self, labels: Tensor) -> Tensor:
        """Class labels (B,) -> ids (B,). A negative label means no class."""
        table = _table((*self.classes.values(), self.null), labels.device)
        return table[torch.where(labels < 0, len(self.classes), labels)]

    def tokens(self, task: int, label: Tensor, strength: Tensor | None) -> Tensor:
        """Distributions over the vocabulary (B, 3, V) float32: task, class, strength.

        Args:
            task: an id. label: (B,) class ids, not labels.
            strength: (B,) in [0, 1], NaN or None for null. Two neighbouring levels share it.
        """
        null = self._one_hot(torch.full_like(label, self.null))
        ids = self._one_hot(torch.stack([torch.full_like(label, task), label], 1))
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
# --------------------------------------------------------------------------------------------------
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


# --------------------------------------------------------------------------------------------------
# masks.py
# --------------------------------------------------------------------------------------------------
"""The kinds of masks that inpainting learns: (B, 1, H, W) in {0, 1}, 1 = to be painted.

Every kind is drawn for the whole batch at once, on the generator's device, without a loop over
samples and without waiting for the device.
"""

import torch
from torch import Tensor

Size = tuple[int, int]  # height and width in pixels


def _uniform(shape: tuple[int, ...], low: float, high: float, generator: torch.Generator) -> Tensor:
    return low + (high - low) * torch.rand(shape, generator=generator, device=generator.device)


def _pixels(size: int, device: torch.device) -> Tensor:
    """(size,) centres of the pixels as shares of the side, in (0, 1)."""
    return (torch.arange(size, device=device) + 0.5) / size


def _box(top: Tensor, bottom: Tensor, left: Tensor, right: Tensor, size: Size) -> Tensor:
    """(..., H, W) bool from borders (...) in shares of the sides."""
    y, x = (_pixels(side, top.device) for side in size)
    rows = (y >= top[..., None]) & (y < bottom[..., None])
    columns = (x >= left[..., None]) & (x < right[..., None])
    return rows[..., :, None] & columns[..., None, :]


def center(n: int, size: Size, generator: torch.Generator) -> Tensor:
    """A box in the middle, half as wide as the image: the benchmark of the literature."""
    low = torch.full((n,), 0.25, device=generator.device)
    high = torch.full((n,), 0.75, device=generator.device)
    return _box(low, high, low, high, size)[:, None]


def boxes(n: int, size: Size, generator: torch.Generator) -> Tensor:
    """One to three boxes, each side between a fifth and three fifths of the image's."""
    sides = _uniform((n, 3, 2), 0.2, 0.6, generator)
    corner = _uniform((n, 3, 2), 0.0, 1.0, generator) * (1 - sides)
    end = corner + sides
    drawn = _box(corner[..., 0], end[..., 0], corner[..., 1], end[..., 1], size)  # (n, 3, H, W)
    count = torch.randint(1, 4, (n, 1), generator=generator, device=generator.device)
    used = torch.arange(3, device=generator.device) < count
    return (drawn & used[..., None, None]).any(dim=1, keepdim=True)


def strokes(n: int, size: Size, generator: torch.Generator) -> Tensor:
    """Free-form: a thick brush dragged along a random walk of six segments."""
    start = _uniform((n, 1, 2), 0.1, 0.9, generator)
    step = _uniform((n, 6, 2), -0.45, 0.45, generator)
    # Reflect the walk at the borders, so that the brush stays on the image.
    path = torch.cat([start, start + step.cumsum(dim=1)], dim=1)  # (n, 7, 2)
    path = 1 - (path.remainder(2) - 1).abs()
    a, b = path[:, :-1, None, None], path[:, 1:, None, None]  # (n, 6, 1, 1, 2)
    sides = (_pixels(side, generator.device) for side in size)
    point = torch.stack(torch.meshgrid(*sides, indexing="ij"), dim=-1)  # (H, W, 2)
    along = ((point - a) * (b - a)).sum(-1) / (b - a).square().sum(-1).clamp_min(1e-8)
    nearest = a + along.clamp(0, 1)[..., None] * (b - a)
    distance = (point - nearest).square().sum(-1).amin(dim=1)  # (n, H, W)
    radius = _uniform((n, 1, 1), 0.05, 0.12, generator)
    return (distance < radius.square())[:, None]


def half(n: int, size: Size, generator: torch.Generator) -> Tensor:
    """The left, right, upper or lower half."""
    y, x = (_pixels(side, generator.device) < 0.5 for side in size)
    upper, left = y[:, None].expand(size), x.expand(size)
    sides = torch.stack([upper, ~upper, left, ~left])
    return sides[torch.randint(4, (n,), generator=generator, device=generator.device)][:, None]


def border(n: int, size: Size, generator: torch.Generator) -> Tensor:
    """Everything around a kept box in the middle: outpainting."""
    margin = _uniform((n,), 0.15, 0.35, generator)
    return ~_box(margin, 1 - margin, margin, 1 - margin, size)[:, None]


def pixels(n: int, size: Size, generator: torch.Generator) -> Tensor:
    """Each pixel on its own, half to nineteen twentieths of them missing."""
    share = _uniform((n, 1, 1, 1), 0.5, 0.95, generator)
    return _uniform((n, 1, *size), 0.0, 1.0, generator) < share


MASKS = {kind.__name__: kind for kind in (center, boxes, strokes, half, border, pixels)}


def draw_masks(n: int, size: Size, generator: torch.Generator, kind: str | None = None) -> Tensor:
    """(n, 1, H, W) float in {0, 1}, 1 = to be painted; never empty, never everything.

    Args:
        kind: a key of `MASKS`, or None for a random kind a sample.
    """
    kinds = list(MASKS) if kind is None else [kind]
    drawn = torch.stack([MASKS[name](n, size, generator) for name in kinds])
    which = torch.randint(len(kinds), (n,), generator=generator, device=generator.device)
    mask = drawn[which, torch.arange(n, device=generator.device)].float()
    # A mask without a hole has no loss, and one without a known pixel is generation.
    share = mask.mean(dim=(1, 2, 3), keepdim=True)
    return torch.where((share > 0) & (share < 1), mask, center(n, size, generator).float())


# --------------------------------------------------------------------------------------------------
# edit.py
# --------------------------------------------------------------------------------------------------
"""Class-guided editing: a source and a class go in, the source turned into that class comes out.

There are no edited pairs to learn from. The first stage of training shows a degraded image with its
own class (`Edit`); sampling gives another class, and starts from the source with noise. The second
stage learns from whole edits that the first one made (`EditAtOnce`): one evaluation is an edit.
"""

import math

import torch
from torch import Tensor


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


# --------------------------------------------------------------------------------------------------
# format.py
# --------------------------------------------------------------------------------------------------
"""The images of a model: their size, channels and depth, and how numbers stand for them.

Three ranges occur. The network has [-1, 1]. A dataset stores the numbers of its files. Arrays that
a user gives and gets are floats in [0, 1], or in `value_range` where the model has one.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

# The key in the configuration of the UNet. Absent: RGB of 8 bits, as in models of earlier versions.
MARK = "_image_format"
MODES = {"L": 1, "RGB": 3, "RGBA": 4}  # channels of the modes of PIL
HIGHEST = {"uint8": 255.0, "uint16": 65535.0}
# What PIL has a mode for.
PIL_MODES = {(mode, "uint8"): mode for mode in MODES}
PIL_MODES |= {("L", "uint16"): "I;16", ("L", "float32"): "F"}


@dataclass(frozen=True)
class ImageFormat:
    """The format of the images of a dataset or a model.

    Attributes:
        height, width: in pixels.
        mode: "L", "RGB", "RGBA", or a number of bands.
        dtype: "uint8", "uint16" or "float32", in which they are stored.
        value_range: the lowest and highest number that is stored. None: that of the integers.
        shown_bands: of several bands, the three that are shown as red, green and blue. None: the
            first ones.
        fit: how a dataset's images of other shapes come to this size: "crop", "pad" or "stretch".
    """

    height: int
    width: int
    mode: str | int = "RGB"
    dtype: str = "uint8"
    value_range: tuple[float, float] | None = None
    shown_bands: tuple[int, ...] | None = None
    fit: str = "crop"

    @classmethod
    def square(cls, side: int) -> "ImageFormat":
        """RGB of 8 bits."""
        return cls(side, side)

    @classmethod
    def of(cls, config: Mapping[str, Any]) -> "ImageFormat":
        """That of a UNet's configuration."""
        size = config["sample_size"]
        height, width = (size, size) if isinstance(size, int) else size
        known = config.get(MARK) or {}  # JSON has lists in place of tuples
        known = {k: tuple(v) if isinstance(v, list) else v for k, v in known.items()}
        return cls(height, width, **known)

    @property
    def mark(self) -> dict[str, Any]:
        """What a UNet's configuration holds besides its size; nothing for RGB of 8 bits."""
        known = {f.name: getattr(self, f.name) for f in fields(self)[2:]}
        known = {f: known[f] for f in known if known[f] != getattr(ImageFormat, f)}
        return {MARK: known} if known else {}

    @property
    def sample_size(self) -> int | tuple[int, int]:
        """The size as a UNet's configuration has it."""
        return self.height if self.height == self.width else (self.height, self.width)

    @property
    def size(self) -> tuple[int, int]:
        return self.height, self.width

    @property
    def channels(self) -> int:
        return MODES.get(self.mode, self.mode)

    @property
    def input_channels(self) -> int:
        """Of the network: noisy image with the known pixels in it, condition image, mask."""
        return 2 * self.channels + 1

    @property
    def shape(self) -> tuple[int, int, int]:
        return self.channels, self.height, self.width

    @property
    def pil_mode(self) -> str | None:
        """The mode of PIL that holds such images, or None."""
        return PIL_MODES.get((self.mode, self.dtype))

    @property
    def words(self) -> str:
        """Such as 32x32 pixels, of the mode RGB."""
        kind = f"{self.mode} bands" if isinstance(self.mode, int) else f"mode {self.mode}"
        return f"{self.width}x{self.height} pixels, {kind}, {self.dtype}"

    @property
    def stored_range(self) -> tuple[float, float]:
        """The numbers that are stored for black and white."""
        return self.value_range or (0.0, HIGHEST[self.dtype])

    @property
    def array_range(self) -> tuple[float, float]:
        """The numbers of black and white in a user's arrays."""
        return self.value_range or (0.0, 1.0)

    @property
    def stored_middle(self) -> float:
        """What padding is stored as."""
        middle = sum(self.stored_range) / 2
        return middle if self.dtype == "float32" else float(int(middle + 0.5))

    def from_stored(self, images: Tensor) -> Tensor:
        """Stored numbers -> float32 in [-1, 1], of the same shape and on the same device."""
        return self._from(images, self.stored_range)

    def to_stored(self, images: Tensor) -> Tensor:
        """Images in [-1, 1] -> numbers to store, clipped and rounded: undoes `from_stored`."""
        return self._rounded(self._to(images, self.stored_range))

    def from_array(self, images: Tensor) -> Tensor:
        """A user's numbers -> float32 in [-1, 1]."""
        return self._from(images, self.array_range)

    def to_array(self, images: Tensor) -> Tensor:
        """Images in about [-1, 1] -> a user's numbers, clipped."""
        return self._to(images, self.array_range)

    def stored_as_array(self, images: Tensor) -> Tensor:
        """Stored numbers -> a user's, the same ones if there is a `value_range`."""
        return images.float() if self.value_range else images.float() / HIGHEST[self.dtype]

    def array_as_stored(self, images: Tensor) -> Tensor:
        """A user's numbers -> those to store, rounded; exact for what `stored_as_array` gave."""
        return self._rounded(images if self.value_range else images * HIGHEST[self.dtype])

    def from_pil(self, image: Image.Image) -> Tensor:
        """A PIL image of `pil_mode` -> (C, H, W) in a user's numbers."""
        pixels = torch.from_numpy(np.array(image, dtype=self.dtype))
        return self.stored_as_array(torch.atleast_3d(pixels).permute(2, 0, 1))

    def to_pil(self, images: Tensor) -> list[Image.Image]:
        """(B, C, H, W) in a user's numbers -> PIL images; there is a `pil_mode`."""
        pixels = self.array_as_stored(images).permute(0, 2, 3, 1).cpu().numpy()
        return [Image.fromarray(one[..., 0] if one.shape[-1] == 1 else one) for one in pixels]

    def rgb(self, images: Tensor) -> Tensor:
        """Images in [-1, 1] as RGB (B, 3, H, W) in [-1, 1]: clear pixels are white, and of several
        bands three are shown."""
        if self.mode == "RGB":
            return images
        if self.mode == "L":
            return images.expand(-1, 3, -1, -1)
        if self.mode == "RGBA":
            alpha = images[:, 3:] / 2 + 0.5
            return images[:, :3] * alpha + (1 - alpha)
        last = self.mode - 1
        return images[:, list(self.shown_bands or (0, min(1, last), min(2, last)))]

    def stored_as_rgb(self, images: Tensor) -> Tensor:
        """Stored numbers -> RGB (B, 3, H, W) uint8; RGB of 8 bits stays as it is."""
        if (self.mode, self.dtype) == ("RGB", "uint8"):
            return images
        rgb = self.rgb(self.from_stored(images).clamp(-1, 1))
        return ((rgb + 1) * 127.5).round().to(torch.uint8)

    def padding(self, size: Sequence[int]) -> tuple[int, int, int, int]:
        """Pixels at the left, right, top and bottom that centre an image (H, W) in this size."""
        left, top = (self.width - size[1]) // 2, (self.height - size[0]) // 2
        return left, self.width - size[1] - left, top, self.height - size[0] - top

    def check_size(self, height: int, width: int, name: str) -> None:
        """Refuses an image of another size; with the fit "pad" one side may be smaller."""
        inside = 0 < height <= self.height and 0 < width <= self.width
        one_side = height == self.height or width == self.width
        if (height, width) == self.size or (self.fit == "pad" and inside and one_side):
            return
        smaller = ", or less in one of the two" if self.fit == "pad" else ""
        raise ValueError(
            f"{name} is {width}x{height} pixels; this model takes {self.width}x{self.height}"
            f"{smaller}: resize it"
        )

    def _from(self, images: Tensor, ends: tuple[float, float]) -> Tensor:
        low, high = ends
        images = (images.float() - low) / ((high - low) / 2) - 1
        if self.mode != "RGBA":
            return images
        # Colours under clear alpha are arbitrary in files, so they are made equal: black.
        seen = images[:, 3:] > -1
        return torch.cat([torch.where(seen, images[:, :3], -1.0), images[:, 3:]], dim=1)

    def _to(self, images: Tensor, ends: tuple[float, float]) -> Tensor:
        low, high = ends
        return (images.clamp(-1, 1) + 1) * ((high - low) / 2) + low

    def _rounded(self, numbers: Tensor) -> Tensor:
        rounded = numbers if self.dtype == "float32" else numbers.round()
        return rounded.to(getattr(torch, self.dtype))


# --------------------------------------------------------------------------------------------------
# generate.py
# --------------------------------------------------------------------------------------------------
"""Generation without a source, with a class or without."""

import torch



class Generate(Task):
    name = "generate"
    optional = frozenset({"class_label"})
    draws_class = True  # p(x) is the sum over the classes of p(c) p(x | c)
    default_guidance_scale = 2.0
    # At higher noise levels guidance costs diversity. Kynkäänniemi et al. 2024, arXiv:2404.07724.
    default_guidance_interval = (0.28, 2.9)

    def condition(self, image, mask, strength, noise):
        return Hint(image=torch.zeros_like(image), mask=torch.ones_like(mask))


# --------------------------------------------------------------------------------------------------
# inpaint.py
# --------------------------------------------------------------------------------------------------
"""Inpainting: the known pixels are shown, the others are painted."""

from dataclasses import replace



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


# --------------------------------------------------------------------------------------------------
# rgb.py
# --------------------------------------------------------------------------------------------------
"""Any image that Pillow opens -> RGB of 8 bits as a model means it: upright, in sRGB, opaque."""

import io
from functools import lru_cache

import numpy as np
from PIL import ExifTags, Image, ImageCms, ImageOps

_MODES = {"RGB": "RGB", "GRAY": "L", "CMYK": "CMYK"}  # colour space of a profile -> Pillow's mode


def read_rgb(image: Image.Image, alpha: bool = False) -> Image.Image:
    """The image as RGB of 8 bits, of the same pixels where it is that already.

    Palettes, CMYK and the like are converted. Grey of 16 bits keeps its range: 65,535 becomes 255.
    Colours with an embedded profile are converted to sRGB; a profile that can't be read, or that is
    of another kind of pixels, is left out, as browsers do. Transparency is composited over white.
    EXIF's orientation is applied. Of several frames the current one is read.

    Args:
        alpha: give RGBA, and leave transparency as it is.

    Raises:
        ValueError: the pixels are floating point numbers, or integers outside 0 to 65,535.
        OSError: the file of an image that is not loaded yet is damaged.
    """
    profile, orientation = image.info.get("icc_profile"), _orientation(image)
    if image.mode.startswith("I"):
        image = _upper_8_bits(image)
    if image.mode == "F":
        raise ValueError(
            "its pixels are floating point numbers, whose range is not known; save it as integers"
        )
    rgb = _srgb(image, profile)
    if alpha or image.has_transparency_data:
        rgb.putalpha(image.convert("RGBA").getchannel("A"))
    if not alpha and rgb.mode == "RGBA":
        white = Image.new("RGBA", image.size, "white")
        rgb = Image.alpha_composite(white, rgb).convert("RGB")
    if orientation in range(2, 9):
        rgb = Image.fromarray(np.asarray(rgb))  # without the other tags, which may be damaged
        rgb.getexif()[ExifTags.Base.Orientation] = orientation
        rgb = ImageOps.exif_transpose(rgb)
    return rgb


def _orientation(image: Image.Image) -> int | None:
    try:
        return image.getexif().get(ExifTags.Base.Orientation)
    except Exception:  # none can be read
        return None


def _upper_8_bits(image: Image.Image) -> Image.Image:
    """Grey of 16 bits as 8 bits: `convert` would clip it at 255."""
    grey = np.asarray(image).astype(np.int64)
    if grey.min() < 0 or grey.max() > 65535:
        raise ValueError(f"it has values from {grey.min()} to {grey.max()}, not 0 to 65535")
    return Image.fromarray((grey >> 8).astype(np.uint8))


def _srgb(image: Image.Image, profile: bytes | None) -> Image.Image:
    """The colours of an image of 8 bits, without its transparency."""
    # By way of RGBA, as Pillow warns of palettes with transparency where it would be lost.
    rgb = (image.convert("RGBA") if image.mode == "P" else image).convert("RGB")
    if not profile:
        return rgb
    try:
        transform, mode = _transform(profile)
    except (ImageCms.PyCMSError, OSError, KeyError):
        return rgb
    if mode != "RGB" and image.mode not in (mode, mode + "A"):
        return rgb
    converted = ImageCms.applyTransform(rgb if mode == "RGB" else image.convert(mode), transform)
    difference = np.asarray(converted, np.int16) - np.asarray(rgb, np.int16)
    # The profile of sRGB itself: its conversion may round, so it is not applied.
    return rgb if np.abs(difference).max() <= 2 else converted


@lru_cache(16)
def _transform(profile: bytes) -> tuple[ImageCms.ImageCmsTransform, str]:
    """The transform to sRGB, and the mode of the pixels that it takes."""
    source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
    mode = _MODES[source.profile.xcolor_space.strip()]
    return ImageCms.buildTransform(source, ImageCms.createProfile("sRGB"), mode, "RGB"), mode


# --------------------------------------------------------------------------------------------------
# inputs.py
# --------------------------------------------------------------------------------------------------
"""Reads the arguments of the pipeline as tensors; errors name what came and what to do."""

import math
import numbers
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn.functional import pad


UNSET = -2  # the label of a sample without one; any negative number is no class for the network


@dataclass(frozen=True)
class Inputs(Samples):
    """The arguments of a call as tensors, one entry a sample.

    Attributes:
        image: (B, C, H, W), the numbers of arrays. mask: (B, 1, H, W) in {0, 1}. label: (B,), see
            `read_labels`.
        frame: (B, 1, H, W) in {0, 1}, 0 in the padding of images that are smaller than the model's.
        strength: (B,) in [0, 1], or None if the task takes none.
    """

    image: Tensor
    mask: Tensor
    label: Tensor
    frame: Tensor
    strength: Tensor | None


def read_inputs(
    task: Task, given: Mapping, classes: Sequence[str], images: ImageFormat, n: int
) -> Inputs:
    """The arguments of a call as tensors of one length, each entry n times.

    Without a source the image is zero and all of it is painted.
    """
    label = read_labels(given["class_label"], classes)
    if "class_label" in task.required and (label < 0).any():
        raise ValueError(f"class_label has None in it; task {task.name!r} needs a class")
    strength = task.default_strength if given["strength"] is None else given["strength"]
    if strength is not None:
        entries = _entries(strength, "strength")
        strength = torch.tensor([read_number(one, 0, 1, "strength") for one in entries])
    pixels = torch.full((1, *images.shape), images.array_range[0])
    frame = mask = torch.ones(1, 1, *images.size)
    if given["image"] is not None:
        pixels, frame = read_images(given["image"], images)
    if given["mask_image"] is not None:
        mask = read_masks(given["mask_image"], images)
    parts = {"class_label": label, "strength": strength, "image": pixels, "mask_image": mask}
    lengths = {name: len(part) for name, part in parts.items() if part is not None}
    size = max(lengths.values())
    if not {*lengths.values()} <= {1, size}:
        raise ValueError(
            "the arguments have different lengths: "
            + ", ".join(f"{name} {length}" for name, length in lengths.items())
            + "; give each of them once, or as often as the longest"
        )

    def repeated(part: Tensor | None) -> Tensor | None:
        if part is not None:
            part = part.expand(size, *part.shape[1:]).repeat_interleave(n, 0)
        return part

    return Inputs(*map(repeated, (pixels, mask, label, frame, strength)))


def read_images(value, images: ImageFormat, name: str = "image") -> tuple[Tensor, Tensor]:
    """Images as (B, C, H, W) float32, and where they are not padding: (B, 1, H, W) in {0, 1}.

    Takes a PIL image, which `read_rgb` brings to the model's mode if that has 8 bits, an array
    (H, W, C), a tensor (C, H, W), a batch of either with one more axis in front, or a list of them.
    Arrays and tensors are floats in `images.array_range`, which is what `output_type="np"` and
    `"pt"` give.
    """
    read = [_image(item, images, name) for item in _items(value, name)]
    middle = sum(images.array_range) / 2
    padded = [_padded(one, images, name, middle) for one in read]
    frames = [_padded(torch.ones_like(one[:1]), images, name) for one in read]
    return torch.stack(padded), torch.stack(frames)


def read_masks(value, images: ImageFormat, name: str = "mask_image") -> Tensor:
    """Masks as (B, 1, H, W) float32 in {0, 1}: white (1) is repainted, black (0) is kept.

    Takes opaque PIL images, and arrays or tensors as `read_images`, of one channel and of floats in
    [0, 1] or booleans; also (H, W). Values of one half and more are white.
    """
    read = [_mask(item, name) for item in _items(value, name)]
    return torch.stack([_padded(one, images, name) for one in read])


def read_labels(value, classes: Sequence[str], name: str = "class_label") -> Tensor:
    """Class labels as (B,) int64 in 0..K-1, from names, numbers, None or a list of them.

    -1 is the null class, and None becomes `UNSET`.
    """
    return torch.tensor([_label(item, classes, name) for item in _entries(value, name)])


def read_number(value, low: float, high: float, name: str) -> float:
    """A finite number in [low, high]."""
    if not isinstance(value, numbers.Real) or not low <= value <= min(high, 1e38):
        upper = f"to {high}" if math.isfinite(high) else "upwards"
        raise wrong(name, value, f"a number from {low} {upper}")
    return float(value)


def read_interval(value, name: str) -> tuple[float, float]:
    """Two numbers, 0 <= low <= high; high may be infinite."""
    try:
        low, high = map(float, value)
    except (TypeError, ValueError):
        low, high = math.nan, math.nan
    if not 0 <= low <= high:
        wanted = "two numbers, the lower one first and 0 or more, such as (0.28, 2.9), or None"
        raise wrong(name, value, wanted)
    return low, high


def read_count(value, name: str) -> int:
    """A whole number from 1."""
    if not isinstance(value, numbers.Integral) or value < 1:
        raise wrong(name, value, "a whole number from 1")
    return int(value)


def wrong(name: str, value, wanted: str) -> ValueError:
    """The error for an argument. It shows the value on one line, shortened."""
    text = " ".join(repr(value).split())
    text = text if len(text) <= 80 else f"{text[:77]}..."
    return ValueError(f"{name} is {text}; it must be {wanted}")


def _entries(value, name: str) -> list:
    """The entries of a list, tuple, array or tensor; any other value is its only entry."""
    items = value.tolist() if isinstance(value, Tensor | np.ndarray) else value
    items = list(items) if isinstance(items, list | tuple) else [items]
    if not items:
        raise ValueError(f"{name} is an empty list; leave it out, or give an entry for each sample")
    return items


def _items(value, name: str) -> list:
    """A batch as a list of single pictures."""
    if isinstance(value, list | tuple) and value:
        return [item for part in value for item in _items(part, name)]
    if isinstance(value, Image.Image):
        return [value]
    if not isinstance(value, Tensor | np.ndarray) or (value.ndim > 2 and not len(value)):
        kinds = "a PIL image, a numpy array of floats, a tensor"
        raise wrong(name, value, f"{kinds}, or a list or batch of one or more")
    value = value.detach().cpu() if isinstance(value, Tensor) else value
    return list(value) if value.ndim == 4 else [value]


def _padded(image: Tensor, images: ImageFormat, name: str, value: float = 0.0) -> Tensor:
    """(C, H, W) of the model's size."""
    images.check_size(*image.shape[1:], name)
    return pad(image, images.padding(image.shape[1:]), value=value)


def _image(item, images: ImageFormat, name: str) -> Tensor:
    """(C, H, W), not padded yet."""
    if not isinstance(item, Image.Image):
        return _planes(item, images.channels, name, images.array_range)
    wanted = images.pil_mode
    if wanted and images.dtype == "uint8":
        read = _rgb(item, name, alpha=wanted == "RGBA")
        item = read.convert("L") if wanted == "L" else read
    elif item.mode != wanted and (wanted, item.mode) != ("I;16", "I"):
        raise ValueError(
            f"{name} is a PIL image of mode {item.mode}; of {images.words} PIL "
            f"{f'has the mode {wanted}' if wanted else 'has no mode'}: give an array of floats"
        )
    return images.from_pil(item)


def _mask(item, name: str) -> Tensor:
    """(1, H, W) in {0, 1}, not padded yet."""
    is_pil = isinstance(item, Image.Image)
    if is_pil:
        rgba = _rgb(item, name, alpha=True)
        if rgba.getextrema()[3][0] < 255:
            raise ValueError(
                f"{name} is transparent in places, and a mask is black and white: put it on a "
                "black background if what is transparent is kept, on a white one if it is repainted"
            )
        mask = torch.from_numpy(np.array(rgba.convert("L"), np.float32))[None] / 255
    else:
        is_bool = str(item.dtype) in ("bool", "torch.bool")
        mask = _planes(item * 1.0 if is_bool else item, 1, name)
    brightest, white = mask.max().item() if mask.numel() else 0, 255 if is_pil else 1
    if 0 < brightest < 0.5:
        raise ValueError(
            f"{name} has values up to {brightest * white:.3g}, so nothing would be repainted: make "
            f"white what is to be repainted ({white}), and black what is kept (0)"
        )
    return (mask >= 0.5).float()


def _rgb(image: Image.Image, name: str, alpha: bool) -> Image.Image:
    """A PIL image as `read_rgb` has it, which reads its file when its pixels are first needed."""
    try:
        image.load()
        return read_rgb(image, alpha)
    except (AssertionError, ValueError, OSError, SyntaxError) as error:
        cause = str(error) or "its file was closed before load()"
        raise ValueError(
            f"{name} is a PIL image of mode {image.mode} that can't be read: {cause}"
        ) from error


def _planes(
    item: np.ndarray | Tensor, channels: int, name: str, allowed: tuple[float, float] = (0, 1)
) -> Tensor:
    """(C, H, W) float32 of an array (H, W, C) or a tensor (C, H, W); of one channel also (H, W)."""
    (low, high), is_array = allowed, isinstance(item, np.ndarray)
    advice = ": divide 0..255 by 255, map [-1, 1] by x / 2 + 0.5" if (low, high) == (0, 1) else ""
    if not (item.dtype.kind == "f" if is_array else item.is_floating_point()):
        raise ValueError(
            f"{name} has the type {item.dtype}; arrays and tensors must be floats in "
            f"[{low:g}, {high:g}]{advice}"
        )
    pixels = torch.from_numpy(np.array(item, np.float32)) if is_array else item.float()
    if pixels.ndim == 2:
        pixels = pixels[None]
    elif is_array and pixels.ndim == 3:
        pixels = pixels.permute(2, 0, 1)
    if pixels.ndim != 3 or len(pixels) != channels:
        sides = f"H, W, {channels}" if is_array else f"{channels}, H, W"
        raise ValueError(
            f"{name} is {'an array' if is_array else 'a tensor'} of shape {tuple(item.shape)}; it "
            f"must be ({sides}), or (B, {sides})"
        )
    if not ((low <= pixels) & (pixels <= high)).all():
        raise ValueError(
            f"{name} has values from {pixels.min():.3g} to {pixels.max():.3g}; it must lie in "
            f"[{low:g}, {high:g}]{advice}"
        )
    return pixels


def _label(item, classes: Sequence[str], name: str) -> int:
    if item is None:
        return UNSET
    if isinstance(item, str) and item in classes:
        return list(classes).index(item)
    if isinstance(item, numbers.Integral) and -1 <= item < len(classes):
        return int(item)
    wanted = "None, for this model has no classes"
    if classes:
        more = f" and {len(classes) - 20} more" if len(classes) > 20 else ""
        known = f"a class that this model knows ({', '.join(classes[:20])}{more})"
        wanted = f"{known}, a number from 0 to {len(classes) - 1}, -1 for the null class, or None"
    raise wrong(name, item, wanted)


# --------------------------------------------------------------------------------------------------
# source.py
# --------------------------------------------------------------------------------------------------
"""The text of this file, for saving the model again."""

from pathlib import Path

SOURCE = Path(__file__).read_text(encoding="utf-8")


def source() -> str:
    """The text of this file."""
    return SOURCE


# --------------------------------------------------------------------------------------------------
# loading.py
# --------------------------------------------------------------------------------------------------
"""Saves a pipeline as a folder that loads without this package, and checks what is loaded."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from diffusers import EDMDPMSolverMultistepScheduler, EDMEulerScheduler, UNet2DConditionModel
from diffusers.utils.hub_utils import upload_folder
from safetensors import safe_open
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase


INDEX = "model_index.json"
# Patterns of what a model replaces in a folder or a repository; pipeline.py is of earlier exports.
REPLACED = (f"pipeline_{'[0-9a-f]' * 8}.py", "pipeline.py", "unet/diffusion_pytorch_model*")
TOKENIZER_CLASS = "PreTrainedTokenizerFast"
# Local paths and options that the libraries note in a configuration when they load it; and an
# entry of earlier exports.
LOADING_TRACES = ("_name_or_path", "is_local", "local_files_only", "_model_id")

WORDS = "_vocabulary"  # in unet/config.json: the words the weights were trained with
AGAIN = "download or save the model again"
# Of each component the types, and what to give.
WANTED = {
    "unet": (
        (UNet2DConditionModel,),
        "compiled or not: of a wrapper give its .module, or its .get_base_model(), which keeps the "
        "adapters",
    ),
    "tokenizer": ((PreTrainedTokenizerBase,), "the one that was saved with the unet"),
    "scheduler": (
        (EDMDPMSolverMultistepScheduler, EDMEulerScheduler),
        "such as EDMEulerScheduler.from_config(pipe.scheduler.config)",
    ),
}


class SelfContained:
    """A pipeline whose folders and repositories load where its package is not installed.

    It goes before `DiffusionPipeline` among the bases of the pipeline's class.
    """

    @classmethod
    def module_name(cls) -> str:
        """The name of the file with the code. A digest keeps those of two versions apart."""
        return f"pipeline_{hashlib.sha256(source().encode()).hexdigest()[:8]}"

    def save_pretrained(
        self,
        save_directory,
        safe_serialization: bool = True,
        variant: str | None = None,
        max_shard_size: int | str | None = None,
        push_to_hub: bool = False,
        **kwargs,
    ):
        """As in diffusers, but always in safetensors: a pickle can run code where it is loaded.

        A model that is there is replaced as a whole, once this one is written; by a variant
        all but its other weights. Files that belong to no model stay.

        Args:
            variant: a part of the weights' name. Other weights should be of the same model.
            push_to_hub: then calls the method of this name, with the further arguments. `repo_id`
                is by default the name of the folder.

        Raises:
            ValueError: a component can't be saved so that it loads.
            OSError: a full disk, for example; what is there is unchanged.
        """
        target = Path(save_directory).expanduser()
        plain_unet(self.unet)
        target.mkdir(parents=True, exist_ok=True)
        with TemporaryDirectory(prefix=".saving-", dir=target) as folder:
            super().save_pretrained(folder, True, variant, max_shard_size)
            _move(Path(folder), target)
        if push_to_hub:
            self.push_to_hub(kwargs.pop("repo_id", target.name), variant=variant, **kwargs)

    def save_config(self, save_directory, push_to_hub: bool = False, **kwargs):
        """Writes model_index.json and the code; `save_pretrained` calls it last."""
        folder = Path(save_directory)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{self.module_name()}.py").write_text(source(), encoding="utf-8")
        changes = {
            # transformers 5 writes a class name that 4.x doesn't know.
            "tokenizer": {"tokenizer_class": TOKENIZER_CLASS},
            "unet": {WORDS: self.tokenizer.get_vocab()},
        }
        for name in self.components:
            for file in (folder / name).glob("*config.json"):
                text = tidy(file.read_text(encoding="utf-8"), changes.get(name, {}))
                file.write_text(text, encoding="utf-8")
                for weights in file.parent.glob("*.safetensors"):  # safetensors writes them 0600
                    weights.chmod(file.stat().st_mode)
        # transformers 4 repeats the configuration here, differently after a loading.
        (folder / "tokenizer" / "special_tokens_map.json").unlink(missing_ok=True)
        super().save_config(save_directory, push_to_hub=push_to_hub, **kwargs)

    def _upload_folder(self, working_dir, repo_id, *, subfolder=None, **kwargs):
        """Uploads the model in one commit, and deletes what it replaces."""
        kwargs |= {"path_in_repo": subfolder, "delete_patterns": _replaced(Path(working_dir))}
        return upload_folder(repo_id=repo_id, folder_path=working_dir, **kwargs)

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


def _replaced(model: Path) -> list[str]:
    """Patterns of the files that a saved model replaces; a variant leaves other weights alone."""
    *code, weights = REPLACED
    variant = min(model.glob(f"{weights}.safetensors")).name.split(".")[1].partition("-0")[0]
    return [*code, weights if variant == "safetensors" else f"{weights}.{variant}*"]


def _move(new: Path, target: Path) -> None:
    """Moves a model that was saved to its place; what it replaces goes."""
    files = {path.relative_to(new): path for path in new.rglob("*.*")}
    # The index goes first and comes last: a mixture of two models can't be loaded.
    (target / INDEX).unlink(missing_ok=True)
    for part in {(target / name).parent for name in files} - {target}:
        if part.is_symlink():  # to the folder of another model, which stays as it is
            part.unlink()
        part.mkdir(exist_ok=True)
    for old in (path for pattern in _replaced(new) for path in target.glob(pattern)):
        old.unlink()
    for name in sorted(files, key=lambda name: name.name == INDEX):
        files[name].replace(target / name)


def plain_module(unet) -> nn.Module:
    """The module that `torch.compile` wrapped, or the module itself."""
    return getattr(unet, "_orig_mod", unet)


def check_component(name: str, value) -> None:
    """Refuses, by a ValueError, a component of another type than `WANTED` has."""
    value, (types, advice) = plain_module(value), WANTED[name]
    if not isinstance(value, types):
        names = " or ".join(one.__name__ for one in types)
        raise ValueError(
            f"{name} is of the type {type(value).__name__}; it must be {names}, {advice}"
        )


def check_loaded(pipeline: str, unet, tokenizer) -> None:
    """Checks the UNet and the tokenizer of a pipeline that was loaded.

    diffusers only warns of a tensor that is missing, and initializes it at random.

    Args:
        pipeline: folder or name on the Hub, as it was given for loading.
        unet: loaded now, or given by the user; only the files that were loaded now are checked.

    Raises:
        ValueError: a tensor is missing, unexpected or not finite; the weights aren't safetensors;
            or the tokenizer is of another model.
    """
    module = plain_module(unet)
    folder = Path(module.config.get("_name_or_path") or "unet")
    cache = "models--" + str(pipeline).replace("/", "--")  # where the Hub's client keeps it
    if folder.name == "unet" and (folder.parent == Path(pipeline) or cache in folder.parts):
        _check_files(folder, module.config)
    _check_values(module.state_dict(), f"{folder}: ", f" after loading; {AGAIN}")
    trained, words = module.config.get(WORDS), tokenizer.get_vocab()
    if trained is not None and trained != words:
        moved = sorted(w for w in {*trained, *words} if trained.get(w) != words.get(w))
        raise ValueError(
            f"{folder.with_name('tokenizer') / 'tokenizer.json'} is of another model than "
            f"{folder}: they differ in the ids of {', '.join(moved[:8])}; {AGAIN}"
        )


def plain_unet(unet) -> UNet2DConditionModel:
    """The UNet, not compiled, for saving.

    Raises:
        ValueError: it has an adapter, or was changed in a way that its files couldn't describe.
    """
    module = plain_module(unet)
    state = module.state_dict()
    _check_values(state, "unet: ", "; it is not saved")
    if names := _undescribed({name: tensor.shape for name, tensor in state.items()}, module.config):
        raise ValueError(
            f"unet has layers that its configuration does not describe ({names}): save adapters "
            "with pipe.unet.save_lora_adapter(folder), or merge them into the weights with "
            "pipe.unet.fuse_lora() and pipe.unet.unload_lora(), and save the pipeline before other "
            "changes"
        )
    return module


def _check_values(state: Mapping[str, Tensor], where: str, advice: str) -> None:
    """Refuses tensors without values, and those of 16 bits and more that are not finite."""
    for name, tensor in state.items():
        if tensor.is_meta:
            raise ValueError(f"{where}{name} has no value{advice}")
        if tensor.element_size() > 1 and not tensor.isfinite().all():
            raise ValueError(f"{where}{name} has NaN or infinite values{advice}")


def _check_files(folder: Path, config: Mapping) -> None:
    """Compares the tensors in the files of a UNet's folder with those that it has."""
    shapes: dict[str, list[int]] = {}
    for file in folder.glob("*.safetensors"):  # more than one where the weights are in parts
        with safe_open(file, "pt") as tensors:
            shapes |= {name: tensors.get_slice(name).get_shape() for name in tensors.keys()}  # noqa: SIM118
    if not shapes:
        raise ValueError(f"{folder} has no weights as safetensors; save them with save_pretrained")
    if names := _undescribed(shapes, config):
        raise ValueError(
            f"{folder} does not have the tensors of its config.json; missing, unexpected or of "
            f"another shape: {names}; {AGAIN}"
        )


def _undescribed(shapes: Mapping[str, Sequence[int]], config: Mapping) -> str:
    """Names of tensors that a UNet's configuration describes otherwise; "" if there are none."""
    with torch.device("meta"):
        described = UNet2DConditionModel.from_config(config).state_dict()
    expected = {name: tuple(tensor.shape) for name, tensor in described.items()}
    given = {name: tuple(shape) for name, shape in shapes.items()}
    return ", ".join(sorted(n for n in {*expected, *given} if expected.get(n) != given.get(n))[:8])


# --------------------------------------------------------------------------------------------------
# noise.py
# --------------------------------------------------------------------------------------------------
"""The noise of a call: the initial latents, and what is drawn besides them."""

import hashlib
from collections.abc import Sequence

import torch
from diffusers.utils.torch_utils import randn_tensor
from torch import Tensor



def initial_latents(
    latents: Tensor | None, generator, shape: tuple[int, int, int, int], device: torch.device
) -> Tensor:
    """Standard normal noise (B, C, H, W), drawn or as it was given, in float32 on the device.

    Images are drawn one after the other, so that the first of four is the only one of one.
    """
    each = generator if isinstance(generator, list) else [generator] * shape[0]
    kinds = {torch.Generator} if generator is not None else {type(None)}
    if len(each) != shape[0] or {type(item) for item in each} != kinds:
        wanted = f"a torch.Generator, or a list of one for each of {shape[0]} images"
        raise wrong("generator", generator, wanted)
    if latents is None:
        return randn_tensor(shape, None if generator is None else each, device, torch.float32)
    found = tuple(latents.shape) if isinstance(latents, Tensor) else type(latents).__name__
    if found != shape or not latents.is_floating_point() or not latents.isfinite().all():
        raise ValueError(
            f"latents are {found}; they must be a tensor of shape {shape}, of finite floats"
        )
    return latents.detach().to(device, torch.float32)


def own_generators(latents: Tensor, purpose: str = "") -> list[torch.Generator]:
    """A generator on the CPU for each image, seeded with a digest of its latents and the purpose.

    So an image depends on its latents alone, and not on its place or the others in the batch.
    """
    digests = [
        hashlib.sha256(row.numpy().tobytes() + purpose.encode()).digest() for row in latents.cpu()
    ]
    seeds = [int.from_bytes(digest[:8], "little") for digest in digests]
    return [torch.Generator().manual_seed(seed) for seed in seeds]


def draw_classes(latents: Tensor, weights: Sequence[float]) -> Tensor:
    """A class for each image, drawn from its latents: (B,) in 0..K-1, or -1 for the null class.

    `weights` are K + 1 relative frequencies, that of the null class last.
    """
    edges = torch.tensor(weights, dtype=torch.float64).cumsum(0)
    own = own_generators(latents, "class")
    draws = torch.stack([torch.rand((), generator=one, dtype=torch.float64) for one in own])
    places = torch.searchsorted(edges, draws * edges[-1], right=True)
    return torch.where(places < len(weights) - 1, places, -1)


# --------------------------------------------------------------------------------------------------
# outputs.py
# --------------------------------------------------------------------------------------------------
"""Reads `output_type`, and makes images of that type."""

from dataclasses import dataclass
from typing import Optional

import torch
from diffusers import ImagePipelineOutput
from torch import Tensor



@dataclass
class MultiTaskOutput(ImagePipelineOutput):
    """What a call returns.

    Attributes:
        images: as `output_type` says.
        class_labels: the class of each image, one that was drawn too; None for no class.
    """

    class_labels: Optional[list] = None  # noqa: UP045, the form that diffusers 0.36 can read


def read_output_type(value, images: ImageFormat) -> str:
    """An output type; "pil" where PIL has a mode for the images. None: the first."""
    types = ["pil"] * (images.pil_mode is not None) + ["np", "pt", "latent"]
    value = types[0] if value is None else value
    if value not in types:
        raise wrong("output_type", value, f"one of {', '.join(types)} for images of {images.words}")
    return value


def to_output(latents: Tensor, mask: Tensor, source: Inputs, output_type: str, form: ImageFormat):
    """Images of the output type. Where the mask is 0 they have the pixels of the source.

    Args:
        latents: (B, C, H, W) in about [-1, 1].
        mask: (B, 1, H, W) in {0, 1}.
        source: padding, outside of its frame, is cut off, except for "latent". Images that then
            differ in size are a list.
    """
    if output_type == "latent":
        return latents
    images = torch.where(mask > 0, form.to_array(latents), source.image)
    if form.fit != "pad":
        return _typed(images, output_type, form)
    frames = zip(images.split(1), source.frame[:, 0] > 0, strict=True)
    each = [image[:, :, frame.any(1)][..., frame.any(0)] for image, frame in frames]
    if len({one.shape for one in each}) == 1:
        return _typed(torch.cat(each), output_type, form)
    return [_typed(one, output_type, form)[0] for one in each]


def _typed(images: Tensor, output_type: str, form: ImageFormat):
    if output_type == "pil":
        return form.to_pil(images)
    return images if output_type == "pt" else images.permute(0, 2, 3, 1).float().cpu().numpy()


# --------------------------------------------------------------------------------------------------
# solver.py
# --------------------------------------------------------------------------------------------------
"""Solves the probability-flow ODE with the pipeline's scheduler, known pixels held in place."""

from collections.abc import Callable

import torch
from torch import Tensor



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
) -> Tensor:
    """Goes from the start to 0; known pixels are exact at every step.

    The samples of one start are a batch; one batch follows another.

    Args:
        call: the pipeline's copy for this call. A callback may change its state.
        source: (B, C, H, W) in [-1, 1], the known pixels where the mask is 0.
        noise: (B, C, H, W) standard normal.
        start: (B,) noise levels, of the source. From sigma_max on it is noise alone.
        steps: their number, or the noise levels that they start at.
        generators: one for each image, for schedulers that add noise.

    Raises:
        ValueError: the latents are not finite after a step.
    """
    highest, null = call.scheduler.config.sigma_max, call.vocabulary.null
    schedulers = {
        level: from_level(level, call.scheduler, steps, noise.device) for level in sorted({*start})
    }
    call._num_timesteps = sum(len(scheduler.timesteps) for scheduler in schedulers.values())
    solved, finite = torch.empty_like(noise), []
    with call.progress_bar(total=call._num_timesteps) as progress:
        for level, scheduler in schedulers.items():
            vars(call)["scheduler"] = scheduler  # a callback may look at it; it needs no check
            sigmas = scheduler.sigmas.tolist()
            rows = [i for i, own in enumerate(start) if own == level]
            known, fresh, given = source[rows], noise[rows], conditioning[rows]
            random, free = [generators[i] for i in rows], given.mask > 0
            start_free, few = free & (level >= highest), not isinstance(steps, int)
            x = initial(known, fresh, given.image, start_free, sigmas[0], few)
            for i, timestep in enumerate(scheduler.timesteps):
                if call.interrupt:
                    break
                # A callback may have changed the scales.
                scales = call.guidance_scale, call.image_guidance_scale, call.guidance_interval
                denoiser = guided(call.unet, scheduler, given, null, *scales)
                F = denoiser.output(x, sigmas[i])
                x = scheduler.step(F, timestep, x, generator=random).prev_sample
                x = torch.where(free, x, known + sigmas[i + 1] * fresh)
                if callback is not None:
                    tensors = dict.fromkeys(callback_inputs, x)
                    answer = callback(call, len(finite), timestep, tensors) or {}
                    x = answer.get("latents", x).to(x)
                finite.append(x.isfinite().all())
                progress.update()
            solved[rows] = x
    # Read here, because the host would wait in each step.
    if bad := [step for step, is_finite in enumerate(finite, 1) if not is_finite]:
        raise ValueError(
            f"the latents are not finite after step {bad[0]} of {call._num_timesteps}. Likely "
            f"causes: a large scale (guidance_scale is {call.guidance_scale}, "
            f"image_guidance_scale {call.image_guidance_scale}); float16, where bfloat16 does "
            f"not overflow (the unet is in {call.unet.dtype}); latents that are far from standard "
            "normal; weights that are not finite; a callback"
        )
    return solved


def initial(
    source: Tensor, noise: Tensor, shown: Tensor, free: Tensor, sigma: float | Tensor, few: bool
) -> Tensor:
    """The latents that sampling starts from: the source with noise, or noise alone.

    Args:
        shown: (B, 3, H, W), the image of the hint.
        free: (B, 1, H, W) bool, where it is noise alone.
        sigma: the first noise level, of all or (B, 1, 1, 1).
        few: whether they are for a model of few steps.
    """
    alone = sigma * noise
    if few:
        # Where part of an image is shown, random low frequencies would contradict it.
        blank = ~shown.flatten(1).any(1)[:, None, None, None]
        alone = torch.where(blank, first_latents(noise, sigma), alone)
    return torch.where(free, alone, source + sigma * noise)


def from_level(start: float, scheduler, steps: int | list[float], device: torch.device):
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
        # As it takes them: the places in [0, 1] of its Karras schedule.
        low, high = (config[name] ** (1 / config.rho) for name in ("sigma_min", "sigma_max"))
        roots = torch.tensor(levels, dtype=torch.float64) ** (1 / config.rho)
        ramp = (high - roots) / (high - low)
        own.set_timesteps(len(levels), device=device, sigmas=ramp)
    own.set_begin_index(0)
    own.is_scale_input_called = True  # `predict` scales; EDMEulerScheduler would warn
    return own


# --------------------------------------------------------------------------------------------------
# translate.py
# --------------------------------------------------------------------------------------------------
"""Translation: an image of another kind is shown, and its counterpart is painted.

A segmentation map becomes an image, a sketch a photograph, or the other way round. The pairs are
columns of the dataset; each column is a task with a name of its own.
"""

import torch



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


# --------------------------------------------------------------------------------------------------
# upscale.py
# --------------------------------------------------------------------------------------------------
"""Super-resolution: the source is shown at a quarter of its resolution.

The image given to the pipeline has the full size, as in every task, and `condition` reduces it. Who
has only the small image enlarges it first, by repeating pixels:
`small.resize((width, height), Image.Resampling.NEAREST)`. The mean of equal pixels is the
pixel, so the network is shown the small image itself. Other filters give it a blurred one.
"""

import torch
from torch.nn.functional import adaptive_avg_pool2d, interpolate


FACTOR = 4  # of the resolution, in each direction


class Upscale(Task):
    name = "upscale"
    required = frozenset({"image"})
    optional = frozenset({"class_label"})

    def condition(self, image, mask, strength, noise):
        size = image.shape[-2:]
        small = adaptive_avg_pool2d(image, [max(side // FACTOR, 1) for side in size])  # means
        # A pixel becomes a block of its colour, so that the network's input has the full size.
        return Hint(image=interpolate(small, size, mode="nearest"), mask=torch.ones_like(mask))


# --------------------------------------------------------------------------------------------------
# pipeline.py
# --------------------------------------------------------------------------------------------------
"""The pipeline: one model, several tasks.

pipe = DiffusionPipeline.from_pretrained("user/model", trust_remote_code=True)
pipe(task="generate", class_label="cat").images[0]
pipe(task="inpaint", image=image, mask_image=mask).images[0]
pipe(task="edit", image=image, class_label="dog", strength=0.7).images[0]
"""

import copy
import math
from collections.abc import Callable
from typing import Optional

import torch
from diffusers import DiffusionPipeline, EDMEulerScheduler, UNet2DConditionModel
from diffusers.utils.torch_utils import randn_tensor
from torch import Tensor


# All tasks, by name. A new task is a file of its own and a line here.
TASKS: dict[str, Task] = {
    task.name: task
    for task in (
        Generate(),
        Inpaint(),
        Edit(),
        Colorize(),
        Upscale(),
    )
}

# What is true of the weights, besides their words, is kept in the configuration of the UNet. Names
# with an underscore pass through diffusers' loading and saving.
CHAINS = "_chains"  # of a model of few steps: the noise levels that each number of steps visits
EDITS_AT_ONCE = "_edits_at_once"  # true where an edit is one evaluation
FREQUENCIES = "_class_frequencies"  # class name -> share of the training data; NULL: without one
TRANSLATIONS = "_translations"  # the names of the tasks of the class Translate
LEARNED = (CHAINS, EDITS_AT_ONCE, FREQUENCIES, MARK, TRANSLATIONS)
REMOVED = ("num_inversion_steps", "source_class")  # arguments of earlier versions
# The state of a call that the pipeline has after it, as diffusers' pipelines do.
STATE = ("_guidance_scale", "_image_guidance_scale", "_guidance_interval", "_num_timesteps")


class MultiTaskPipeline(SelfContained, DiffusionPipeline):
    """One small UNet that generates, inpaints and edits.

    Calls may overlap, from several threads or from a callback: each has its own state.

    Args:
        unet: takes `format.input_channels` channels and one-hot tokens.
        tokenizer: its vocabulary has the tasks and classes that the model has learned.
        scheduler: `EDMDPMSolverMultistepScheduler`; `EDMEulerScheduler` for a model of few steps.
        chains: of a model of few steps that was exported by a version before 0.2; later ones are
            in the configuration of their unet.
    """

    model_cpu_offload_seq = "unet"
    _callback_tensor_inputs = ["latents"]  # noqa: RUF012, the name and type are diffusers'

    # The state of a call, in the shallow copy that it runs on.
    _interrupt, _caller = False, None  # the pipeline that it is a copy of
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
        self.register_modules(unet=unet, tokenizer=tokenizer, scheduler=scheduler)
        if chains is not None:
            self.register_to_config(chains=chains)
        self._check_vocabulary()

    def __setattr__(self, name: str, value):
        if name in WANTED:
            check_component(name, value)
        super().__setattr__(name, value)

    @property
    def vocabulary(self) -> Vocabulary:
        """The ids of the tasks, classes and strengths."""
        return Vocabulary.of(self.tokenizer.get_vocab())

    @property
    def tasks(self) -> tuple[str, ...]:
        """Names of the tasks that this model has learned."""
        known = (*TASKS, *self.translations)
        return tuple(name for name in known if name in self.vocabulary.tasks)

    @property
    def translations(self) -> tuple[str, ...]:
        """Names of the tasks that make an image of one of another kind."""
        return tuple(self.unet.config.get(TRANSLATIONS) or ())

    @property
    def class_names(self) -> tuple[str, ...]:
        """Names of the classes, in the order of their numbers."""
        return tuple(self.vocabulary.classes)

    @property
    def format(self) -> ImageFormat:
        """Size, channels and depth of the images."""
        return ImageFormat.of(self.unet.config)

    @property
    def size(self) -> int:
        """Side of the square images in pixels; the longer side of rectangles, see `format`."""
        return max(self.format.size)

    @property
    def chains(self) -> Chains | None:
        """The noise levels of each number of steps; None: any number."""
        return self.unet.config.get(CHAINS) or self.config.get("chains")

    @property
    def class_frequencies(self) -> dict[str, float]:
        """How often a sample without a class is of each class, and of none; they sum to 1."""
        known = self.unet.config.get(FREQUENCIES) or dict.fromkeys(self.class_names, 1.0)
        total = sum(known.values())
        return {name: share / total for name, share in known.items()}

    def spec(self, task: str) -> Task:
        """The task as this model has learned it."""
        if task in self.translations:
            return Translate(task)
        at_once = task == Edit.name and self.unet.config.get(EDITS_AT_ONCE, False)
        return EditAtOnce() if at_once else TASKS[task]

    def default_steps(self, task: str) -> int:
        """num_inference_steps of a task, if it is not given."""
        if self.chains is None:
            return self.spec(task).default_steps
        lengths, few = self.step_counts(task), self.spec(task).few_steps
        return few if few in lengths else max(lengths)

    def default_guidance(self, task: str) -> float:
        """guidance_scale of a task, if it is not given: a model of few steps has it built in."""
        spec = self.spec(task)
        return 1.0 if self.chains and not spec.at_once else spec.default_guidance_scale

    guidance_scale = property(lambda self: self._guidance_scale)
    image_guidance_scale = property(lambda self: self._image_guidance_scale)
    guidance_interval = property(lambda self: self._guidance_interval)
    num_timesteps = property(lambda self: self._num_timesteps)

    @property
    def interrupt(self) -> bool:
        """Whether a call ends after its current evaluation, with the image that it has by then.

        `pipe._interrupt = True` asks for it: on the pipeline that a callback gets for that call and
        those inside it, and on the pipeline itself, as from another thread, for all calls that run.
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
        num_images_per_prompt: int = 1,
        generator: torch.Generator | list[torch.Generator] | None = None,
        latents: Tensor | None = None,
        output_type: str | None = None,
        return_dict: bool = True,
        callback_on_step_end: Callable | None = None,
        callback_on_step_end_tensor_inputs: list[str] = ["latents"],  # noqa: B006, diffusers' own
        **unknown,
    ) -> MultiTaskOutput | tuple:
        """Draws images. A class, image, mask or strength may be a list, one entry a sample.

        Args:
            task: one of `pipe.tasks`.
            class_label: a class's name or number, or -1 for the null class, which is none. None:
                generate draws one for each image, as often as the training data has it; for the
                other tasks the null class.
            image: the source, of `pipe.format`: PIL of its mode, or floats in [0, 1] (or in the
                model's `value_range`) as an array (H, W, C) or a tensor (C, H, W), or a batch or a
                list of these. A model with the fit "pad" takes smaller ones of one of its sides.
            mask_image: white (1) is repainted, black (0) is kept, byte for byte.
            strength: degradation of the source, from 0 (none: the source comes back) to 1 (nothing
                is left of it). None: the task's default. Of several, each is a batch of its own.
            guidance_scale: guidance by the class; 1 is off. None: `pipe.default_guidance(task)`.
                Of an edit in one evaluation it is the largest weight of a pixel's change instead.
            image_guidance_scale: guidance by the source; 1 is off.
            guidance_interval: the lowest and the highest noise level (sigma, both included) where
                guidance is applied; elsewhere both scales are 1, for one branch in place of 2 or 3.
                None: `pipe.spec(task).default_guidance_interval`; (0, math.inf) is everywhere.
                Source: Kynkäänniemi et al. 2024, arXiv:2404.07724.
            num_inference_steps: evaluations of the denoiser, each of 1 to 3 branches. None:
                `pipe.default_steps(task)`. A model of few steps takes the lengths of
                `pipe.chains`, and leaves out the first steps of an edit that is not strong.
            num_images_per_prompt: images for each sample.
            generator: one, or one for each image. Image i depends on its seed and on i alone.
            latents: (images, C, H, W) standard normal, instead of drawing them. All other
                noise of an image is derived from its latents.
            output_type: "pil"; "np" (B, H, W, C) or "pt" (B, C, H, W), floats as arrays that are
                given; or "latent", (B, C, H, W) in about [-1, 1], not clipped. None: "pil" where
                PIL has a mode for the images, else "np".
            callback_on_step_end: called as (pipe, step, timestep, tensors) after each step; it may
                return a dict with other latents. `pipe` is a shallow copy with the state of this
                call, such as its scheduler; `pipe._interrupt = True` ends the call.

        Raises:
            ValueError: an argument is out of its range, or one that the task doesn't take; or the
                latents don't stay finite.
        """
        for name in unknown:
            new = "mtl_diffusion.editing.whole.whole_edit, of the package, inverts an edit's source"
            raise TypeError(f"there is no argument {name}; {new if name in REMOVED else 'omit it'}")
        self._check_vocabulary()
        given = {"class_label": class_label, "image": image, "mask_image": mask_image}
        given |= {"strength": strength, "image_guidance_scale": image_guidance_scale}
        self._check_task(task, given)
        images = self.format
        output_type = read_output_type(output_type, images)
        callback = (callback_on_step_end, callback_on_step_end_tensor_inputs)
        if not {*callback[1]} <= {*self._callback_tensor_inputs}:
            wanted = f"a list with {self._callback_tensor_inputs} or nothing in it"
            raise wrong("callback_on_step_end_tensor_inputs", callback[1], wanted)
        call = self._copy_for_call()
        call._set_guidance(task, guidance_scale, image_guidance_scale, guidance_interval)
        steps = self._read_steps(task, num_inference_steps)
        spec, device = self.spec(task), self._execution_device
        count = read_count(num_images_per_prompt, "num_images_per_prompt")
        source = read_inputs(spec, given, self.class_names, images, count).to(device)
        noise = initial_latents(latents, generator, tuple(source.image.shape), device)
        own, label = own_generators(noise), source.label
        if spec.draws_class:
            shares = self.class_frequencies
            weights = [shares.get(name, 0.0) for name in (*self.class_names, NULL)]
            label = torch.where(label == UNSET, draw_classes(noise, weights).to(device), label)
        known = images.from_array(source.image)
        own_noise = randn_tensor(noise.shape, own, device, torch.float32)
        hint = spec.condition(known, source.mask, source.strength, own_noise)
        if images.fit == "pad":
            hint = hint.within(source.frame, known)
        conditioning = build_conditioning(hint, spec, label, self.vocabulary)
        start = spec.start(source.strength)
        start = start.tolist() if isinstance(start, Tensor) else [start] * len(noise)
        steps, last = (steps[:1], steps[1:]) if spec.at_once else (steps, [])
        scale = call.guidance_scale
        if spec.at_once:  # it scales the change, and guides no evaluation
            call._guidance_scale = 1.0
        latents = solve(call, known, noise, conditioning, start, steps, own, *callback)
        if spec.at_once:
            latents = torch.lerp(known, latents, spec.change(latents, known, hint.mask, scale))
        if last and not call.interrupt:
            # An edit is the mean of many: generate makes it one of them.
            weight = spec.change(latents, known, hint.mask).clamp(max=1)
            noise = randn_tensor(noise.shape, own, device, torch.float32)
            plain = Generate().condition(latents, source.mask, None, noise)
            conditioning = build_conditioning(plain, Generate(), label, self.vocabulary)
            start = last * len(noise)
            latents = solve(call, latents, noise, conditioning, start, last, own, *callback)
            latents = torch.lerp(known, latents, weight)
        if spec.at_once:
            call._guidance_scale = scale

        self.maybe_free_model_hooks()
        if self._caller is None:  # no call inside a callback
            vars(self).update((name, getattr(call, name)) for name in STATE)
        drawn = to_output(latents, hint.mask, source, output_type, images)
        names = [*self.class_names, None]  # a negative number is no class
        labels = [names[max(number, -1)] for number in label.tolist()]
        return MultiTaskOutput(drawn, labels) if return_dict else (drawn,)

    def _set_guidance(self, task: str, scale, image_scale, interval) -> None:
        """Reads the arguments of guidance; None: the default of the task and the model."""
        scale = self.default_guidance(task) if scale is None else scale
        image_scale = 1.0 if image_scale is None else image_scale
        interval = self.spec(task).default_guidance_interval if interval is None else interval
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
        lengths = self.step_counts(task)
        if steps not in lengths:
            raise ValueError(
                f"num_inference_steps is {steps}; this model does {task} in "
                f"{', '.join(map(str, lengths))} steps"
            )
        return lengths[steps]

    def step_counts(self, task: str) -> dict[int, list[float]]:
        """Of a model of few steps: each number of steps of a task, and the levels they start at."""
        lengths = {len(levels): list(levels) for levels in self.chains}
        if not self.spec(task).at_once:
            return lengths
        once = {1: lengths[1]}
        return once | ({2: [*lengths[1], lengths[2][-1]]} if "generate" in self.tasks else {})

    def _copy_for_call(self) -> "MultiTaskPipeline":
        """A shallow copy for the state of one call. `solve` gives it schedulers of its own."""
        if self._caller is None:
            self._interrupt = False  # of earlier calls
        call = copy.copy(self)
        call._interrupt, call._caller = False, self
        return call

    def _check_vocabulary(self) -> None:
        """Refuses a UNet and a tokenizer of two models."""
        if self.vocabulary.size != self.unet.config.encoder_hid_dim:
            raise ValueError(
                f"the tokenizer has {self.vocabulary.size} words and the unet takes "
                f"{self.unet.config.encoder_hid_dim}; they must be from one model: compare "
                "tokenizer/tokenizer.json with encoder_hid_dim in unet/config.json"
            )

    def _check_task(self, task: str, arguments: dict) -> None:
        """Refuses a task the model has not learned, and arguments that don't fit the task."""
        if task not in self.tasks:
            raise wrong("task", task, f"one that this model knows: {', '.join(self.tasks)}")
        spec = self.spec(task)
        given = {name for name, value in arguments.items() if value is not None}
        if missing := spec.required - given:
            raise ValueError(f"task {task!r} needs {', '.join(sorted(missing))}; give it too")
        if unknown := given - spec.required - spec.optional:
            takes = ", ".join(sorted(spec.required | spec.optional))
            raise ValueError(f"task {task!r} takes no {', '.join(sorted(unknown))}; only {takes}")



# diffusers runs this file again, in the same module, for each pipeline that it loads. What the
# first run defined stays, so that pipelines that were loaded earlier can still be pickled.
_first = globals().get("_FIRST_RUN")
if _first is not None and _first["SOURCE"] == SOURCE:
    globals().update(_first)
else:
    _FIRST_RUN = dict(globals())
