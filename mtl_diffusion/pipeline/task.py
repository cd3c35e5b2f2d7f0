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
