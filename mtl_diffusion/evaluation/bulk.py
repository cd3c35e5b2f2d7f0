"""Work on many images, cut into chunks over all processes; a finished chunk is never done again.

Chunk k holds the rows k batch_size .. (k + 1) batch_size - 1 whoever does it, so the outcome is
the same, to the bit, for any number of processes and of interruptions.
"""

import hashlib
import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from safetensors import safe_open
from safetensors.torch import save
from torch import Tensor, nn
from tqdm.auto import tqdm

from ..tools.files import replaced_file


@dataclass(frozen=True)
class Job:
    """Work for each of many rows. It is done again if an argument or the model changes.

    Attributes:
        name: unique among the jobs of an evaluation.
        draw: (some of the numbers of the rows, **same, **each) -> a tensor (b, ...), such as images
            (b, C, H, W). A row of it depends on its number and its arguments alone.
        same: arguments of all rows.
        each: arguments that differ from row to row: tensors and lists of one length. `draw` gets
            the part of them that belongs to its rows.
    """

    name: str
    draw: Callable[..., Tensor]
    same: Mapping[str, Any]
    each: Mapping[str, Tensor | list]

    def __len__(self) -> int:
        return len(next(iter(self.each.values())))

    def of(self, rows: range) -> dict[str, Any]:
        """The arguments that differ, for some of the rows."""
        return {name: values[rows.start : rows.stop] for name, values in self.each.items()}


@dataclass(frozen=True)
class Drawn:
    """The outcome of a job.

    Attributes:
        values: (N, ...) on the CPU, such as images (N, C, H, W).
        evaluations: of the network for one row; each branch of guidance is one.
        seconds: that one row took.
    """

    values: Tensor
    evaluations: float
    seconds: float = 0.0


def digest(value: Any) -> str:
    """16 hex digits of the sha256 of JSON values and tensors, nested in lists and dicts."""

    def text(value: Any) -> str:
        if not isinstance(value, Tensor):
            return str(value)
        plain = value.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy()
        return f"{value.dtype} {tuple(value.shape)} {hashlib.sha256(plain).hexdigest()}"

    whole = json.dumps(value, sort_keys=True, default=text)
    return hashlib.sha256(whole.encode()).hexdigest()[:16]


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
    """Runs jobs over all processes; each chunk is a file in a folder that every process sees.

    The evaluations of unet are counted. A chunk has batch_size rows. The outcome of any job depends
    on model, too, such as weights and code: JSON values and tensors.
    """

    def __init__(self, folder: Path, unet: nn.Module, batch_size: int, model: Any):
        self.folder = folder
        self.unet = unet
        self.batch_size = batch_size
        self.model = digest([model, batch_size])
        self.state = PartialState()

    def draw(self, jobs: Sequence[Job]) -> None:
        """Computes the missing chunks. Returns when all processes have finished."""
        chunks = [(job, path, rows) for job in jobs for path, rows in self._chunks(job)]
        mine = chunks[self.state.process_index :: self.state.num_processes]
        todo = [chunk for chunk in mine if not chunk[1].exists()]
        quiet = not self.state.is_main_process or not todo
        with tqdm(total=sum(len(rows) for _, _, rows in todo), unit="img", disable=quiet) as bar:
            for job, path, rows in todo:
                bar.set_description(job.name)
                self._write(path, job, rows)
                bar.update(len(rows))
        self.state.wait_for_everyone()

    def read(self, job: Job) -> Drawn:
        """The outcome of a job that `draw` has finished."""
        values, evaluations, seconds = [], 0, 0.0
        for path, _ in self._chunks(job):
            with safe_open(path, "pt") as file:
                values.append(file.get_tensor("values"))
                evaluations += int(file.metadata()["evaluations"])
                seconds += float(file.metadata()["seconds"])
        return Drawn(torch.cat(values), evaluations / len(job), seconds / len(job))

    def _chunks(self, job: Job) -> Iterator[tuple[Path, range]]:
        folder = self.folder / f"{job.name}-{digest([self.model, job.same])}"
        for first in range(0, len(job), self.batch_size):
            rows = range(first, min(first + self.batch_size, len(job)))
            each = digest(job.of(rows))
            yield folder / f"{rows.start:06d}-{rows.stop:06d}-{each}.safetensors", rows

    @torch.no_grad()
    def _write(self, path: Path, job: Job, rows: range) -> None:
        """Computes a chunk; its file is written atomically."""
        path.parent.mkdir(parents=True, exist_ok=True)
        begun = time.perf_counter()
        with evaluations_of(self.unet) as seen:
            values = job.draw(rows, **job.same, **job.of(rows)).cpu()
        facts = {"evaluations": str(seen[0]), "seconds": str(time.perf_counter() - begun)}
        with replaced_file(path) as part:
            part.write_bytes(save({"values": values.contiguous()}, facts))
