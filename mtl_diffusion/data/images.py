"""Images and labels of a split of a dataset, decoded and held in memory."""

import dataclasses
import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import datasets
import numpy as np
import pandas as pd
import torch

from ..pipeline.format import ImageFormat
from .columns import DataError, Rows, Source, find_image_column, find_label_column, read_labels
from .decode import FACTS, FRAME, Decoded, decode_rows, encoded
from .source import explained, open_source

MASK = "mask"  # the layer of a region of interest: (N, 1, H, W) uint8 in {0, 1}
TEST = "test"  # the split that a dataset without it gives a tenth of its only one for


def condition_of(task: str) -> str:
    """The name of the layer that a task makes the images of: (N, C, H, W), stored as they are."""
    return f"condition of {task}"


@dataclass(frozen=True)
class ImageDataset:
    """Every image and label of one split, in memory.

    Attributes:
        images: (N, C, H, W), as the format stores them.
        labels: (N,) int64, indices into `class_names`; -1 for an image without a class.
        class_names: one name a class; empty if the images have no labels.
        fingerprint: 16 hex digits of the sha256 of the pixels, labels and names. It tells data
            apart, not files: the same pixels from another folder or machine have the same one.
        format: of the images.
        layers: further pixels (N, ., H, W) of each image, by name: `FRAME`, `MASK`, and
            `condition_of` each task.
        facts: (N,) of `decode.FACTS`, or (0,) where they are not known.
        where: words for the dataset. split: words for the split.
        copies: how many of the images are in the split that is trained on, too.
    """

    images: torch.Tensor
    labels: torch.Tensor
    class_names: tuple[str, ...]
    fingerprint: str
    format: ImageFormat
    layers: Mapping[str, torch.Tensor] = field(default_factory=dict, compare=False)
    facts: np.ndarray = field(default_factory=lambda: np.empty(0, FACTS), compare=False)
    where: str = field(default="memory", compare=False)
    split: str = field(default="all", compare=False)
    copies: int = field(default=0, compare=False)

    @classmethod
    def of(
        cls,
        images: torch.Tensor,
        labels: torch.Tensor,
        class_names: tuple[str, ...],
        form: ImageFormat | None = None,
        layers: Mapping[str, torch.Tensor] | None = None,
        **words: Any,
    ) -> "ImageDataset":
        """The dataset of these CPU tensors, with its fingerprint computed.

        Args:
            form: the format of the images. None: RGB of 8 bits.
        """
        form, layers = form or ImageFormat(*images.shape[-2:]), layers or {}
        assert images.dtype == getattr(torch, form.dtype) and images.shape[1:] == form.shape
        assert labels.dtype == torch.int64 and labels.shape == images.shape[:1]
        digest = hashlib.sha256(repr((tuple(images.shape), tuple(class_names))).encode())
        digest.update(images.contiguous().numpy())
        digest.update(labels.numpy().astype("<i8"))
        for name in sorted(layers):
            digest.update(name.encode())
            digest.update(layers[name].contiguous().numpy())
        known = (images, labels, tuple(class_names), digest.hexdigest()[:16], form, layers)
        return cls(*known, **words)

    @property
    def arrays(self) -> list[torch.Tensor]:
        """The images as a pipeline takes them: (C, h, w), without padding."""
        images = list(self.format.stored_as_array(self.images))
        if FRAME not in self.layers:
            return images
        inside = [(frame.any(1), frame.any(0)) for (frame,) in self.layers[FRAME].bool()]
        return [
            image[:, rows][:, :, columns]
            for image, (rows, columns) in zip(images, inside, strict=True)
        ]

    @property
    def conditions(self) -> dict[str, torch.Tensor]:
        """Task -> the images of another kind that it makes these of, stored as these are."""
        start = condition_of("")
        return {k.removeprefix(start): v for k, v in self.layers.items() if k.startswith(start)}

    @property
    def rgb(self) -> torch.Tensor:
        """The images as they are shown: (N, 3, H, W) uint8."""
        return self.format.stored_as_rgb(self.images)

    def __len__(self) -> int:
        return len(self.images)

    def relabelled(self, class_names: tuple[str, ...]) -> "ImageDataset":
        """The same images with labels that index into `class_names`, which has every name of ours.

        The fingerprint, which is that of the data as it was read, does not change.
        """
        table = torch.tensor([*map(class_names.index, self.class_names), -1])
        return dataclasses.replace(self, labels=table[self.labels], class_names=class_names)

    def spread(self, count: int) -> "ImageDataset":
        """So many of the images, of as many classes as possible: always the same ones."""
        labels = self.labels.numpy()
        turns = pd.Series(labels).groupby(labels).cumcount()  # of each image in its class
        rows = turns.sort_values(kind="stable").index[:count].tolist()
        return self._of_tensors(lambda tensor: tensor[rows])

    def to(self, device: str | torch.device) -> "ImageDataset":
        """The same dataset with all tensors on `device`."""
        return self._of_tensors(lambda tensor: tensor.to(device))

    def _of_tensors(self, change: Callable[[torch.Tensor], torch.Tensor]) -> "ImageDataset":
        layers = {name: change(layer) for name, layer in self.layers.items()}
        images, labels = change(self.images), change(self.labels)
        return dataclasses.replace(self, images=images, labels=labels, layers=layers)


def load_split(config: Any, split_field: str, form: ImageFormat) -> ImageDataset:
    """Loads one split of an image dataset, decoded as `decode.decode` does it.

    Args:
        config: has dataset_name ("shapes" for the embedded dataset; else a folder, as
            `folder.read_folder` reads it, or a name for `datasets.load_dataset`),
            dataset_config_name, image_column and label_column (as `find_image_column` and
            `find_label_column` take them), and may have mask_column and condition_columns.
        split_field: the field with the split, or slices of it: "train", "train[:90%]",
            "train[:90%]+test". Of a dataset with one split, "test" is a tenth of it, always the
            same one.

    Raises:
        DataError: a ValueError. The dataset, configuration, split or a column is not there or is
            ambiguous, the split is empty, an image does not decode, or a label is not among its
            names. The last two name the row.
    """
    source, split = open_source(config, max(form.size)), getattr(config, split_field)
    only = _only_split(source, split)
    rows = _parts(source, only, config)[1] if only else _slices(source, split, split_field)
    return _load(source, rows, config, form)


def load_splits(
    config: Any, form: ImageFormat, fields: tuple[str, str] = ("train_split", "validation_split")
) -> tuple[ImageDataset, ImageDataset]:
    """The images to train on, and those that are held out: the splits named by two fields.

    Where the second split is "test" and the dataset has only the first one, a tenth of that is
    held out: the same images each time, and no copy of one of them is among the others.

    Raises:
        DataError: as `load_split` does; or a tenth of the second split is in the first one.
    """
    source, splits = open_source(config, max(form.size)), [getattr(config, f) for f in fields]
    if splits[0] == _only_split(source, splits[1]):
        parts = _parts(source, splits[0], config)
    else:
        parts = [_slices(source, *pair) for pair in zip(splits, fields, strict=True)]
    train, held_out = (_load(source, rows, config, form) for rows in parts)
    trained = {*train.facts["digest"].tolist()}
    copies = sum(digest in trained for digest in held_out.facts["digest"].tolist())
    if copies * 10 >= len(held_out):
        raise DataError(
            f"{fields[1]}: {copies:,} of the {len(held_out):,} images of {splits[1]!r} are also in"
            f" {splits[0]!r}, which is trained on. Give splits that share none, such as"
            ' "train[:90%]" and "train[90%:]", or remove the copies from one of them.'
        )
    return train, dataclasses.replace(held_out, copies=copies)


def _columns(rows: Rows, config: Any) -> tuple[str, str | None, Mapping[str, str]]:
    """The column of the images, and, if the command has these fields, those of masks and of each
    task's conditions."""
    mask = getattr(config, "mask_column", None)
    conditions = getattr(config, "condition_columns", None) or {}
    others = {mask, *conditions.values()}
    return find_image_column(rows.table.features, config.image_column, others), mask, conditions


def _load(source: Source, rows: Rows, config: Any, form: ImageFormat) -> ImageDataset:
    with explained(source.name):
        features = rows.table.features
        image_column, mask_column, conditions = _columns(rows, config)
        label_column = find_label_column(features, config.label_column)
        labels, names = read_labels(source.splits, rows, label_column)
        decoded = decode_rows(rows, image_column, form)
        layers = dict(decoded.layers)
        if mask_column is not None:
            layers[MASK] = _masks(rows, mask_column, form, decoded)
        for task, given in conditions.items():
            column = find_image_column(features, given, field="condition_columns")
            found = decode_rows(rows, column, form, nearest=None, field="condition_columns")
            layers[condition_of(task)] = found.pixels
    words = {"facts": decoded.facts, "where": source.where, "split": rows.words}
    return ImageDataset.of(decoded.pixels, labels, names, form, layers, **words)


def _masks(rows: Rows, column: str, form: ImageFormat, images: Decoded) -> torch.Tensor:
    """(N, 1, H, W) uint8: 1 where the masks of the images are white, brought to size alike."""
    column = find_image_column(rows.table.features, column, field="mask_column")
    grey = ImageFormat(*form.size, mode="L", fit=form.fit)
    masks = decode_rows(rows, column, grey, nearest=True, field="mask_column")
    sizes = zip(masks.facts["size"].tolist(), images.facts["size"].tolist(), strict=True)
    for place, (ours, theirs) in enumerate(sizes):
        if ours != theirs:
            raise DataError(
                f"mask_column: {rows.name(place)} has a mask of {ours[1]}x{ours[0]} pixels, and its"
                f" image has {theirs[1]}x{theirs[0]}; give masks of the size of their images."
            )
    white = (masks.pixels >= 128).to(torch.uint8)
    return white * masks.layers.get(FRAME, 1)


def _only_split(source: Source, split: str) -> str | None:
    """The only split, if `split` is "test" and absent: a tenth of the only one is held out then."""
    name, *others = source.splits
    return name if split == TEST and not others and name != TEST else None


def _parts(source: Source, split: str, config: Any) -> list[Rows]:
    """The images of the only split that are trained on, and the tenth that is held out."""
    table, folders = source.splits[split], source.folders(split)
    whole = Rows(table, range(len(table)), split, split, folders)
    with explained(source.name):
        images = encoded(whole, _columns(whole, config)[0])
        digests = [hashlib.sha256(image.read()).digest() for image in images]
    last = sorted(digests)[max(1, len(digests) // 10) - 1]
    parts = []
    for held_out, words in ((False, "the rest of {}"), (True, "a tenth of {}, by a fixed key")):
        rows = [row for row, digest in enumerate(digests) if (digest <= last) == held_out]
        parts.append(Rows(table.select(rows), rows, split, words.format(split), folders))
    if not parts[0].numbers:
        raise DataError(
            f"validation_split: {source.name!r} has one split, {split}, of too few different"
            f" images to hold some of them out: {len(digests)} in all; add some, or a split {TEST}."
        )
    return parts


def _slices(source: Source, split: str, split_field: str) -> Rows:
    sizes = {key: len(rows) for key, rows in source.splits.items()}
    there = ", ".join(f"{key} ({size} rows)" for key, size in sizes.items())
    try:
        parts = datasets.ReadInstruction.from_spec(split).to_absolute(sizes)
        parts = [part for part in parts if part.from_ < part.to]
        if not parts:
            raise ValueError("it has no rows")
    except ValueError as error:
        raise DataError(
            f"{split_field}: {split!r} is not in {source.name!r}, which has {there}: {error}\n"
            f"Of a dataset with one split, --validation_split {TEST} holds a tenth out. Slices"
            ' work, too: --train_split "train[:90%]" --validation_split "train[90%:]".'
        ) from error
    chosen = [source.splits[part.splitname].select(range(part.from_, part.to)) for part in parts]
    rows = datasets.concatenate_datasets(chosen)
    folders = dict.fromkeys(f for part in parts for f in source.folders(part.splitname))
    return Rows(rows, range(len(rows)), split, split, tuple(folders))
