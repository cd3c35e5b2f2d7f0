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
from ..pipeline.pipeline import MultiTaskPipeline
from ..tools.rng import generator
from ..tools.tensors import to_unit_range, weights_digest
from .bulk import Drawn, Job
from .features import FeatureSpace
from .settings import Settings

# What the configurations hold besides: where they were loaded from, and which values are defaults.
TRACES = ("_model_id", "_name_or_path", "_use_default_values", "is_local", "local_files_only")
TRACES += ("_class_name", "_diffusers_version")  # of a pipeline that was saved
# All code that draws, besides the pipeline's; read at import, because files may change during an
# evaluation of hours.
_FOLDERS = (Path(__file__).parent, Path(whole.__file__).parent)
CODE = {p.name: p.read_text("utf-8") for folder in _FOLDERS for p in sorted(folder.rglob("*.py"))}


@dataclass(frozen=True)
class Context:
    """The inputs of the parts.

    Attributes:
        classifier: must not have been used in training or filtering of the pipeline.
        train, test: on the CPU, labelled in the pipeline's order of classes.
    """

    pipe: MultiTaskPipeline
    classifier: Classifier
    space: FeatureSpace
    train: ImageDataset
    test: ImageDataset
    settings: Settings

    def drawer(self) -> dict[str, Any]:
        """All that decides what is drawn, except for the arguments of a call."""
        pipe = self.pipe
        configs = (pipe.config, pipe.unet.config, pipe.scheduler.config)
        return {
            "weights": weights_digest(pipe.unet),
            "code": [type(pipe).module_name(), CODE],
            "scheduler": type(pipe.scheduler).__name__,
            "vocabulary": pipe.tokenizer.get_vocab(),
            "configs": [{k: v for k, v in c.items() if k not in TRACES} for c in configs],
            "seed": self.settings.seed,
        }

    @property
    def has_baselines(self) -> bool:
        """Whether other methods are measured, too. They need generate at any noise level."""
        pipe = self.pipe
        return self.settings.baselines and "generate" in pipe.tasks and pipe.chains is None

    def rgb(self, images: Tensor) -> Tensor:
        """Stored images as the classifier and the feature space see them: (N, 3, H, W) uint8."""
        return self.pipe.format.stored_as_rgb(images)

    def unit(self, images: Tensor) -> Tensor:
        """Stored images in [0, 1], for distances of pixels."""
        low, high = self.pipe.format.stored_range
        return (images.float() - low) / (high - low)

    def seen(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Stored images -> features (N, D), and classes (N,) in the pipeline's order."""
        shown = self.rgb(images)
        places = torch.tensor(list(map(self.pipe.class_names.index, self.classifier.class_names)))
        logits = (self.classifier(to_unit_range(batch)) for batch in shown.split(500))
        classes = places[torch.cat([batch.argmax(1).cpu() for batch in logits])]
        return self.space.features(shown), classes

    def reference(self, split: str) -> Job:
        """Features (N, D) of the first images of "train" or "test"."""

        def draw(rows: range, space: str, images: Tensor) -> Tensor:
            return self.space.features(self.rgb(images))

        images = getattr(self, split).images[: self.settings.reference_images]
        return Job(f"features-{split}", draw, {"space": self.space.digest}, {"images": images})

    def generators(self, *key: int | str, rows: range) -> list[torch.Generator]:
        """One a row, a function of key and row: with one key, methods get the same noise."""
        seed, device = self.settings.seed, self.pipe.device
        return [generator(seed, *key, row, device=device) for row in rows]

    def sample(self, rows: range, task: str, key: tuple = (), **arguments: Any) -> Tensor:
        """Images (b, C, H, W) of the pipeline, drawn from (task, key) and each row's number.

        Its arguments are the pipeline's, but images are here what a dataset stores.
        """
        form = self.pipe.format
        if "image" in arguments:
            arguments["image"] = form.stored_as_array(arguments["image"])
        random = self.generators(task, *key, rows=rows)
        images = self.pipe(task=task, generator=random, output_type="pt", **arguments).images
        return form.array_as_stored(images)


class Part(ABC):
    """One subject of the scorecard."""

    name: ClassVar[str]  # the key in metrics.json
    task: ClassVar[str]  # that a model must have learned

    def __init__(self, context: Context):
        self.context = context

    def steps(self, task: str) -> int:
        """Of the sampler."""
        given = self.context.settings.num_inference_steps
        return given or self.context.pipe.default_steps(task)

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
