"""Batches of a stream, decoded in background threads during training."""

from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import NamedTuple

import torch

from ..tools.tensors import to_unit_range
from .columns import DataError
from .decode import Decoder
from .loader import Batch, flipped
from .stream import Example, ImageStream

# Batches that are decoded ahead of the current step, to bridge slow reads.
_AHEAD = 4


class Position(NamedTuple):
    """How far a process has read: the number of its rows of `epoch` that are done."""

    epoch: int
    rows: int


@dataclass(frozen=True)
class _Share:
    """This process's samples of one global batch: uint8, on the CPU."""

    images: torch.Tensor
    labels: torch.Tensor
    end: Position


@dataclass(eq=False)
class StreamingLoader:
    """Batches of a stream that is repeated without end, each epoch in its own random order.

    Steps must be requested in order; rows of the current step can be requested repeatedly. Each
    process reads its own rows, so a batch is a function of (seed, step, number of processes). To
    resume a run, call `go_to(step, position)`.

    Args:
        stream: the split to read.
        total_batch_size: samples in a global batch, over all processes.
        mine: the rows of a global batch that this process sees.
        rank: this process.
        world: how many processes there are.
        buffer_size: rows in the shuffle buffer.
        seed: keys the order and the flips.
        random_flip: mirror each sample left-right with probability one half.
        decoder: decodes the images.
        device: where batches are delivered.
    """

    stream: ImageStream
    total_batch_size: int
    mine: range
    rank: int
    world: int
    buffer_size: int
    seed: int
    random_flip: bool
    decoder: Decoder
    device: str | torch.device = "cpu"

    def __post_init__(self):
        self.device = torch.device(self.device)
        self._reader = ThreadPoolExecutor(1)  # one thread: it advances a generator
        self.go_to(0, Position(0, 0))

    @property
    def position(self) -> Position:
        """The position of the next step's rows."""
        return self._current.end if self._current else self._start

    def go_to(self, step: int, position: Position) -> None:
        """Makes `step` the next step, with rows from `position` on.

        Earlier rows of that epoch are read again and skipped without decoding.
        """
        self._start = position
        self._step, self._current = step - 1, None
        self._shares = self._read(position)
        self._ahead: deque[Future[_Share]] = deque()

    def batch(self, step: int, rows: slice = slice(None)) -> Batch:
        """Samples `rows` of the global batch of `step`.

        Args:
            step: the current step or the one after it.
            rows: the part of `range(total_batch_size)` that a microbatch takes, within `mine`.

        Raises:
            ValueError: a row that was read is bad, or there is none for this process.
        """
        picked = range(self.total_batch_size)[rows]
        assert picked[0] in self.mine and picked[-1] in self.mine, f"{rows} is not ours"
        share = self._share_of(step)
        first = self.mine.start
        cut = slice(picked.start - first, picked.stop - first, picked.step)
        images, labels = share.images[cut], share.labels[cut]
        if self.device.type != "cpu":  # pinned, if it is a GPU: the copy overlaps with its work
            images = images.to(self.device, non_blocking=True)
            labels = labels.to(self.device, non_blocking=True)
        if self.random_flip:
            images = flipped(images, self.seed, step, self.total_batch_size, picked)
        return Batch(to_unit_range(images), labels)

    def _share_of(self, step: int) -> _Share:
        if step != self._step:
            assert step == self._step + 1, f"step {step} after {self._step}: a stream only goes on"
            # Only the reader's thread advances the generator.
            while len(self._ahead) < _AHEAD:
                self._ahead.append(self._reader.submit(next, self._shares))
            self._current = self._ahead.popleft().result()
            self._step = step
        return self._current

    def _read(self, position: Position) -> Iterator[_Share]:
        taken: list[Example] = []
        for end, example in self._examples(position):
            taken.append(example)
            if len(taken) == len(self.mine):
                yield self._decoded(taken, end)
                taken = []

    def _examples(self, position: Position) -> Iterator[tuple[Position, Example]]:
        """Each row from `position` on without end, with the position after it."""
        epoch, skipped = position
        while True:
            seen = 0
            rows = self.stream.epoch(self.seed, epoch, self.buffer_size, self.rank, self.world)
            for example in rows:
                seen += 1
                if seen > skipped:
                    yield Position(epoch, seen), example
            if not seen:
                raise DataError(
                    f"train_split: {self.stream.split!r} has no rows for process {self.rank} of"
                    f" {self.world}; use fewer processes."
                )
            epoch, skipped = epoch + 1, 0

    def _decoded(self, examples: list[Example], end: Position) -> _Share:
        images, _ = self.decoder([example.image for example in examples])
        labels = torch.tensor([example.label for example in examples])
        if self.device.type == "cuda":
            images, labels = images.pin_memory(), labels.pin_memory()
        return _Share(images, labels, end)
