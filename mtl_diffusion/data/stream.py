"""A split that is streamed from disk or from the Hub, and never held in memory as a whole."""

import dataclasses
import hashlib
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import datasets
import fsspec
import torch

from ..tools.rng import generator
from .columns import (
    DataError,
    check_label,
    check_names,
    find_image_column,
    find_label_column,
    listed,
)
from .decode import Decoder, Encoded, check_depth
from .images import ImageDataset
from .source import Source, explained, open_source

# Files that are read in turn, and the rows that are taken of each at a time. Neighbouring rows of a
# file are often alike, so the shuffle buffer should hold rows of several files.
_LANES = 8
_TURN = 64


@dataclass(frozen=True)
class Example:
    """A row, undecoded.

    Attributes:
        image: undecoded.
        label: index into the class names of its stream, -1 for no class.
    """

    image: Encoded
    label: int


@dataclass(frozen=True)
class ImageStream:
    """One split of an image dataset, in an order that is keyed, without random access.

    Attributes:
        rows: the undecoded rows, of an image column and perhaps a label column.
        label_column: None if the images have no classes.
        split: its name.
        where: words for the dataset.
        class_names: one name a class; empty if the images have no labels.
        table: (C,) stored label -> index into `class_names`.
        fingerprint: 16 hex digits of the sha256 of the names and sizes of the files and of the
            names of the classes: the pixels themselves are not known before they are read.
    """

    rows: datasets.IterableDataset
    image_column: str
    label_column: str | None
    split: str
    where: str
    class_names: tuple[str, ...]
    table: tuple[int, ...]
    fingerprint: str

    def relabelled(self, class_names: tuple[str, ...]) -> "ImageStream":
        """The same stream with labels that index into `class_names`, which has all of ours."""
        numbers = {name: number for number, name in enumerate(class_names)}
        places = [numbers[name] for name in self.class_names]
        table = tuple(places[label] for label in self.table)
        return dataclasses.replace(self, class_names=class_names, table=table)

    def epoch(
        self, seed: int, epoch: int, buffer_size: int, rank: int = 0, world: int = 1
    ) -> Iterator[Example]:
        """This process's rows of one epoch, in an order that is a function of the arguments.

        The files are read in a shuffled order, eight at a time, and their rows pass through a
        buffer from which each step takes one at random. Where the number of files is a multiple
        of the number of processes, each process reads its own; else all read everything, and each
        keeps one row in `world`. Either way every row is seen by one process, once.

        Args:
            buffer_size: rows in the buffer, 1 or more; 1 keeps the order of the files.
            rank: this process.
            world: how many processes there are.

        Raises:
            ValueError: a label is not among the classes; the message names the row.
        """
        shards = torch.randperm(
            self.rows.num_shards, generator=generator(seed, epoch, "shards")
        ).tolist()
        if len(shards) % world == 0:
            own = self._interleaved(shards[rank::world])
            yield from _shuffled(own, buffer_size, generator(seed, epoch, rank, "rows"))
        else:
            everything = self._interleaved(shards)
            shuffled = _shuffled(everything, buffer_size, generator(seed, epoch, "rows"))
            yield from islice(shuffled, rank, None, world)

    def head(self, num_images: int, buffer_size: int, decoder: Decoder) -> ImageDataset:
        """The first `num_images` rows of an epoch of a fixed key, or all if there are fewer.

        Raises:
            DataError: there is no row, or one of them is bad.
        """
        with explained(self.where):
            examples = list(islice(self.epoch(0, 0, buffer_size), num_images))
        if not examples:
            raise DataError(f"validation_split: {self.split!r} has no rows; choose another split.")
        images, peak = decoder([example.image for example in examples])
        check_depth(peak, self.split)
        labels = torch.tensor([example.label for example in examples])
        words = {"where": self.where, "split": self.split}
        dataset = ImageDataset.of(images, labels, self.class_names, **words)
        return dataclasses.replace(dataset, fingerprint=self.fingerprint)

    def _interleaved(self, shards: list[int]) -> Iterator[Example]:
        """The rows of these files, a few of each of several files in turn."""
        lanes = deque(self._lane(shards[i::_LANES]) for i in range(_LANES))
        while lanes:
            lane = lanes.popleft()
            turn = list(islice(lane, _TURN))
            yield from turn
            if len(turn) == _TURN:
                lanes.append(lane)

    def _lane(self, shards: list[int]) -> Iterator[Example]:
        for shard in shards:
            rows = self.rows.shard(self.rows.num_shards, shard)
            row = 0
            for part in rows.iter(batch_size=_TURN):
                images = part[self.image_column]
                labels = [-1] * len(images)
                if self.label_column is not None:
                    labels = part[self.label_column]
                for stored, label in zip(images, labels, strict=True):
                    name = f"row {row} of file {shard} of {self.split!r}"
                    if self.label_column is not None:
                        check_label(label, len(self.table), self.label_column, name)
                        label = self.table[label]
                    yield Example(Encoded.of(stored, name), label)
                    row += 1


def open_streams(
    config: Any, fields: Sequence[str] = ("train_split", "validation_split")
) -> tuple[ImageStream, ...]:
    """Opens whole splits for streaming; no row is read yet.

    The classes are those that the dataset declares, in a `ClassLabel` column: no row is read to
    find others.

    Args:
        config: has dataset_name, dataset_config_name, image_column, label_column, resolution and
            the fields.
        fields: those that hold the splits.

    Raises:
        DataError: the dataset, configuration, split or a column is not there or is ambiguous, or
            the classes have no names.
    """
    name, columns = config.dataset_name, (config.image_column, config.label_column)
    source = open_source(name, config.dataset_config_name, config.resolution, streaming=True)
    with explained(name):
        return tuple(_open(source, getattr(config, field), field, *columns) for field in fields)


def _open(
    source: Source, split: str, field: str, image_column: str | None, label_column: str | None
) -> ImageStream:
    if split not in source.splits:
        raise DataError(
            f"{field}: {split!r} is not in {source.name!r}, which has {listed(source.splits)}; a"
            " stream is a whole split, no part of one: add a split, or set streaming to false."
        )
    rows = source.splits[split]
    if rows.features is None:
        raise DataError(
            f"dataset_name: {source.name!r} does not declare its columns, which streaming needs;"
            " set streaming to false."
        )
    image_column = find_image_column(rows.features, image_column)
    label_column = find_label_column(rows.features, label_column)
    names: tuple[str, ...] = ()
    if label_column is not None:
        feature = rows.features[label_column]
        if not isinstance(feature, datasets.ClassLabel):
            raise DataError(
                f"label_column: {label_column!r} ({feature.dtype}) has no names of its classes, and"
                " a stream isn't read to find them; make it a ClassLabel column, or set streaming"
                " to false."
            )
        names = tuple(feature.names)
        check_names(names, declared=True)
    rows = rows.cast_column(image_column, datasets.Image(decode=False))
    return ImageStream(
        rows=rows.select_columns([image_column, *([label_column] if label_column else [])]),
        image_column=image_column,
        label_column=label_column,
        split=split,
        where=source.where,
        class_names=names,
        table=tuple(range(len(names))),
        fingerprint=_fingerprint(source.files[split], names),
    )


def _shuffled(
    examples: Iterator[Example], buffer_size: int, random: torch.Generator
) -> Iterator[Example]:
    """Shuffle buffer: returns a random entry and puts the new one in its place."""
    buffer = list(islice(examples, buffer_size))
    places = iter(())
    for example in examples:
        place = next(places, None)
        if place is None:
            places = iter(torch.randint(len(buffer), (1024,), generator=random).tolist())
            place = next(places)
        yield buffer[place]
        buffer[place] = example
    for place in torch.randperm(len(buffer), generator=random).tolist():
        yield buffer[place]


def _fingerprint(files: list[str], class_names: tuple[str, ...]) -> str:
    digest = hashlib.sha256(repr(class_names).encode())
    for file in files:
        system, path = fsspec.core.url_to_fs(file)
        digest.update(repr((Path(path).name, system.size(path))).encode())
    return digest.hexdigest()[:16]
