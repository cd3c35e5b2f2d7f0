"""A part of the scorecard lists its jobs; all processes draw them; then it computes its figures."""

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor

from ..classifiers.classifier import Classifier
from ..data.images import ImageDataset
from ..editing import whole
from ..pipeline.format import ImageFormat
from ..pipeline.pipeline import MultiTaskPipeline
from ..tools.rng import generator
from ..tools.tensors import to_unit_range, weights_digest
from .bulk import Drawn, Job
from .features import FeatureSpace
from .settings import Settings

# What the configurations hold besides: where they were loaded from, and which values are defaults.
TRACES = ("_model_id", "_name_or_path", "_use_default_values", "is_local", "local_files_only")
TRACES += ("_class_name", "_diffusers_version")  # of a pipeline that was saved
# The code of the methods, read at import, as the pipeline's is.
_FILES = [*Path(__file__).parent.glob("methods/*.py"), *Path(whole.__file__).parent.glob("*.py")]
METHODS = {path.name: path.read_text(encoding="utf-8") for path in _FILES}


@dataclass(frozen=True)
class Context:
    """The inputs of the parts.

    Attributes:
        classifier: must not have been used in training or filtering of the pipeline.
        train, test: on the CPU, labelled in the pipeline's order of classes.
        cache: folder for the features of the splits.
    """

    pipe: MultiTaskPipeline
    classifier: Classifier
    space: FeatureSpace
    train: ImageDataset
    test: ImageDataset
    settings: Settings
    cache: Path

    def drawer(self) -> dict[str, Any]:
        """All that decides what is drawn, except for the arguments of a call."""
        pipe = self.pipe
        configs = (pipe.config, pipe.unet.config, pipe.scheduler.config)
        return {
            "weights": weights_digest(pipe.unet),
            "code": [type(pipe).code_files(), METHODS],
            "scheduler": type(pipe.scheduler).__name__,
            "vocabulary": pipe.tokenizer.get_vocab(),
            "configs": [{k: v for k, v in c.items() if k not in TRACES} for c in configs],
            "seed": self.settings.seed,
        }

    @property
    def format(self) -> ImageFormat:
        """Of the pipeline's images."""
        return self.pipe.format

    def rgb(self, images: Tensor) -> Tensor:
        """Stored images as the classifier and the feature space see them: (N, 3, H, W) uint8."""
        return self.format.stored_as_rgb(images)

    def unit(self, images: Tensor) -> Tensor:
        """Stored images in [0, 1], for distances of pixels."""
        low, high = self.format.stored_range
        return (images.float() - low) / (high - low)

    @property
    def has_baselines(self) -> bool:
        """Whether other methods are measured, too. They need generate at any noise level."""
        pipe = self.pipe
        return self.settings.baselines and "generate" in pipe.tasks and pipe.chains is None

    def features_of(self, split: str) -> Tensor:
        """(N, D) of "train" or "test"."""
        dataset = getattr(self, split)
        count = min(self.settings.reference_images or len(dataset), len(dataset))
        return self.space.reference(dataset, count, self.cache)

    def classes_of(self, images: Tensor) -> Tensor:
        """(N, C, H, W) as stored -> (N,) their classes, in the pipeline's order."""
        places = torch.tensor(list(map(self.pipe.class_names.index, self.classifier.class_names)))
        logits = (self.classifier(to_unit_range(batch)) for batch in self.rgb(images).split(500))
        return places[torch.cat([batch.argmax(1).cpu() for batch in logits])]

    def generators(self, *key: int | str, rows: range) -> list[torch.Generator]:
        """One a row, a function of key and row: with one key, methods get the same noise."""
        seed, device = self.settings.seed, self.pipe.device
        return [generator(seed, *key, row, device=device) for row in rows]

    def sample(self, rows: range, task: str, key: tuple = (), **arguments: Any) -> Tensor:
        """Images (b, C, H, W) of the pipeline, drawn from (task, key) and each row's number.

        Its arguments are the pipeline's, but images are here what a dataset stores.
        """
        if "image" in arguments:
            arguments["image"] = self.format.stored_as_array(arguments["image"])
        random = self.generators(task, *key, rows=rows)
        images = self.pipe(task=task, generator=random, output_type="pt", **arguments).images
        return self.format.array_as_stored(images)


@dataclass(frozen=True)
class Seen:
    """The features (N, D) of N images, and their classes (N,) by the classifier."""

    features: Tensor
    classes: Tensor

    @classmethod
    def of(cls, context: Context, images: Tensor) -> "Seen":
        """images: (N, C, H, W) as stored."""
        return cls(context.space.features(context.rgb(images)), context.classes_of(images))


class Part(ABC):
    """One subject of the scorecard."""

    name: ClassVar[str]  # the key in metrics.json
    task: ClassVar[str]  # that a model must have learned

    def __init__(self, context: Context):
        self.context = context

        given, default = context.settings.num_inference_steps, context.pipe.default_steps
        self.steps = given or default(self.task)  # of the sampler

    @abstractmethod
    def jobs(self) -> list[Job]:
        """What has to be sampled."""

    @abstractmethod
    def score(self, drawn: Mapping[str, Drawn], folder: Path) -> dict[str, Any]:
        """Computes the figures, each with its n, and writes plots and pictures to the folder."""


def mean(name: str, values: Tensor) -> dict[str, float]:
    """The mean of values (N,), and its standard error, under these names."""
    values = values.double()
    error = values.std().item() / math.sqrt(len(values)) if len(values) > 1 else 0.0
    return {name: values.mean().item(), f"{name}_standard_error": error}
