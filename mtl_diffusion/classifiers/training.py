"""Training of classifiers.

There are two architectures. "resnet9" is the more accurate one, and is used for reported figures.
"regnet" is a RegNet of transformers with dense 3x3 convolutions: its stem only halves the image,
where ResNet's and ConvNeXt's stems leave a 16-pixel one 4x4.
"""

import math
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from tqdm.auto import tqdm
from transformers import RegNetConfig

from ..data.images import ImageDataset, load_splits
from ..data.loader import Loader
from ..pipeline.format import ImageFormat
from ..tools.names import public
from ..tools.rng import generator
from .classifier import MODELS, Classifier
from .resnet9 import ResNet9Config

RATES = {"resnet9": 0.1, "regnet": 3e-3}  # for batches of 128


def train_to_folder(
    data: Any, form: ImageFormat, output_dir: Path, command: str, **options: Any
) -> dict[str, Any]:
    """Trains a classifier, measures it on held-out images, and writes both to a folder.

    Args:
        data: has dataset_name, dataset_config_name, image_column, label_column, train_split and
            test_split.
        form: of the images, which the classifier sees as RGB of 8 bits.
        command: noted in metrics.json.
        options: further arguments of `train_classifier`.

    Returns:
        The contents of metrics.json.

    Raises:
        ValueError: the data has no labels, or the splits have different classes; or as
            `train_classifier`.
    """
    started = time.monotonic()
    train, test = load_splits(data, form, ("train_split", "test_split"))
    if not train.class_names:
        raise ValueError(
            "label_column: the images have no labels; name the column, or give another dataset"
        )
    if train.class_names != test.class_names:
        raise ValueError(
            f"test_split: its classes are {list(test.class_names)}, and train_split's are"
            f" {list(train.class_names)}; the splits must name the same ones."
        )
    classifier = train_classifier(train, **options)
    accuracy = classifier.accuracy(test)
    metrics = {
        "accuracy": accuracy,
        "accuracy_standard_error": math.sqrt(accuracy * (1 - accuracy) / len(test)),
        "n": len(test),
        "split": data.test_split,
        "dataset_name": public(data.dataset_name),
        "fingerprint": test.fingerprint,
        "train_fingerprint": train.fingerprint,
        "command": command,
        "seconds": round(time.monotonic() - started, 1),
    }
    classifier.save(output_dir, metrics)
    return metrics


def train_classifier(
    dataset: ImageDataset,
    architecture: str = "regnet",
    epochs: int = 10,
    batch_size: int = 128,
    width: int = 32,
    depth: int = 1,
    noise: float = 0.0,
    seed: int = 0,
    device: str | torch.device = "cpu",
    mixed_precision: str = "no",
) -> Classifier:
    """Train a classifier on all of `dataset`, with cross-entropy and a one-cycle learning rate.

    Images are flipped at random, and shifted by up to an eighth of their side. "resnet9" is trained
    by SGD with Nesterov's momentum, and a square of a quarter of the side is cut out of each image;
    "regnet" by AdamW. With noise the classifier is less easily fooled by changes too weak to see.

    Args:
        dataset: on the CPU; its images are seen as they are shown, as RGB of 8 bits.
        architecture: "resnet9" or "regnet".
        epochs: passes over the dataset, at least 1.
        batch_size: samples a step, no more than the dataset has.
        width: channels of the first layer; each stage has twice the channels of the one before.
        depth: residual blocks in each of a regnet's three stages.
        noise: the largest standard deviation of Gaussian noise that is added to images in [-1, 1];
            each image has its own, uniform below it.
        seed: keys the initial weights, the order of the data and its augmentation.
        device: where to train.
        mixed_precision: "no" or "bf16".

    Raises:
        ValueError: there is nothing to train, the dataset is smaller than a batch, or the noise is
            no standard deviation.
    """
    if epochs < 1:
        raise ValueError(f"epochs: {epochs} leaves nothing to train; give 1 or more.")
    if not 0 <= noise < math.inf:
        raise ValueError(f"noise: {noise} is no standard deviation; give 0 for none, or more.")
    device, size = torch.device(device), dataset.format.size
    dataset = replace(dataset, images=dataset.rgb, format=ImageFormat(*size), layers={})
    loader = Loader(dataset, batch_size, seed, random_flip=True, device=device)
    with torch.random.fork_rng(devices=[]):  # layers are initialised from the global generator
        torch.manual_seed(generator(seed, "classifier").initial_seed())
        model = MODELS[architecture](_config(architecture, dataset.class_names, width, depth))
    # With the channels last, convolutions are a quarter faster on CPUs, and a third in bf16.
    model = model.to(device, memory_format=torch.channels_last).train()
    steps, rate = math.ceil(epochs * len(dataset) / batch_size), RATES[architecture]
    if architecture == "resnet9":
        how = {"momentum": 0.9, "nesterov": True, "weight_decay": 5e-4}
        optimizer = torch.optim.SGD(model.parameters(), lr=rate, **how)
    else:
        optimizer = torch.optim.AdamW(model.parameters(), lr=rate, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, total_steps=steps + 1)
    bf16 = torch.autocast(device.type, torch.bfloat16, enabled=mixed_precision == "bf16")
    progress = tqdm(range(steps), desc="Training the classifier", unit="step", mininterval=1)
    for step in progress:
        batch, random = loader.batch(step), generator(seed, step, "shift")
        images = _shift(batch.images, min(size) // 8, random)
        if architecture == "resnet9":
            images = _cut_out(images, min(size) // 4, random)
        if noise:
            images = _add_noise(images, noise, random)
        with bf16:
            logits = model(images.contiguous(memory_format=torch.channels_last)).logits
        loss = F.cross_entropy(logits.float(), batch.labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        if step % 20 == 0:
            progress.set_postfix(loss=f"{loss.item():.3f}")
    side = size[0] if size[0] == size[1] else list(size)
    return Classifier(model.eval(), dataset.class_names, side)


def _config(
    architecture: str, class_names: tuple[str, ...], width: int, depth: int
) -> ResNet9Config | RegNetConfig:
    names = dict(enumerate(class_names))
    labels = {"id2label": names, "label2id": {name: i for i, name in names.items()}}
    if architecture == "resnet9":
        return ResNet9Config(width=width, **labels)
    return RegNetConfig(
        embedding_size=width,
        hidden_sizes=[width, 2 * width, 4 * width],
        depths=[depth] * 3,
        groups_width=4 * width,  # as wide as the widest stage: one group, a dense convolution
        downsample_in_first_stage=False,
        **labels,
    )


def _shift(images: Tensor, reach: int, random: torch.Generator) -> Tensor:
    """Move each image of (B, C, H, W) by up to `reach` pixels each way, mirroring at the border."""
    rows, (height, width) = len(images), images.shape[-2:]
    padded = F.pad(images, [reach] * 4, mode="reflect")
    places = padded.unfold(2, height, 1).unfold(3, width, 1)  # (B, C, 2r+1, 2r+1, H, W)
    dy, dx = torch.randint(2 * reach + 1, (2, rows), generator=random).to(images.device)
    return places[torch.arange(rows, device=images.device), :, dy, dx]


def _cut_out(images: Tensor, side: int, random: torch.Generator) -> Tensor:
    """Grey out a square of `side` pixels in each image of (B, C, H, W); parts may be outside."""
    inside = []  # (B, H) and (B, W)
    for size in images.shape[-2:]:
        start = torch.randint(1 - side, size, (len(images), 1), generator=random)
        place = torch.arange(size) - start
        inside.append(((place >= 0) & (place < side)).to(images.device))
    rows, columns = inside
    return images.masked_fill((rows[:, :, None] & columns[:, None, :])[:, None], 0)


def _add_noise(images: Tensor, largest: float, random: torch.Generator) -> Tensor:
    """Adds Gaussian noise to (B, C, H, W), of a standard deviation below `largest` for each."""
    deviations = largest * torch.rand(len(images), 1, 1, 1, generator=random)
    noise = deviations * torch.randn(images.shape, generator=random)
    return images + noise.to(images.device)
