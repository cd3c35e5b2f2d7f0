"""The contract of a task: what training draws at random, and what the network is shown."""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor


@dataclass(frozen=True)
class Choice:
    """What training picks at random for B samples of one task.

    Attributes:
        mask: (B, 1, H, W) in {0, 1}, 1 = to be painted.
        strength: (B,) in [0, 1], NaN where the task has no strength.
        drop_class: (B,) bool, the class token becomes null.
        drop_image: (B,) bool, the condition image is hidden inside the mask, strength becomes null.
    """

    mask: Tensor
    strength: Tensor
    drop_class: Tensor
    drop_image: Tensor


@dataclass(frozen=True)
class Hint:
    """What a task shows of B images.

    Attributes:
        image: (B, 3, H, W) in the range of the images, zero where nothing is shown.
        mask: (B, 1, H, W) in {0, 1}. 1 = to be painted: the loss counts there and nowhere else.
            0 = known: `image` is exact there, and comes out as it went in.
        strength: (B,) in [0, 1], NaN for null.
    """

    image: Tensor
    mask: Tensor
    strength: Tensor


class Task(ABC):
    """A task is a name, the arguments it takes when sampling, and two functions.

    Both functions are torch alone and vectorised over the batch. All their randomness is handed to
    them, so that a training step is a function of its key.

    Class attributes:
        name: the word users write, `pipe(task=name)`, and the task's token.
        required: arguments of the pipeline that the task can't do without.
        optional: arguments of the pipeline that it takes. Any other one is refused.
        default_strength: what sampling takes if the task takes a strength and none is given.
        default_guidance_scale: what sampling takes if none is given; 1 is off.
    """

    name: ClassVar[str]
    required: ClassVar[frozenset[str]] = frozenset()
    optional: ClassVar[frozenset[str]] = frozenset()
    default_strength: ClassVar[float] = float("nan")
    default_guidance_scale: ClassVar[float] = 1.0

    ARGUMENTS: ClassVar[frozenset[str]] = frozenset(
        {"image", "mask_image", "class_label", "strength", "image_guidance_scale"}
    )

    def __init_subclass__(cls, **kwargs):
        super().__init_subclass__(**kwargs)
        name = cls.__dict__.get("name")
        if not (isinstance(name, str) and name.isidentifier() and name.islower()):
            raise TypeError(f"{cls.__name__}.name must be a lower-case identifier, not {name!r}")
        if strangers := (cls.required | cls.optional) - Task.ARGUMENTS:
            raise TypeError(
                f"{cls.__name__} takes {sorted(strangers)}, but a task may take only "
                f"{sorted(Task.ARGUMENTS)}"
            )
        if both := cls.required & cls.optional:
            raise TypeError(f"{cls.__name__} has {sorted(both)} both as required and as optional")
        takes_strength = "strength" in cls.required | cls.optional
        if takes_strength and not 0 <= cls.default_strength <= 1:
            raise TypeError(f"{cls.__name__} takes a strength: give a default_strength in [0, 1]")
        if not cls.default_guidance_scale >= 0:
            raise TypeError(f"{cls.__name__}.default_guidance_scale must be 0 or more; 1 is off")

    @abstractmethod
    def draw(self, n: int, size: int, class_dropout: float, generator: torch.Generator) -> Choice:
        """Draws what training picks at random for n samples, on the generator's device.

        Args:
            n: number of samples, possibly 0.
            size: height and width of the images in pixels.
            class_dropout: probability in [0, 1) that the class token is dropped.
            generator: the only source of randomness.
        """

    @abstractmethod
    def condition(self, image: Tensor, mask: Tensor, strength: Tensor, noise: Tensor) -> Hint:
        """Builds what the network is shown. Training and sampling both call this.

        Args:
            image: (B, 3, H, W) in [-1, 1], the source. A task without a source gets zeros.
            mask: (B, 1, H, W) in {0, 1}, 1 = to be painted.
            strength: (B,) in [0, 1], NaN where the task has none.
            noise: (B, 3, H, W) standard normal, the task's own. It has nothing to do with the
                noise of the diffusion, which a task never sees.
        """


def bernoulli(n: int, probability: float, generator: torch.Generator) -> Tensor:
    """(n,) bool, each true with the given probability."""
    return torch.rand(n, generator=generator, device=generator.device) < probability


def no_strength(n: int, device: torch.device) -> Tensor:
    """(n,) NaN: what a task without a strength has for one."""
    return torch.full((n,), float("nan"), device=device)
