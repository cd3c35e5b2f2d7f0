"""A split that is read as it goes, from disk or from the Hub, and never held whole."""

from __future__ import annotations

import dataclasses
import hashlib
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import datasets
import fsspec
import numpy as np
import torch

from ..tools.rng import generator
from .images import (
    ImageDataset,
    check_label,
    decode_image,
    find_image_column,
    find_label_column,
    opened,
)

# Files that are read side by side, and how many rows of each at a time: rows that lie together in
# a file are often alike, and the shuffle buffer should hold rows of several.
_LANES = 8
_TURN = 64


@dataclass(frozen=True)
class Example:
    """A row as it is stored.

    Attributes:
        encoded: `{"bytes", "path"}`, an image file in memory or on disk.
        label: index into the class names of its stream.
        row: words for it, for messages.
    """

    encoded: dict
    label: int
    row: str


@dataclass(frozen=True)
class ImageStream:
    """One split of a labelled image dataset, in an order that is keyed, without random access.

    Attributes:
        rows: the undecoded rows, of an image and a label column.
        split: its name.
        resolution: side of the decoded images in pixels.
        class_names: one name a class.
        table: (C,) what a stored label becomes, an index into `class_names`.
        fingerprint: 16 hex digits of the sha256 of the names and sizes of the files and of the
            names of the classes: the pixels themselves are not known before they are read.
    """

    rows: datasets.IterableDataset
    image_column: str
    label_column: str
    split: str
    resolution: int
    class_names: tuple[str, ...]
    table: tuple[int, ...]
    fingerprint: str

    @property
    def extent(self) -> str:
        """How many images there are, for a message: that is not known."""
        return "a stream of"

    def relabelled(self, class_names: tuple[str, ...]) -> ImageStream:
        """The same stream with labels that index into `class_names`, which has all of ours."""
        places = [class_names.index(name) for name in self.class_names]
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
            rank, world: this process, and how many there are.

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

    def decode(self, example: Example) -> np.ndarray:
        """(H, W, 3) uint8, RGB.

        Raises:
            ValueError: it does not decode; the message names the row.
        """
        return np.asarray(decode_image(example.encoded, self.resolution, example.row))

    def head(self, num_images: int, buffer_size: int) -> ImageDataset:
        """So many rows in memory, or all if there are fewer, always the same ones.

        They come in the order of an epoch of a fixed key, because files may be sorted by class.

        Raises:
            ValueError: there is no row, or one of them is bad.
        """
        examples = list(islice(self.epoch(0, 0, buffer_size), num_images))
        if not examples:
            raise ValueError(f"validation_split: {self.split!r} has no rows; choose another split.")
        pixels = torch.from_numpy(np.stack([self.decode(example) for example in examples]))
        dataset = ImageDataset.of(
            pixels.permute(0, 3, 1, 2).contiguous(),
            torch.tensor([example.label for example in examples]),
            self.class_names,
        )
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
                columns = part[self.image_column], part[self.label_column]
                for encoded, label in zip(*columns, strict=True):
                    name = f"row {row} of file {shard} of {self.split!r}"
                    check_label(label, len(self.table), self.label_column, name)
                    yield Example(encoded, self.table[label], name)
                    row += 1


def open_stream(
    dataset_name: str,
    dataset_config_name: str | None = None,
    split: str = "train",
    image_column: str | None = None,
    label_column: str | None = None,
    resolution: int = 32,
    *,
    split_field: str = "train_split",
) -> ImageStream:
    """Open one whole split of a labelled image dataset for streaming; no row is read yet.

    Images are decoded as `load_images` does. Class names have to be among what the dataset says
    of itself, a `ClassLabel` column: no row is read to find them.

    Args:
        as of `load_images`, but that `split` is the name of one split.

    Raises:
        ValueError: the dataset, configuration, split or a column is not there or is ambiguous, or
            the classes have no names.
    """
    with opened(dataset_name, dataset_config_name) as builder:
        splits = builder.as_streaming_dataset()
    if split not in splits:
        raise ValueError(
            f"{split_field}: {split!r} is not in {dataset_name!r}, which has {', '.join(splits)};"
            " a stream is a whole split, not slices of one."
        )
    rows = splits[split]
    if rows.features is None:
        raise ValueError(
            f"dataset_name: {dataset_name!r} does not declare its columns, which streaming needs;"
            " set streaming to false."
        )
    image_column = find_image_column(rows.features, image_column)
    label_column = find_label_column(rows.features, label_column)
    feature = rows.features[label_column]
    if not isinstance(feature, datasets.ClassLabel):
        raise ValueError(
            f"label_column: {label_column!r} ({feature.dtype}) has no names of its classes, and a"
            " stream isn't read to find them; make it a ClassLabel column, or set streaming to"
            " false."
        )
    names = tuple(feature.names)
    rows = rows.cast_column(image_column, datasets.Image(decode=False))
    return ImageStream(
        rows=rows.select_columns([image_column, label_column]),
        image_column=image_column,
        label_column=label_column,
        split=split,
        resolution=resolution,
        class_names=names,
        table=tuple(range(len(names))),
        fingerprint=_fingerprint(builder.config.data_files[split], names),
    )


def _shuffled(
    examples: Iterator[Example], buffer_size: int, random: torch.Generator
) -> Iterator[Example]:
    """Every example once: each that comes in sends out a random one of those that wait."""
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
