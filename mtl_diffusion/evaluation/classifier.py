"""The independent judge: a small image classifier that says which class a picture shows.

It is a RegNet of transformers with dense 3x3 convolutions: its stem only halves the picture, where
ResNet's and ConvNeXt's stems leave a 16-pixel one 4x4, and its batch norm lets it learn in seconds
on a CPU.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from tqdm.auto import tqdm
from transformers import RegNetConfig, RegNetForImageClassification

from ..data.images import ImageDataset
from ..data.loader import Loader
from ..tools.rng import generator
from ..tools.tensors import to_unit_range


@dataclass(frozen=True)
class Classifier:
    """A trained judge.

    Attributes:
        model: the network, in eval mode.
        class_names: the names of the K classes, in the order of the logits.
        resolution: side of the images it was trained on, in pixels.
        metrics: what metrics.json says of it: its accuracy, on which data.
    """

    model: RegNetForImageClassification
    class_names: tuple[str, ...]
    resolution: int
    metrics: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def load(cls, folder: str | Path, device: str | torch.device = "cpu") -> Classifier:
        """Load what `save` or `scripts/train_classifier.py` wrote.

        Raises:
            ValueError: `folder` holds no classifier.
        """
        metrics = Path(folder, "metrics.json")
        if not metrics.is_file() or not Path(folder, "config.json").is_file():
            raise ValueError(
                f"classifier: {str(folder)!r} has no config.json and metrics.json; give the"
                " --output_dir of scripts/train_classifier.py."
            )
        model = RegNetForImageClassification.from_pretrained(folder).eval().to(device)
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
    epochs: int = 10,
    batch_size: int = 128,
    learning_rate: float = 3e-3,
    width: int = 32,
    depth: int = 1,
    seed: int = 0,
    device: str | torch.device = "cpu",
) -> Classifier:
    """Train a classifier on all of `dataset`.

    AdamW under a one-cycle schedule; cross-entropy; images are flipped at random, and shifted by up
    to an eighth of their side.

    Args:
        dataset: on the CPU.
        epochs: passes over the dataset, at least 1.
        batch_size: samples a step, no more than the dataset has.
        learning_rate: the largest that the schedule reaches.
        width: channels of the first stage; each of the two others has twice the one before.
        depth: residual blocks in each of the three stages.
        seed: keys the initial weights, the order of the data, the flips and the shifts.
        device: where to train.

    Raises:
        ValueError: `epochs` is below 1, or the dataset is smaller than a batch.
    """
    if epochs < 1:
        raise ValueError(f"epochs: {epochs} leaves nothing to train; give 1 or more.")
    loader = Loader(dataset, batch_size, seed, random_flip=True, device=device)
    model = _network(dataset.class_names, width, depth, seed).to(device).train()
    steps = math.ceil(epochs * len(dataset) / batch_size)
    optimizer = torch.optim.AdamW(model.parameters(), lr=learning_rate, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, learning_rate, total_steps=steps + 1)
    progress = tqdm(range(steps), desc="Training the classifier", unit="step")
    for step in progress:
        batch = loader.batch(step)
        images = _shift(batch.images, dataset.resolution // 8, generator(seed, step, "shift"))
        loss = F.cross_entropy(model(images).logits, batch.labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        if step % 20 == 0:
            progress.set_postfix(loss=f"{loss.item():.3f}")
    return Classifier(model.eval(), dataset.class_names, dataset.resolution)


def _network(
    class_names: tuple[str, ...], width: int, depth: int, seed: int
) -> RegNetForImageClassification:
    config = RegNetConfig(
        embedding_size=width,
        hidden_sizes=[width, 2 * width, 4 * width],
        depths=[depth] * 3,
        groups_width=4 * width,  # as wide as the widest stage: one group, a dense convolution
        downsample_in_first_stage=False,
        id2label=dict(enumerate(class_names)),
        label2id={name: i for i, name in enumerate(class_names)},
    )
    with torch.random.fork_rng(devices=[]):  # transformers initialises from the global generator
        torch.manual_seed(generator(seed, "classifier").initial_seed())
        return RegNetForImageClassification(config)


def _shift(images: torch.Tensor, reach: int, random: torch.Generator) -> torch.Tensor:
    """Move each image of (B, C, H, W) by up to `reach` pixels each way, mirroring at the rim."""
    rows, (height, width) = len(images), images.shape[-2:]
    padded = F.pad(images, [reach] * 4, mode="reflect")
    places = padded.unfold(2, height, 1).unfold(3, width, 1)  # (B, C, 2r+1, 2r+1, H, W)
    dy, dx = torch.randint(2 * reach + 1, (2, rows), generator=random).to(images.device)
    return places[torch.arange(rows, device=images.device), :, dy, dx]
