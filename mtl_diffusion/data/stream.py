"""A split that is streamed from disk or from the Hub, and never held in memory as a whole."""

import dataclasses
import hashlib
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any, NamedTuple

import datasets
import fsspec
import torch
from datasets.distributed import split_dataset_by_node

from ..tools.rng import generator
from .columns import (
    DataError,
    check_label,
    class_names,
    find_image_column,
    find_label_column,
    listed,
)
from .decode import Decoder, Encoded, check_depth, undecoded
from .images import FRAME, ImageDataset
from .source import Source, explained, open_source

_READ = 64  # rows that are read of a file at a time


class Example(NamedTuple):
    """A row, undecoded; its label is -1 without classes."""

    image: Encoded
    label: int


@dataclass(frozen=True)
class ImageStream:
    """One split of an image dataset, in an order that is keyed, without random access.

    Attributes:
        rows: dicts with an `image` (`Encoded`) and a `label`, as it is stored.
        split: its name. where: words for the dataset.
        class_names: one name a class; empty if the images have no labels.
        table: (C,) stored label -> index into `class_names`.
        fingerprint: 16 hex digits of the sha256 of the names and sizes of the files and of the
            names of the classes: the pixels themselves are not known before they are read.
    """

    rows: datasets.IterableDataset
    split: str
    where: str
    class_names: tuple[str, ...]
    table: tuple[int, ...]
    fingerprint: str

    def relabelled(self, class_names: tuple[str, ...]) -> "ImageStream":
        """The same stream with labels that index into `class_names`, which has all of ours."""
        table = tuple(class_names.index(self.class_names[label]) for label in self.table)
        return dataclasses.replace(self, class_names=class_names, table=table)

    def epoch(
        self, seed: int, epoch: int, buffer_size: int, rank: int = 0, world: int = 1
    ) -> Iterator[Example]:
        """This process's rows of one epoch, in an order that is a function of the arguments.

        It is the order of `IterableDataset.shuffle` in this version of `datasets`. Every row is
        seen by one process of `world`, once: where their number divides the number of files, each
        reads its own files; else all read everything, and each keeps one row in `world`.

        Raises:
            DataError: a label is not among the classes; the message names the row.
        """
        key = generator(seed, epoch, "rows").initial_seed()
        rows = self.rows.shuffle(seed=key, buffer_size=buffer_size)
        for row in split_dataset_by_node(rows, rank, world):
            yield Example(row["image"], self.table[row["label"]] if self.table else -1)

    def head(self, num_images: int, buffer_size: int, decoder: Decoder) -> ImageDataset:
        """The first `num_images` rows of an epoch of a fixed key, or all if there are fewer.

        Raises:
            DataError: there is no row, or one of them is bad.
        """
        with explained(self.where):
            examples = list(islice(self.epoch(0, 0, buffer_size), num_images))
        if not examples:
            raise DataError(f"validation_split: {self.split!r} has no rows; choose another split.")
        decoded = decoder([example.image for example in examples])
        check_depth(decoded.facts, decoder.images, self.split)
        labels = torch.tensor([example.label for example in examples])
        words = {"where": self.where, "split": self.split, "facts": decoded.facts}
        layers = {} if decoded.frames is None else {FRAME: decoded.frames}
        known = (decoded.pixels, labels, self.class_names, decoder.images, layers)
        dataset = ImageDataset.of(*known, **words)
        return dataclasses.replace(dataset, fingerprint=self.fingerprint)


def open_streams(
    config: Any, fields: Sequence[str] = ("train_split", "validation_split")
) -> tuple[ImageStream, ...]:
    """Opens whole splits for streaming; no row is read yet.

    The classes are those that the dataset declares, in a `ClassLabel` column: no row is read to
    find others.

    Raises:
        DataError: the dataset, configuration, split or a column is not there or is ambiguous, or
            the classes have no names.
    """
    source = open_source(
        config.dataset_name,
        config.dataset_config_name,
        1,  # which shapes alone need, and they are no stream
        config.image_column,
        streaming=True,
    )
    splits = {getattr(config, field): field for field in fields}
    if len(splits) < len(fields):
        raise DataError(
            f"{fields[-1]}: {listed(splits)} is trained on, too; the dataset has"
            f" {listed(source.splits)}: name another split, or set streaming to false."
        )
    columns = (config.image_column, config.label_column)
    with explained(source.name):
        return tuple(_open(source, split, field, *columns) for split, field in splits.items())


def _open(
    source: Source, split: str, field: str, image_column: str | None, label_column: str | None
) -> ImageStream:
    if split not in source.splits:
        raise DataError(
            f"{field}: {split!r} is not in {source.name!r}, which has {listed(source.splits)}; a"
            " stream is a whole split, no part of one: add a split, or set streaming to false."
        )
    features = source.splits[split].features
    if features is None:
        raise DataError(
            f"dataset_name: {source.name!r} does not declare its columns, which streaming needs;"
            " set streaming to false."
        )
    image_column = find_image_column(features, image_column)
    label_column = find_label_column(features, label_column)
    feature = features.get(label_column)
    if label_column and not isinstance(feature, datasets.ClassLabel):
        raise DataError(
            f"label_column: {label_column!r} ({feature.dtype}) has no names of its classes, and a"
            " stream isn't read to find them; make it a ClassLabel column, or set streaming to"
            " false."
        )
    names = class_names(feature) if label_column else ()
    source.check_declared(label_column)
    columns = [image_column, label_column] if label_column else [image_column]
    rows = undecoded(source.splits[split], image_column).select_columns(columns)
    files, whole = source.files[split], len(source.files[split]) == rows.num_shards

    def read(shards: list[int]) -> Iterator[dict[str, Any]]:
        for shard in shards:
            file, folders = f"part {shard}", source.folders(split)
            if whole:
                file, folders = os.path.basename(files[shard]), [os.path.dirname(files[shard])]
                source.check_declared(label_column, [files[shard]])
            row = 0
            for part in rows.shard(rows.num_shards, shard).iter(_READ):
                labels = part[label_column] if label_column else [-1] * len(part[image_column])
                for stored, label in zip(part[image_column], labels, strict=True):
                    words = f"row {row} of {file} of {split!r}"
                    if label_column:
                        check_label(label, len(names), label_column, words)
                    yield {"image": Encoded.of(stored, words, folders), "label": label}
                    row += 1

    shards = {"shards": list(range(rows.num_shards))}
    return ImageStream(
        rows=datasets.IterableDataset.from_generator(read, gen_kwargs=shards),
        split=split,
        where=source.where,
        class_names=names,
        table=tuple(range(len(names))),
        fingerprint=_fingerprint(files, names),
    )


def _fingerprint(files: list[str], class_names: tuple[str, ...]) -> str:
    digest = hashlib.sha256(repr(class_names).encode())
    for file in files:
        system, path = fsspec.core.url_to_fs(file)
        digest.update(repr((os.path.basename(path), system.size(path))).encode())
    return digest.hexdigest()[:16]
