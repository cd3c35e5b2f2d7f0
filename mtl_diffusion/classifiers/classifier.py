"""Small image classifiers, and their training: they measure which class an image shows.

There are two architectures. "resnet9" is the more accurate one, and measures what is reported.
"regnet" is a RegNet of transformers with dense 3x3 convolutions: its stem only halves the image,
where ResNet's and ConvNeXt's stems leave a 16-pixel one 4x4.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from tqdm.auto import tqdm
from transformers import PreTrainedModel, RegNetConfig, RegNetForImageClassification

from ..data.images import ImageDataset
from ..data.loader import Loader
from ..tools.rng import generator
from ..tools.tensors import to_unit_range
from .resnet9 import ResNet9, ResNet9Config


@dataclass(frozen=True)
class Classifier:
    """A trained classifier.

    Attributes:
        model: the network, in eval mode.
        class_names: the names of the K classes, in the order of the logits.
        resolution: side of the images it was trained on, in pixels.
        metrics: what metrics.json says of it: its accuracy, on which data.
    """

    model: PreTrainedModel
    class_names: tuple[str, ...]
    resolution: int
    metrics: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def load(cls, folder: str | Path, device: str | torch.device = "cpu") -> Classifier:
        """Load what `save` or `scripts/train_classifier.py` wrote.

        Raises:
            ValueError: `folder` holds no classifier.
        """
        metrics, config = Path(folder, "metrics.json"), Path(folder, "config.json")
        if not metrics.is_file() or not config.is_file():
            raise ValueError(
                f"classifier: {str(folder)!r} has no config.json and metrics.json; give the"
                " --output_dir of scripts/train_classifier.py."
            )
        kind = json.loads(config.read_text()).get("model_type")
        if kind not in ARCHITECTURES:
            raise ValueError(
                f"classifier: {str(folder)!r} is of model_type {kind!r}; allowed are"
                f" {', '.join(ARCHITECTURES)}; train one with scripts/train_classifier.py."
            )
        model = ARCHITECTURES[kind].model.from_pretrained(folder).eval().to(device)
        names = tuple(model.config.id2label[i] for i in range(model.config.num_labels))
        facts = json.loads(metrics.read_text())
        return cls(model, names, facts.pop("resolution"), facts)

    def save(self, folder: str | Path, metrics: dict) -> None:
        """Write config.json, model.safetensors and metrics.json, with the resolution added."""
        self.model.save_pretrained(folder)
        text = json.dumps(metrics | {"resolution": self.resolution}, indent=2)
        Path(folder, "metrics.json").write_text(text + "\n")

    @torch.no_grad()
    def __call__(self, images: torch.Tensor) -> torch.Tensor:
        """Images (B, 3, H, W) in [-1, 1], on any device -> logits (B, K) on the model's device.

        Raises:
            ValueError: the images are not of the shape that the classifier was trained on.
        """
        expected = (3, self.resolution, self.resolution)
        if images.ndim != 4 or images.shape[1:] != expected:
            raise ValueError(
                f"images: the shape is {tuple(images.shape)}, and this classifier was trained on"
                f" (B, {', '.join(map(str, expected))}); train one at the resolution of the images."
            )
        return self.model(images.to(self.model.device, torch.float32)).logits

    @torch.no_grad()
    def features(self, images: torch.Tensor) -> torch.Tensor:
        """What the last layer sees: images as above -> (B, D) on the model's device."""
        images = images.to(self.model.device, torch.float32)
        if isinstance(self.model, ResNet9):
            return self.model.features(images)
        return self.model.regnet(images).pooler_output.flatten(1)

    def accuracy(self, dataset: ImageDataset, batch_size: int = 500) -> float:
        """The share of the rows whose largest logit is that of their label, in [0, 1].

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
            answers = self(to_unit_range(dataset.images[rows])).argmax(1)
            right += int((answers.cpu() == dataset.labels[rows].cpu()).sum())
        return right / len(dataset)


def train_classifier(
    dataset: ImageDataset,
    architecture: str = "regnet",
    epochs: int = 10,
    batch_size: int = 128,
    learning_rate: float | None = None,
    width: int = 32,
    depth: int = 1,
    seed: int = 0,
    device: str | torch.device = "cpu",
    mixed_precision: str = "no",
) -> Classifier:
    """Train a classifier on all of `dataset`, with cross-entropy and a one-cycle learning rate.

    Images are flipped at random, and shifted by up to an eighth of their side. "resnet9" is trained
    by SGD with Nesterov's momentum, and a square of a quarter of the side is cut out of each image;
    "regnet" by AdamW.

    Args:
        dataset: on the CPU.
        architecture: "resnet9" or "regnet".
        epochs: passes over the dataset, at least 1.
        batch_size: samples a step, no more than the dataset has.
        learning_rate: the largest of the schedule; None for the architecture's own.
        width: channels of the first layer; each stage has twice the channels of the one before.
        depth: residual blocks in each of a regnet's three stages.
        seed: keys the initial weights, the order of the data and its augmentation.
        device: where to train.
        mixed_precision: "no" or "bf16".

    Raises:
        ValueError: an argument is not allowed, or the dataset is smaller than a batch.
    """
    if epochs < 1:
        raise ValueError(f"epochs: {epochs} leaves nothing to train; give 1 or more.")
    for name, value, allowed in (
        ("architecture", architecture, ARCHITECTURES),
        ("mixed_precision", mixed_precision, ("no", "bf16")),
    ):
        if value not in allowed:
            raise ValueError(f"{name}: {value!r} is not one of {', '.join(allowed)}.")
    recipe, device = ARCHITECTURES[architecture], torch.device(device)
    rate = recipe.learning_rate if learning_rate is None else learning_rate
    loader = Loader(dataset, batch_size, seed, random_flip=True, device=device)
    with torch.random.fork_rng(devices=[]):  # layers are initialised from the global generator
        torch.manual_seed(generator(seed, "classifier").initial_seed())
        model = recipe.model(recipe.config(dataset.class_names, width, depth))
    # With the channels last, convolutions are a quarter faster on CPUs, and a third in bf16.
    model = model.to(device, memory_format=torch.channels_last).train()
    steps = math.ceil(epochs * len(dataset) / batch_size)
    optimizer = recipe.optimizer(model.parameters(), lr=rate)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, total_steps=steps + 1)
    bf16 = torch.autocast(device.type, torch.bfloat16, enabled=mixed_precision == "bf16")
    progress = tqdm(range(steps), desc="Training the classifier", unit="step", mininterval=1)
    for step in progress:
        batch, random = loader.batch(step), generator(seed, step, "shift")
        images = _shift(batch.images, dataset.resolution // 8, random)
        if recipe.cutout:
            images = _cut_out(images, dataset.resolution // 4, random)
        with bf16:
            logits = model(images.contiguous(memory_format=torch.channels_last)).logits
        loss = F.cross_entropy(logits.float(), batch.labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        if step % 20 == 0:
            progress.set_postfix(loss=f"{loss.item():.3f}")
    return Classifier(model.eval(), dataset.class_names, dataset.resolution)


@dataclass(frozen=True)
class Architecture:
    """A network, and how it is trained.

    Attributes:
        config: (class names, width, depth) -> the configuration of a `model`.
        optimizer: (parameters, lr) -> an optimizer.
        learning_rate: the largest of the schedule, for batches of 128.
        cutout: hide a square of each image.
    """

    model: type[PreTrainedModel]
    config: Callable[[tuple[str, ...], int, int], Any]
    optimizer: Callable[..., torch.optim.Optimizer]
    learning_rate: float
    cutout: bool


def _regnet(class_names: tuple[str, ...], width: int, depth: int) -> RegNetConfig:
    return RegNetConfig(
        embedding_size=width,
        hidden_sizes=[width, 2 * width, 4 * width],
        depths=[depth] * 3,
        groups_width=4 * width,  # as wide as the widest stage: one group, a dense convolution
        downsample_in_first_stage=False,
        **_labels(class_names),
    )


def _resnet9(class_names: tuple[str, ...], width: int, depth: int) -> ResNet9Config:
    return ResNet9Config(width=width, **_labels(class_names))


def _labels(class_names: tuple[str, ...]) -> dict[str, dict]:
    names = dict(enumerate(class_names))
    return {"id2label": names, "label2id": {name: i for i, name in names.items()}}


ARCHITECTURES = {
    "resnet9": Architecture(
        ResNet9,
        _resnet9,
        partial(torch.optim.SGD, momentum=0.9, nesterov=True, weight_decay=5e-4),
        learning_rate=0.1,
        cutout=True,
    ),
    "regnet": Architecture(
        RegNetForImageClassification,
        _regnet,
        partial(torch.optim.AdamW, weight_decay=0.05),
        learning_rate=3e-3,
        cutout=False,
    ),
}


def _shift(images: torch.Tensor, reach: int, random: torch.Generator) -> torch.Tensor:
    """Move each image of (B, C, H, W) by up to `reach` pixels each way, mirroring at the rim."""
    rows, (height, width) = len(images), images.shape[-2:]
    padded = F.pad(images, [reach] * 4, mode="reflect")
    places = padded.unfold(2, height, 1).unfold(3, width, 1)  # (B, C, 2r+1, 2r+1, H, W)
    dy, dx = torch.randint(2 * reach + 1, (2, rows), generator=random).to(images.device)
    return places[torch.arange(rows, device=images.device), :, dy, dx]


def _cut_out(images: torch.Tensor, side: int, random: torch.Generator) -> torch.Tensor:
    """Grey out a square of `side` pixels in each image of (B, C, H, W), which may pass its rim."""
    size = images.shape[-1]
    corners = torch.randint(1 - side, size, (2, len(images), 1), generator=random)
    offsets = torch.arange(size, device=images.device) - corners.to(images.device)  # (2, B, size)
    rows, columns = (offsets >= 0) & (offsets < side)
    return images.masked_fill((rows[:, :, None] & columns[:, None, :])[:, None], 0)
