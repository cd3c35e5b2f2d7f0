"""Work on many images, cut into chunks over all processes; a finished chunk is never done again.

Chunk k holds the rows k batch_size .. (k + 1) batch_size - 1 whoever does it, so the outcome is
the same, to the bit, for any number of processes and of interruptions.
"""

import hashlib
import json
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from tqdm.auto import tqdm

from ..tools.files import replaced_file


@dataclass(frozen=True)
class Job:
    """Work to be done for each of many rows, such as an image to be sampled.

    Attributes:
        name: unique among the jobs of an evaluation.
        key: all that the outcome depends on, as JSON can hold it: another key, another outcome.
        count: rows.
        draw: some rows of range(count) -> a tensor (b, ...), such as images (b, 3, H, W) uint8.
            The result of a row depends on that row alone.
    """

    name: str
    key: Mapping[str, Any]
    count: int
    draw: Callable[[range], Tensor]


@dataclass(frozen=True)
class Drawn:
    """The outcome of a job, and its cost.

    Attributes:
        values: (N, ...) on the CPU, such as images (N, 3, H, W) uint8.
        evaluations: of the network, for one row; each branch of guidance is one.
        images_per_second: rows a second of one process, the median over its chunks.
    """

    values: Tensor
    evaluations: float
    images_per_second: float


def digest(value: Any) -> str:
    """16 hex digits of the sha256 of anything that JSON can hold."""
    text = json.dumps(value, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def weights_digest(module: nn.Module) -> str:
    """16 hex digits of the sha256 of a module's weights, the same on every device."""
    found = hashlib.sha256()
    for name, tensor in sorted(module.state_dict().items()):
        found.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        found.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy())
    return found.hexdigest()[:16]


@contextmanager
def evaluations_of(unet: nn.Module) -> Iterator[list[int]]:
    """Counts the samples that pass through a network: the list holds one number, their sum."""
    seen = [0]

    def count(_, args, kwargs):
        seen[0] += len(args[0] if args else kwargs["sample"])

    hook = unet.register_forward_pre_hook(count, with_kwargs=True)
    try:
        yield seen
    finally:
        hook.remove()


class Bulk:
    """Runs jobs over all processes; each chunk is a file of its own.

    Args:
        folder: where the chunks are kept; every process must see it.
        unet: the network that draws, to count its evaluations.
        batch_size: rows a chunk.
    """

    def __init__(self, folder: Path, unet: nn.Module, batch_size: int):
        self.folder = folder
        self.unet = unet
        self.batch_size = batch_size
        self.state = PartialState()

    def draw(self, jobs: Sequence[Job]) -> None:
        """Computes the missing chunks. Returns when all processes have finished."""
        todo = [
            (job, path, rows)
            for number, (job, path, rows) in enumerate(
                (job, path, rows) for job in jobs for path, rows in self._chunks(job)
            )
            if number % self.state.num_processes == self.state.process_index and not path.exists()
        ]
        progress = tqdm(
            total=sum(len(rows) for _, _, rows in todo),
            unit="img",
            disable=not self.state.is_main_process or not todo,
        )
        for job, path, rows in todo:
            progress.set_description(job.name)
            self._write(path, job, rows)
            progress.update(len(rows))
        progress.close()
        self.state.wait_for_everyone()

    def read(self, job: Job) -> Drawn:
        """The outcome of a job that `draw` has finished."""
        values, evaluations, seconds = [], 0, []
        for path, rows in self._chunks(job):
            with safe_open(path, "pt") as file:
                values.append(file.get_tensor("values"))
                facts = file.metadata()
            evaluations += int(facts["evaluations"])
            seconds.append(float(facts["seconds"]) / len(rows))
        return Drawn(torch.cat(values), evaluations / job.count, 1 / statistics.median(seconds))

    def _chunks(self, job: Job) -> Iterator[tuple[Path, range]]:
        key = digest({**job.key, "batch_size": self.batch_size})
        for first in range(0, job.count, self.batch_size):
            rows = range(first, min(first + self.batch_size, job.count))
            name = f"{rows.start:06d}-{rows.stop:06d}.safetensors"
            yield self.folder / f"{job.name}-{key}" / name, rows

    @torch.no_grad()
    def _write(self, path: Path, job: Job, rows: range) -> None:
        """Computes a chunk; its file is written atomically."""
        path.parent.mkdir(parents=True, exist_ok=True)
        started = time.perf_counter()
        with evaluations_of(self.unet) as seen:
            values = job.draw(rows).cpu()  # waits for the device
        facts = {"evaluations": str(seen[0]), "seconds": str(time.perf_counter() - started)}
        with replaced_file(path) as part:
            save_file({"values": values.contiguous()}, part, facts)
