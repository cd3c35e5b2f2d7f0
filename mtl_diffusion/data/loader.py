"""Batches of a dataset, in an order keyed by the seed."""

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch

from ..tools.rng import generator
from ..tools.tensors import mirrored, to_device
from .images import MASK, ImageDataset

IMAGES = "images"  # the name of the images among their layers


@dataclass(frozen=True)
class Batch:
    """Images (B, C, H, W) float32 in [-1, 1] and labels (B,) int64 for a training step.

    Attributes:
        layers: further pixels of the images, as they are stored; see `ImageDataset`.
    """

    images: torch.Tensor
    labels: torch.Tensor
    layers: Mapping[str, torch.Tensor] = field(default_factory=dict)


def process_rows(total: int, rank: int, world: int) -> range:
    """The rows of a global batch that a process sees; shares differ by one at most."""
    return range(total * rank // world, total * (rank + 1) // world)


def microbatches(rows: range, limit: int | None) -> list[slice]:
    """Cuts a process's rows into slices of `limit` rows or fewer."""
    size = limit or len(rows)
    return [slice(i, min(i + size, rows.stop)) for i in range(rows.start, rows.stop, size)]


class Loader:
    """Batches that are a pure function of (seed, step), for any number of processes.

    The dataset is repeated without end, each epoch in its own random order, and global sample
    k = step * total_batch_size + i is row perm(seed, k // N)[k % N]. So a batch may span two
    epochs, no row is dropped, and resuming at a step needs no state.

    With `balance_classes` an epoch is ceil(N / C) rounds over the C classes that have rows; rows
    without a class are one of them. Each round has one row of each class, in random order. A class
    with more rows than there are rounds shows others of them in each epoch, and one with fewer
    repeats them, none a second time before all are shown.

    All images are kept on `device` if they fit: on CUDA, in less than half of the memory that is
    free now. Otherwise they stay on the CPU, and each batch is copied when it is needed.

    Args:
        dataset: on the CPU; N rows.
        total_batch_size: samples in a global batch, over all processes; 1..N.
        seed: keys the order and the flips.
        random_flip: mirror each sample left-right with probability one half.
        device: where batches are delivered.
        balance_classes: draw each class equally often.

    Raises:
        ValueError: `total_batch_size` is below 1 or above N, or there are no classes to balance.
    """

    def __init__(
        self,
        dataset: ImageDataset,
        total_batch_size: int,
        seed: int,
        random_flip: bool,
        device: str | torch.device = "cpu",
        balance_classes: bool = False,
    ):
        if not 1 <= total_batch_size <= len(dataset):
            raise ValueError(
                f"total_batch_size: {total_batch_size} is not between 1 and the {len(dataset)} rows"
                " of the dataset; give a smaller batch or a larger split."
            )
        self.device = torch.device(device)
        # On CUDA they must take less than half of the memory that is free now.
        self.resident = (
            self.device.type != "cuda"
            or dataset.images.nbytes < torch.cuda.mem_get_info(self.device)[0] / 2
        )
        self.dataset = dataset.to(self.device) if self.resident else dataset
        self.length = len(dataset)  # of an epoch
        self._classes: list[torch.Tensor] = []  # the rows of each class that is balanced
        if balance_classes:
            if not dataset.class_names:
                raise ValueError(
                    "balance_classes: found true; the data has no classes: name their column as"
                    " label_column, or set it to false"
                )
            labels = dataset.labels.clamp(min=-1)
            present = labels.unique()
            self._classes = [(labels == label).nonzero()[:, 0] for label in present]
            self.length = -(-self.length // len(present)) * len(present)
        self.total_batch_size = total_batch_size
        self.seed = seed
        self.random_flip = random_flip
        self._orders: dict[int, torch.Tensor] = {}

    def batch(self, step: int, rows: slice = slice(None)) -> Batch:
        """Samples `rows` of the global batch of `step`; steps may come in any order."""
        picked = range(self.total_batch_size)[rows]
        index = self._rows(step)[picked.start : picked.stop : picked.step]
        index = to_device(index, self.dataset.images.device)
        dataset = self.dataset
        labels, pixels = dataset.labels[index], {IMAGES: dataset.images, **dataset.layers}
        masks = self._rows_of_masks(step, index, picked) if MASK in pixels else index
        pixels = {n: part[masks if n == MASK else index] for n, part in pixels.items()}
        if not self.resident:
            labels = to_device(labels, self.device)
            pixels = {name: to_device(part, self.device) for name, part in pixels.items()}
        if self.random_flip:
            pixels = flipped(pixels, self.seed, step, self.total_batch_size, picked)
        return Batch(dataset.format.from_stored(pixels.pop(IMAGES)), labels, pixels)

    def _rows_of_masks(self, step: int, index: torch.Tensor, picked: range) -> torch.Tensor:
        """The rows whose masks the samples get: their own, or as often another one's."""
        draws = torch.rand(2, self.total_batch_size, generator=generator(self.seed, step, "masks"))
        own, other = draws[:, picked.start : picked.stop : picked.step].to(index.device)
        return torch.where(own < 0.5, index, (other * len(self.dataset)).long())

    def _rows(self, step: int) -> torch.Tensor:
        """Row numbers (total_batch_size,) of the global batch of `step`."""
        start = step * self.total_batch_size
        k = torch.arange(start, start + self.total_batch_size)
        epochs, places = k // self.length, k % self.length
        # A batch is no larger than an epoch. Not read from the tensor, which a GPU's host avoids.
        first, last = (i // self.length for i in (start, start + self.total_batch_size - 1))
        self._orders = {epoch: self._order(epoch) for epoch in {first, last}}
        return torch.where(epochs == first, self._orders[first][places], self._orders[last][places])

    def _order(self, epoch: int) -> torch.Tensor:
        if epoch in self._orders:
            return self._orders[epoch]
        random = generator(self.seed, epoch, "order")
        if not self._classes:
            return torch.randperm(self.length, generator=random)
        rounds = self.length // len(self._classes)
        table = []
        for rows in self._classes:
            passes = torch.rand(-(-rounds // len(rows)), len(rows), generator=random).argsort(1)
            table.append(rows[passes.flatten()[:rounds]])
        places = torch.rand(rounds, len(table), generator=random).argsort(1)
        return torch.stack(table, 1).gather(1, places).flatten()


def flipped(
    pixels: Mapping[str, torch.Tensor], seed: int, step: int, total_batch_size: int, picked: range
) -> dict[str, torch.Tensor]:
    """Mirrors half of the samples `picked` of a global batch left-right, at random by its key.

    Args:
        pixels: the images, and layers of them, which are mirrored alike.
    """
    # Drawn for the whole global batch and sliced, so that it may be cut anywhere.
    draws = torch.rand(total_batch_size, generator=generator(seed, step, "flip"))
    device = next(iter(pixels.values())).device
    flip = to_device((draws < 0.5)[picked.start : picked.stop : picked.step], device)
    flip = flip[:, None, None, None]
    return {name: torch.where(flip, mirrored(part), part) for name, part in pixels.items()}
