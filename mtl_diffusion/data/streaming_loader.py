"""Batches of a stream, decoded in background threads during training."""

from collections import Counter, deque
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from typing import NamedTuple

import torch

from ..tools.tensors import to_device
from .columns import DataError
from .decode import Decoder
from .images import FRAME
from .loader import IMAGES, Batch, flipped
from .stream import Example, ImageStream

ORDER = "datasets"  # who shuffles a stream; a checkpoint holds it, and continues no other order
_AHEAD = 4  # batches that are decoded ahead of the current step, to bridge slow reads


class Position(NamedTuple):
    """How far a process has read: the number of its rows of `epoch` that are done."""

    epoch: int
    rows: int


@dataclass(eq=False)
class StreamingLoader:
    """Batches of a stream that is repeated without end, each epoch in its own random order.

    Steps must be requested in order; rows of the current step can be requested repeatedly. Each
    process reads its own rows, so a batch is a function of (seed, step, number of processes). To
    resume a run, call `go_to(step, position)`.

    Args:
        total_batch_size: samples in a global batch, over all processes.
        mine: the rows of a global batch that this process, `rank` of `world`, sees.
        buffer_size: rows that are shuffled among.
        seed: keys the order and the flips.
        random_flip: mirror each sample left-right with probability one half.
        device: where batches are delivered.

    Attributes:
        seen: label -> how many rows of it this process has taken; -1 for rows without a class.
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
        self.seen: Counter[int] = Counter()
        self._reader = ThreadPoolExecutor(1)  # one thread: it advances a generator
        self.go_to(0, Position(0, 0))

    def go_to(self, step: int, position: Position) -> None:
        """Makes `step` the next step, with rows from `position` on.

        Earlier rows of that epoch are read again and skipped without decoding.
        """
        self.position, self._step = position, step - 1  # `position` is that of the next step
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
        examples = self._examples(position)
        while taken := list(islice(examples, len(self.mine))):
            decoded = self.decoder([example.image for example, _ in taken])
            labels = torch.tensor([example.label for example, _ in taken])
            frames = {} if decoded.frames is None else {FRAME: decoded.frames}
            yield {IMAGES: decoded.pixels, **frames}, labels, taken[-1][1]

    def _examples(self, position: Position) -> Iterator[tuple[Example, Position]]:
        """Each row from `position` on without end, with the position after it."""
        epoch, skipped = position
        how = (self.buffer_size, self.rank, self.world)
        while True:
            done = 0
            for done, example in enumerate(self.stream.epoch(self.seed, epoch, *how), 1):
                if done > skipped:
                    yield example, Position(epoch, done)
            if not done:
                raise DataError(
                    f"train_split: {self.stream.split!r} has no rows for process {self.rank} of"
                    f" {self.world}; use fewer processes."
                )
            epoch, skipped = epoch + 1, 0
