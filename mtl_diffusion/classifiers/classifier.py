"""Small image classifiers: loaded, saved and applied."""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel, RegNetForImageClassification

from ..data.images import ImageDataset
from ..tools.tensors import to_unit_range
from .resnet9 import ResNet9

# The architectures, by their model_type in config.json.
MODELS: dict[str, type[PreTrainedModel]] = {
    "resnet9": ResNet9,
    "regnet": RegNetForImageClassification,
}


@dataclass(frozen=True)
class Classifier:
    """A trained classifier.

    Attributes:
        model: the network, in eval mode.
        class_names: the names of the K classes, in the order of the logits.
        resolution: side of the images it was trained on, in pixels, or [height, width].
        metrics: the contents of metrics.json: its accuracy, and on which data.
    """

    model: PreTrainedModel
    class_names: tuple[str, ...]
    resolution: int | list[int]
    metrics: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def load(cls, folder: str | Path, device: str | torch.device = "cpu") -> "Classifier":
        """Load the folder that `save` or `mtl-diffusion train_classifier` wrote.

        Raises:
            ValueError: `folder` holds no classifier.
        """
        metrics, config = Path(folder, "metrics.json"), Path(folder, "config.json")
        if not metrics.is_file() or not config.is_file():
            raise ValueError(
                f"classifier: {str(folder)!r} has no config.json and metrics.json; give the"
                " --output_dir of mtl-diffusion train_classifier."
            )
        kind = json.loads(config.read_text()).get("model_type")
        if kind not in MODELS:
            raise ValueError(
                f"classifier: {str(folder)!r} is of model_type {kind!r}; allowed are"
                f" {', '.join(MODELS)}; train one with mtl-diffusion train_classifier."
            )
        model = MODELS[kind].from_pretrained(folder).float().eval().requires_grad_(False).to(device)
        names = tuple(model.config.id2label[i] for i in range(model.config.num_labels))
        facts = json.loads(metrics.read_text())
        return cls(model, names, facts.pop("resolution"), facts)

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of its images."""
        side = self.resolution
        return tuple(side) if isinstance(side, list) else (side, side)

    def save(self, folder: str | Path, metrics: dict) -> None:
        """Write config.json, model.safetensors and metrics.json, with the resolution added."""
        self.model.save_pretrained(folder)
        mode = Path(folder, "config.json").stat().st_mode
        Path(folder, "model.safetensors").chmod(mode)  # safetensors writes it 0600
        text = json.dumps(metrics | {"resolution": self.resolution}, indent=2)
        Path(folder, "metrics.json").write_text(text + "\n")

    @torch.no_grad()
    def __call__(self, images: torch.Tensor) -> torch.Tensor:
        """Images (B, 3, H, W) in [-1, 1], on any device -> logits (B, K) on the model's device.

        Raises:
            ValueError: the images are not of the shape that the classifier was trained on.
        """
        expected = (3, *self.size)
        if images.ndim != 4 or images.shape[1:] != expected:
            raise ValueError(
                f"images: the shape is {tuple(images.shape)}, and this classifier was trained on"
                f" (B, {', '.join(map(str, expected))}); train one at the resolution of the images."
            )
        return self.model(images.to(self.model.device, torch.float32)).logits

    def features(self, images: torch.Tensor) -> torch.Tensor:
        """The inputs of the last layer: images as above -> (B, D) on the model's device.

        They have a gradient where the images do.
        """
        images = images.to(self.model.device, torch.float32)
        if isinstance(self.model, ResNet9):
            return self.model.features(images)
        return self.model.regnet(images).pooler_output.flatten(1)

    def accuracy(self, dataset: ImageDataset, batch_size: int = 500) -> float:
        """The share of the images in [0, 1] that is classified correctly.

        Raises:
            ValueError: the dataset's classes are not the classifier's.
        """
        if dataset.class_names != self.class_names:
            raise ValueError(
                f"dataset: its classes are {list(dataset.class_names)}, the classifier's are"
                f" {list(self.class_names)}; measure it on the dataset it was trained on."
            )
        right = 0
        for start in range(0, len(dataset), batch_size):
            rows = slice(start, start + batch_size)
            answers = self(to_unit_range(dataset.rgb[rows])).argmax(1)
            right += int((answers.cpu() == dataset.labels[rows].cpu()).sum())
        return right / len(dataset)
