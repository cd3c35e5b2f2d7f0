"""Learning something new from a trained model: what is old, what is new, and the ways to learn it.

The new thing is a task, a class or a dataset. Every way takes the same number of steps, each of
which sees as many samples of the new thing:

    tokens, tokens+condition, all   from the model of the old, which part of it is trained
    alone                           the new thing, from nothing
    joint                           the old and the new together, from nothing
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import datasets
import torch
from PIL import Image

from ..config import TrainConfig
from ..data.images import ImageDataset, load_split, load_splits
from ..pipeline.pipeline import TASKS, MultiTaskPipeline
from ..pipeline.tokens import Vocabulary
from ..tools.files import replaced_folder
from ..training.validation import held_out_loss
from ..training.vocabulary import extend_tokenizer

FROM_OLD = ("tokens", "tokens+condition", "all")
FROM_NOTHING = ("alone", "joint")
KINDS = ("task", "class", "dataset")


@dataclass(frozen=True)
class Part:
    """What is learned: tasks in proportions, on a dataset; `data` are the fields that name it."""

    tasks: Mapping[str, float]
    data: Mapping[str, str | None]

    def load(self, base: TrainConfig) -> ImageDataset:
        """Its held-out split."""
        return load_split(replace(base, **self.data), "validation_split", base.resolution)


@dataclass(frozen=True)
class Novelty:
    """What a model knows, what it is to learn, both together, and the share of the new in both."""

    old: Part
    new: Part
    both: Part
    share: float


def novelty(kind: str, name: str, base: TrainConfig, folder: Path) -> Novelty:
    """Divides what is learned into old and new; a class or a dataset is written into folders.

    Args:
        kind: one of `KINDS`. name: of the task, of the class of the base's data, or of a dataset.

    Raises:
        ValueError: there is no such task or class, or nothing else is left.
    """
    if kind == "task":
        old = {task: share for task, share in base.shares.items() if task != name}
        if name not in TASKS or not old:
            raise ValueError(
                f"task: found {name}; it must be one of {', '.join(TASKS)}, and not the only one"
            )
        share = base.shares.get(name, 1 / (len(old) + 1))
        rest = sum(old.values())
        both = {task: (1 - share) * part / rest for task, part in old.items()} | {name: share}
        return Novelty(Part(old, {}), Part({name: 1.0}, {}), Part(both, {}), share)
    fields = ("train_split", "validation_split")
    splits = dict(zip(fields, load_splits(base, base.resolution), strict=True))
    if kind == "class":
        names = splits["train_split"].class_names
        if name not in names or len(names) < 2:
            raise ValueError(f"class: found {name}; it must be one of two or more: {names}")
        rest = tuple(other for other in names if other != name)
        old = {field: _of_classes(data, rest) for field, data in splits.items()}
        new = {field: _of_classes(data, (name,)) for field, data in splits.items()}
    else:
        other = TrainConfig(dataset_name=name, resolution=base.resolution)
        found = load_splits(other, base.resolution)
        old, new = splits, dict(zip(fields, found, strict=True))
    both = {field: _together(old[field], new[field]) for field in fields}
    parts = [
        Part(base.shares, _write(data, folder / word))
        for word, data in (("old", old), ("new", new), ("both", both))
    ]
    return Novelty(*parts, len(new["train_split"]) / len(both["train_split"]))


def configure(
    way: str, given: Novelty, base: TrainConfig, seed: int, folder: Path, pretrained: Path | None
) -> TrainConfig:
    """The configuration of one way to learn, or of the model of the "old"; each in `folder`."""
    part = {"old": given.old, "joint": given.both}.get(way, given.new)
    whole = way in ("old", "joint")
    batch = base.total_batch_size
    return replace(
        base,
        **part.data,
        tasks=dict(part.tasks),
        total_batch_size=batch if whole else max(1, round(batch * given.share)),
        train_only=way if way in FROM_OLD else "all",
        pretrained_model_name_or_path=str(pretrained) if way in FROM_OLD else None,
        checkpoints_total_limit=None,
        seed=seed,
        output_dir=str(folder),
    )


def loss(
    pipe: MultiTaskPipeline, part: Part, data: ImageDataset, num_images: int, device: str
) -> float | None:
    """The held-out loss of a part, a mean over its tasks and noise levels; None if the model lacks
    words for it."""
    if set(part.tasks) - set(pipe.tasks) or set(data.class_names) - set(pipe.class_names):
        return None
    found = held_out_loss(
        pipe.unet,
        pipe.scheduler,
        [TASKS[task] for task in part.tasks],
        pipe.vocabulary,
        data.relabelled(pipe.class_names),
        num_images,
        device=device,
    )
    return found.model.mean().item()


def with_words_for(pipe: MultiTaskPipeline, part: Part, data: ImageDataset) -> MultiTaskPipeline:
    """The same model with reserved words given to what is new, as training will begin with it."""
    tokenizer = extend_tokenizer(pipe.tokenizer, part.tasks, data.class_names)
    assert Vocabulary.of(tokenizer.get_vocab()).size == pipe.vocabulary.size
    return MultiTaskPipeline(pipe.unet, tokenizer, pipe.scheduler)


def _of_classes(data: ImageDataset, names: tuple[str, ...]) -> ImageDataset:
    ids = torch.tensor([data.class_names.index(name) for name in names])
    rows = torch.isin(data.labels, ids)
    labels = torch.searchsorted(ids, data.labels[rows])  # the ids are in ascending order
    return ImageDataset.of(data.images[rows], labels, names)


def _together(one: ImageDataset, other: ImageDataset) -> ImageDataset:
    names = tuple(dict.fromkeys([*one.class_names, *other.class_names]))
    parts = [one.relabelled(names), other.relabelled(names)]
    images = torch.cat([part.images for part in parts])
    return ImageDataset.of(images, torch.cat([part.labels for part in parts]), names)


def _write(splits: Mapping[str, ImageDataset], folder: Path) -> dict[str, str | None]:
    """A folder that `load_images` reads, whole or not there; returns the fields that name it."""
    if not folder.exists():
        with replaced_folder(folder) as new:
            for field, data in splits.items():
                features = datasets.Features(
                    image=datasets.Image(), label=datasets.ClassLabel(names=list(data.class_names))
                )
                pictures = [Image.fromarray(x.permute(1, 2, 0).numpy()) for x in data.images]
                rows = {"image": pictures, "label": data.labels.tolist()}
                name = {"train_split": "train", "validation_split": "test"}[field]
                datasets.Dataset.from_dict(rows, features).to_parquet(new / f"{name}.parquet")
    return {
        "dataset_name": str(folder),
        "dataset_config_name": None,
        "train_split": "train",
        "validation_split": "test",
        "image_column": "image",
        "label_column": "label",
    }
