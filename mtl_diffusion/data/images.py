"""Images and labels of a split of a dataset, decoded and held in memory."""

import dataclasses
import hashlib
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import datasets
import torch

from ..pipeline.format import ImageFormat
from .columns import (
    Columns,
    DataError,
    Rows,
    find_image_column,
    find_label_column,
    read_labels,
)
from .decode import Decoded, Facts, decode_rows, digests_of
from .source import Source, explained, open_source

CONDITIONS = "condition_columns"  # a field of the configuration
MASK = "mask"  # the layer of a region of interest: (N, 1, H, W) uint8 in {0, 1}
FRAME = "frame"  # the layer that is 0 in padding and 1 inside the image: (N, 1, H, W) uint8
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
        facts: how many of the images were fitted, and the like.
        where: words for the dataset. split: words for the split.
        copies: how many of the images are in the split that is trained on, too.
    """

    images: torch.Tensor
    labels: torch.Tensor
    class_names: tuple[str, ...]
    fingerprint: str
    format: ImageFormat
    layers: Mapping[str, torch.Tensor] = field(default_factory=dict, compare=False)
    facts: Facts = field(default=Facts(), compare=False)
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
        cuts = []
        for image, (frame,) in zip(images, self.layers[FRAME], strict=True):
            rows, columns = (frame.amax(axis).nonzero()[:, 0] for axis in (1, 0))
            cuts.append(image[:, rows][:, :, columns])
        return cuts

    @property
    def conditions(self) -> dict[str, torch.Tensor]:
        """Task -> the images of another kind that it makes these of, stored as these are."""
        start = condition_of("")
        named = {k.removeprefix(start): v for k, v in self.layers.items() if k.startswith(start)}
        return named

    @property
    def rgb(self) -> torch.Tensor:
        """The images as they are shown: (N, 3, H, W) uint8."""
        return self.format.stored_as_rgb(self.images)

    @property
    def absent_classes(self) -> tuple[str, ...]:
        """Names of the classes that no image is of."""
        present = set(self.labels.tolist())
        return tuple(name for i, name in enumerate(self.class_names) if i not in present)

    def __len__(self) -> int:
        return len(self.images)

    def relabelled(self, class_names: tuple[str, ...]) -> "ImageDataset":
        """The same images with labels that index into `class_names`, which has every name of ours.

        The fingerprint, which is that of the data as it was read, does not change.
        """
        places = {name: place for place, name in enumerate(class_names)}
        table = torch.tensor([*(places[name] for name in self.class_names), -1])
        return dataclasses.replace(self, labels=table[self.labels], class_names=class_names)

    def spread(self, count: int) -> "ImageDataset":
        """So many of the images, of as many classes as possible: always the same ones."""
        seen: Counter[int] = Counter()
        turns = []
        for row, label in enumerate(self.labels.tolist()):
            turns.append((seen[label], row))
            seen[label] += 1
        rows = [row for _, row in sorted(turns)[:count]]
        layers = {name: layer[rows] for name, layer in self.layers.items()}
        return dataclasses.replace(
            self, images=self.images[rows], labels=self.labels[rows], layers=layers
        )

    def to(self, device: str | torch.device) -> "ImageDataset":
        """The same dataset with all tensors on `device`."""
        tensors = {"images": self.images.to(device), "labels": self.labels.to(device)}
        layers = {name: layer.to(device) for name, layer in self.layers.items()}
        return dataclasses.replace(self, **tensors, layers=layers)


def load_images(
    dataset_name: str,
    dataset_config_name: str | None = None,
    split: str = "train",
    image_column: str | None = None,
    label_column: str | None = None,
    resolution: int = 32,
    *,
    form: ImageFormat | None = None,
    split_field: str = "train_split",
) -> ImageDataset:
    """Load one split of an image dataset, decoded.

    How images are decoded is described in `decode.decode`, what a folder of images is in
    `folder.read_folder`, and which the classes are in `columns.read_labels`.

    Args:
        dataset_name: "shapes" for the embedded dataset; else a folder of images, or a name for
            `datasets.load_dataset`. A folder named shapes is reached as "./shapes".
        split: a split, or slices of it: "train", "train[:90%]", "train[:90%]+test". Of a dataset
            with one split, "test" is a tenth of it, always the same one.
        image_column: as `find_image_column` takes it.
        label_column: as `find_label_column` takes it.
        resolution: side in pixels, of RGB squares of 8 bits.
        form: another format, in place of that.
        split_field: the name of `split` in error messages: "train_split", "validation_split".

    Raises:
        DataError: a ValueError. The dataset, configuration, split or a column is not there or is
            ambiguous, the split is empty, an image does not decode, or a label is not among its
            names. The last two name the row of `split`.
    """
    form = form or ImageFormat.square(resolution)
    source = open_source(dataset_name, dataset_config_name, max(form.size), image_column)
    only = only_split(source.splits, split)
    rows = _parts(source, only, image_column)[1] if only else _slices(source, split, split_field)
    return _load(source, rows, Columns(image_column, label_column), form)[0]


def load_splits(
    config: Any, form: ImageFormat, fields: tuple[str, str] = ("train_split", "validation_split")
) -> tuple[ImageDataset, ImageDataset]:
    """The images to train on, and those that are held out: the splits named by two fields.

    Where the second split is "test" and the dataset has only the first one, a tenth of that is
    held out: the same images each time, and no copy of one of them is among the others.

    Raises:
        DataError: as `load_images` does; or a tenth of the second split is in the first one.
    """
    named = (config.dataset_name, config.dataset_config_name)
    source = open_source(*named, max(form.size), config.image_column)
    given = vars(config)  # commands have some of these fields
    columns = Columns(
        config.image_column,
        config.label_column,
        given.get("mask_column"),
        given.get("condition_columns") or {},
    )
    splits = [getattr(config, name) for name in fields]
    if splits[0] == only_split(source.splits, splits[1]):
        parts = _parts(source, splits[0], config.image_column, columns.others)
    else:
        parts = [_slices(source, *pair) for pair in zip(splits, fields, strict=True)]
    (train, trained), (held_out, digests) = (_load(source, rows, columns, form) for rows in parts)
    trained = set(trained)
    copies = sum(digest in trained for digest in digests)
    if copies * 10 >= len(digests):
        raise DataError(
            f"{fields[1]}: {copies:,} of the {len(digests):,} images of {splits[1]!r} are also in"
            f" {splits[0]!r}, which is trained on. Give splits that share none, such as"
            ' "train[:90%]" and "train[90%:]", or remove the copies from one of them.'
        )
    return train, dataclasses.replace(held_out, copies=copies)


def load_split(config: Any, split_field: str, form: ImageFormat) -> ImageDataset:
    """The split that a configuration names in this field; see `load_splits`."""
    return load_images(
        config.dataset_name,
        config.dataset_config_name,
        getattr(config, split_field),
        config.image_column,
        config.label_column,
        form=form,
        split_field=split_field,
    )


def _load(
    source: Source, rows: Rows, columns: Columns, form: ImageFormat
) -> tuple[ImageDataset, Sequence[bytes]]:
    """The images of the rows, and the digests of their files."""
    threads = torch.get_num_threads()
    with explained(source.name):
        features = rows.table.features
        image_column = find_image_column(features, columns.image, columns.others)
        label_column = find_label_column(features, columns.label)
        source.check_declared(label_column)
        labels, names = read_labels(source.splits, rows, label_column)
        digests = rows.digests or digests_of(rows, image_column, threads)
        decoded = decode_rows(rows, image_column, form, threads, digests)
        layers = {} if decoded.frames is None else {FRAME: decoded.frames}
        if columns.mask is not None:
            layers[MASK] = _masks(rows, columns.mask, form, decoded, threads)
        for task, column in columns.conditions.items():
            name = find_image_column(features, column, field=CONDITIONS)
            how = (form, threads, digests_of(rows, name, threads), None, CONDITIONS)
            layers[condition_of(task)] = decode_rows(rows, name, *how).pixels
    words = {"facts": decoded.facts, "where": source.where, "split": rows.words}
    return ImageDataset.of(decoded.pixels, labels, names, form, layers, **words), digests


def _masks(
    rows: Rows, column: str, form: ImageFormat, images: Decoded, threads: int
) -> torch.Tensor:
    """(N, 1, H, W) uint8: 1 where the masks of the images are white, brought to size alike."""
    field = "mask_column"
    column = find_image_column(rows.table.features, column, field=field)
    grey = ImageFormat(*form.size, mode="L", fit=form.fit)
    digests = digests_of(rows, column, threads)
    masks = decode_rows(rows, column, grey, threads, digests, nearest=True, field=field)
    other = (masks.sizes != images.sizes).any(1).nonzero()[:, 0].tolist()
    if other:
        (height, width), (rows_, columns) = masks.sizes[other[0]], images.sizes[other[0]]
        raise DataError(
            f"{field}: {rows.name(other[0])} has a mask of {width}x{height} pixels, and its image"
            f" has {columns}x{rows_}; give masks of the size of their images."
        )
    white = (masks.pixels >= 128).to(torch.uint8)
    return white if masks.frames is None else white * masks.frames


def only_split(splits: Mapping[str, Any], split: str) -> str | None:
    """The only split, if `split` is "test" and absent: a tenth of the only one is held out then."""
    name, *others = splits
    return name if split == TEST and not others and name != TEST else None


def _parts(
    source: Source, split: str, image_column: str | None, others: Collection[str | None] = ()
) -> list[Rows]:
    """The images of the only split that are trained on, and the tenth that is held out."""
    table, folders = source.splits[split], source.folders(split)
    whole = Rows(table, range(len(table)), split, folders)
    with explained(source.name):
        column = find_image_column(table.features, image_column, others)
        digests = digests_of(whole, column, torch.get_num_threads())
    last = sorted(digests)[max(1, len(digests) // 10) - 1] if digests else b""
    words = f"the rest of {split}", f"a tenth of {split}, by a fixed key"
    parts = []
    for held_out in (False, True):
        rows = [row for row, digest in enumerate(digests) if (digest <= last) == held_out]
        picked = [digests[row] for row in rows]
        parts.append(Rows(table.select(rows), rows, split, folders, words[held_out], picked))
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
    except ValueError as error:
        raise DataError(
            f"{split_field}: {split!r} is not in {source.name!r}, which has {there}: {error}\n"
            f"Of a dataset with one split, --validation_split {TEST} holds a tenth out. Slices"
            ' work, too: --train_split "train[:90%]" --validation_split "train[90%:]".'
        ) from error
    parts = [part for part in parts if part.from_ < part.to]
    if not parts:
        raise DataError(
            f"{split_field}: {split!r} of {source.name!r} has no rows; it has {there}."
            " Choose another split or slice."
        )
    chosen = [source.splits[part.splitname].select(range(part.from_, part.to)) for part in parts]
    rows = datasets.concatenate_datasets(chosen)
    folders = dict.fromkeys(f for part in parts for f in source.folders(part.splitname))
    return Rows(rows, range(len(rows)), split, tuple(folders))
