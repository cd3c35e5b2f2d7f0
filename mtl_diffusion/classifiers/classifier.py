"""Small image classifiers: loaded, saved and applied."""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
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
        config, facts = {}, {}
        if Path(folder, "config.json").is_file() and Path(folder, "metrics.json").is_file():
            config = json.loads(Path(folder, "config.json").read_text())
            facts = json.loads(Path(folder, "metrics.json").read_text())
        kind = config.get("model_type")
        if kind not in MODELS:
            what = f"is of model_type {kind!r}" if config else "has no config.json and metrics.json"
            raise ValueError(
                f"classifier: {str(folder)!r} {what}; give the --output_dir of mtl-diffusion"
                f" train_classifier, which makes {' and '.join(MODELS)}"
            )
        model = MODELS[kind].from_pretrained(folder).float().eval().requires_grad_(False).to(device)
        names = tuple(model.config.id2label[i] for i in range(model.config.num_labels))
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
    def __call__(self, images: Tensor) -> Tensor:
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

    def feature_maps(self, images: Tensor) -> Tensor:
        """The outputs of the last convolution: images as above -> (B, D, h, w).

        They are on the model's device, and have a gradient where the images do.
        """
        images = images.to(self.model.device, torch.float32)
        if isinstance(self.model, ResNet9):
            return self.model.body(images)
        return self.model.regnet(images).last_hidden_state

    def features(self, images: Tensor) -> Tensor:
        """The inputs of the last layer, (B, D): each architecture pools its maps."""
        maps = self.feature_maps(images)
        if isinstance(self.model, ResNet9):
            return maps.amax((2, 3))
        return self.model.regnet.pooler(maps).flatten(1)

    def mixed_features(self, images: Tensor) -> Tensor:
        """`features`, and before them what the image is made of: (B, D').

        Of the first stage the mean and the standard deviation of each channel over the image, of
        the second the mean.
        """
        images = images.to(self.model.device, torch.float32)
        if isinstance(self.model, ResNet9):
            first = self.model.body[:4](images)
            second = self.model.body[4](first)
            last = self.model.body[5:](second).amax((2, 3))
        else:
            found = self.model.regnet(images, output_hidden_states=True)
            first, second = found.hidden_states[1:3]
            last = found.pooler_output.flatten(1)
        spread = (first.var((2, 3)) + 1e-6).sqrt()  # smooth at 0
        return torch.cat([first.mean((2, 3)), spread, second.mean((2, 3)), last], dim=1)

    def accuracy(self, dataset: ImageDataset) -> float:
        """The share of images that it knows; their classes are its own."""
        assert dataset.class_names == self.class_names
        right = 0
        for images, labels in zip(dataset.rgb.split(500), dataset.labels.split(500), strict=True):
            right += int((self(to_unit_range(images)).argmax(1).cpu() == labels.cpu()).sum())
        return right / len(dataset)
