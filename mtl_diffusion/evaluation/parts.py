"""What the parts of the scorecard have in common: what they are given, and how they ask a pipeline.

A part says what it wants drawn, and what it makes of that. Between the two all processes draw.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor

from ..classifiers.classifier import Classifier
from ..data.images import ImageDataset
from ..pipeline.pipeline import MultiTaskPipeline
from ..tools.rng import generator
from .bulk import Drawn, Job, weights_digest
from .features import FeatureSpace
from .settings import Settings


@dataclass(frozen=True)
class Context:
    """What a part may look at: an exported pipeline, a judge, a feature space and two splits.

    Attributes:
        judge: a classifier that no training or filtering of the pipeline has seen.
        train, test: what the pipeline was trained on, and held-out images; on the CPU, labelled in
            the pipeline's order of classes.
        cache: folder for the features of the splits.
    """

    pipe: MultiTaskPipeline
    judge: Classifier
    space: FeatureSpace
    train: ImageDataset
    test: ImageDataset
    settings: Settings
    cache: Path

    @cached_property
    def model(self) -> str:
        """Tells this model from every other one."""
        return weights_digest(self.pipe.unet)

    @property
    def num_classes(self) -> int:
        return len(self.pipe.class_names)

    def features_of(self, split: str) -> Tensor:
        """(N, D) of "train" or "test"."""
        dataset = getattr(self, split)
        count = min(self.settings.reference_images or len(dataset), len(dataset))
        return self.space.reference(dataset, count, self.cache)

    def judged(self, images: Tensor) -> Tensor:
        """(N, 3, H, W) uint8 -> (N,) the classes that the judge sees, in the pipeline's order."""
        table = torch.tensor([self.pipe.class_names.index(n) for n in self.judge.class_names])
        batches = images.split(500)
        return torch.cat(
            [table[self.judge(b.float() / 127.5 - 1).argmax(1).cpu()] for b in batches]
        )

    def generators(self, *key: int | str, rows: range) -> list[torch.Generator]:
        """One a row. The same key gives different methods the same noise."""
        seed, device = self.settings.seed, self.pipe.device
        return [generator(seed, *key, row, device=device) for row in rows]

    def job(
        self, name: str, count: int, draw: Callable[[range], Tensor], **key: str | float | None
    ) -> Job:
        """A job of this model; `key` is what else its outcome depends on."""
        facts = {"model": self.model, "seed": self.settings.seed, "name": name, **key}
        return Job(name, facts, count, draw)


@dataclass(frozen=True)
class Seen:
    """What the feature space and the judge see in N images: features (N, D), classes (N,)."""

    features: Tensor
    classes: Tensor

    @classmethod
    def of(cls, context: Context, images: Tensor) -> Seen:
        """images: (N, 3, H, W) uint8."""
        return cls(context.space.features(images), context.judged(images))


class Part(ABC):
    """One subject of the scorecard.

    Class attributes:
        name: in metrics.json. task: what a model must have learned to have this part.
    """

    name: ClassVar[str]
    task: ClassVar[str]

    def __init__(self, context: Context):
        self.context = context

    @abstractmethod
    def jobs(self) -> list[Job]:
        """What it wants drawn."""

    @abstractmethod
    def score(self, drawn: Mapping[str, Drawn], folder: Path) -> dict[str, Any]:
        """What it makes of that: figures, each with its n; plots and pictures go to the folder."""


def to_bytes(images: Tensor) -> Tensor:
    """[0, 1] -> uint8."""
    return (images * 255).round().to(torch.uint8)


def mean(name: str, values: Tensor) -> dict[str, float]:
    """The mean of values (N,), and its standard error, under these names."""
    values = values.double()
    error = values.std().item() / math.sqrt(len(values)) if len(values) > 1 else 0.0
    return {name: values.mean().item(), f"{name}_standard_error": error}
