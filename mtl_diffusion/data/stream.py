"""A split that is streamed from disk or from the Hub, and never held in memory as a whole.

`datasets` shuffles its rows; batches are decoded in background threads during training.
"""

import dataclasses
import hashlib
import os
from collections import Counter, deque
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from typing import Any, NamedTuple

import datasets
import fsspec
import torch
from datasets.distributed import split_dataset_by_node

from ..tools.rng import generator
from ..tools.tensors import to_device
from .columns import (
    DataError,
    Source,
    check_label,
    class_names,
    find_image_column,
    find_label_column,
    listed,
)
from .decode import Decoded, Decoder, Encoded, check_depth, undecoded
from .images import ImageDataset
from .loader import IMAGES, Batch, flipped, process_rows
from .source import explained, open_source

ORDER = "datasets"  # who shuffles a stream; a checkpoint holds it, and continues no other order
_AHEAD = 4  # batches that are decoded ahead of the current step, to bridge slow reads


class Position(NamedTuple):
    """How far a process has read: the number of its rows of `epoch` that are done."""

    epoch: int
    rows: int


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
    ) -> Iterator[tuple[Encoded, int]]:
        """This process's rows of one epoch, in an order that is a function of the arguments.

        It is the order of `IterableDataset.shuffle` in this version of `datasets`. Every row is
        seen by one process of `world`, once: where their number divides the number of files, each
        reads its own files; else all read everything, and each keeps one row in `world`.

        Yields:
            An image, and its label, which is -1 without classes.

        Raises:
            DataError: a label is not among the classes; the message names the row.
        """
        key = generator(seed, epoch, "rows").initial_seed()
        rows = self.rows.shuffle(seed=key, buffer_size=buffer_size)
        for row in split_dataset_by_node(rows, rank, world):
            yield row["image"], self.table[row["label"]] if self.table else -1

    def head(self, num_images: int, buffer_size: int, decoder: Decoder) -> ImageDataset:
        """The first `num_images` rows of an epoch of a fixed key, or all if there are fewer.

        Raises:
            DataError: there is no row, or one of them is bad.
        """
        with explained(self.where):
            rows = list(islice(self.epoch(0, 0, buffer_size), num_images))
        if not rows:
            raise DataError(f"validation_split: {self.split!r} has no rows; choose another split.")
        decoded, labels = _decoded(rows, decoder)
        check_depth(decoded.facts, decoder.images, self.split)
        known = (decoded.pixels, labels, self.class_names, decoder.images, decoded.layers)
        words = {"where": self.where, "split": self.split, "facts": decoded.facts}
        return dataclasses.replace(ImageDataset.of(*known, **words), fingerprint=self.fingerprint)


def _decoded(rows: Sequence[tuple[Encoded, int]], decoder: Decoder) -> tuple[Decoded, torch.Tensor]:
    images, labels = zip(*rows, strict=True)
    return decoder(images, len(images)), torch.tensor(labels)


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
    source = open_source(config, streaming=True)
    splits = {getattr(config, field): field for field in fields}
    if len(splits) < len(fields):
        raise DataError(
            f"{fields[-1]}: {listed(splits)} is trained on, too; the dataset has"
            f" {listed(source.splits)}: name another split, or set streaming to false."
        )
    with explained(source.name):
        return tuple(_open(source, split, field, config) for split, field in splits.items())


def _open(source: Source, split: str, field: str, config: Any) -> ImageStream:
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
    columns = [find_image_column(features, config.image_column)]
    names, label_column = (), find_label_column(features, config.label_column)
    if label_column:
        columns.append(label_column)
        if not isinstance(features[label_column], datasets.ClassLabel):
            raise DataError(
                f"label_column: {label_column!r} ({features[label_column].dtype}) has no names of"
                " its classes, and a stream isn't read to find them; make it a ClassLabel column,"
                " or set streaming to false."
            )
        names = class_names(features[label_column])
    files, folders = source.files[split], source.folders(split)
    rows = undecoded(source.splits[split], columns[0]).select_columns(columns)

    def read(shards: list[int]) -> Iterator[dict[str, Any]]:
        for shard in shards:
            whole = len(files) == rows.num_shards  # a part is a file
            file = os.path.basename(files[shard]) if whole else f"part {shard}"
            for number, row in enumerate(rows.shard(rows.num_shards, shard)):
                words, label = f"row {number} of {file} of {split!r}", row.get(label_column)
                if label_column:
                    check_label(label, len(names), label_column, words)
                image = Encoded.of(row[columns[0]], f"image_column: {words}", folders)
                yield {"image": image, "label": label}

    digest = hashlib.sha256(repr(names).encode())
    for system, path in map(fsspec.core.url_to_fs, files):
        digest.update(repr((os.path.basename(path), system.size(path))).encode())
    shards = {"shards": list(range(rows.num_shards))}
    return ImageStream(
        rows=datasets.IterableDataset.from_generator(read, gen_kwargs=shards),
        split=split,
        where=source.where,
        class_names=names,
        table=tuple(range(len(names))),
        fingerprint=digest.hexdigest()[:16],
    )


@dataclass(eq=False)
class StreamingLoader:
    """Batches of a stream that is repeated without end, each epoch in its own random order.

    Steps must be requested in order; rows of the current step can be requested repeatedly. Each
    process reads its own rows, so a batch is a function of (seed, step, number of processes). To
    resume a run, call `go_to(step, position)`. Arguments that `Loader` has, too, are the same.

    Args:
        rank: the number of this process, which sees its `process_rows`.
        world: the number of processes.
        buffer_size: rows that are shuffled among.

    Attributes:
        seen: label -> how many rows of it this process has taken; -1 for rows without a class.
        position: that of the next step.
    """

    stream: ImageStream
    total_batch_size: int
    rank: int
    world: int
    buffer_size: int
    seed: int
    random_flip: bool
    decoder: Decoder
    device: str | torch.device = "cpu"

    def __post_init__(self):
        self.device = torch.device(self.device)
        self.mine = process_rows(self.total_batch_size, self.rank, self.world)
        self.seen: Counter[int] = Counter()
        self._reader = ThreadPoolExecutor(1)  # one thread: it advances a generator
        self.go_to(0, Position(0, 0))

    def go_to(self, step: int, position: Position) -> None:
        """Makes `step` the next step, with rows from `position` on.

        Earlier rows of that epoch are read again and skipped without decoding.
        """
        self.position, self._step = position, step - 1
        self._shares, self._ahead = self._read(position), deque()

    def batch(self, step: int, rows: slice = slice(None)) -> Batch:
        """Samples `rows` of the global batch of `step`, the current step or the one after it.

        Raises:
            DataError: a row that was read is bad, or there is none for this process.
        """
        picked = range(self.total_batch_size)[rows]
        assert picked[0] in self.mine and picked[-1] in self.mine, f"{rows} is not ours"
        if step != self._step:
            assert step == self._step + 1, f"step {step} after {self._step}: a stream only goes on"
            while len(self._ahead) < _AHEAD:
                self._ahead.append(self._reader.submit(next, self._shares))
            self._pixels, self._labels, self.position = self._ahead.popleft().result()
            self._step = step
            self.seen.update(self._labels.tolist())
        first = self.mine.start
        cut = slice(picked.start - first, picked.stop - first, picked.step)
        pixels = {name: to_device(part[cut], self.device) for name, part in self._pixels.items()}
        if self.random_flip:
            pixels = flipped(pixels, self.seed, step, self.total_batch_size, picked)
        images = self.decoder.images.from_stored(pixels.pop(IMAGES))
        return Batch(images, to_device(self._labels[cut], self.device), pixels)

    def _read(
        self, position: Position
    ) -> Iterator[tuple[dict[str, torch.Tensor], torch.Tensor, Position]]:
        """This process's samples of each global batch, as stored, and the position after them."""
        rows = self._rows(position)
        while taken := list(islice(rows, len(self.mine))):
            decoded, labels = _decoded([row for row, _ in taken], self.decoder)
            yield {IMAGES: decoded.pixels, **decoded.layers}, labels, taken[-1][1]

    def _rows(self, position: Position) -> Iterator[tuple[tuple[Encoded, int], Position]]:
        """Each row from `position` on without end, with the position after it."""
        epoch, skipped = position
        how = (self.buffer_size, self.rank, self.world)
        while True:
            done, rows = skipped, self.stream.epoch(self.seed, epoch, *how)
            for done, row in enumerate(islice(rows, skipped, None), skipped + 1):
                yield row, Position(epoch, done)
            if not done:
                raise DataError(
                    f"train_split: {self.stream.split!r} has no rows for process {self.rank} of"
                    f" {self.world}; use fewer processes."
                )
            epoch, skipped = epoch + 1, 0
