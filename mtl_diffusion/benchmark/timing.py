"""Timing: repeated measurements with their range, and the rate of a large matrix product."""

import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TypeVar

import torch
from tqdm.auto import tqdm

T = TypeVar("T")


@dataclass(frozen=True)
class Measured:
    """Repeated measurements of one quantity: their median, lowest, highest and number."""

    median: float
    low: float
    high: float
    n: int

    @classmethod
    def of(cls, values: list[float]) -> "Measured":
        return cls(statistics.median(values), min(values), max(values), len(values))

    def times(self, factor: float) -> "Measured":
        """The same measurements in another unit; factor: above 0."""
        return Measured(self.median * factor, self.low * factor, self.high * factor, self.n)

    def __str__(self) -> str:
        return f"{self.median:.4g} ({self.low:.4g} to {self.high:.4g}, n = {self.n})"


def interleaved(
    contestants: Mapping[str, Callable[[], T]], rounds: int, what: str
) -> dict[str, list[T]]:
    """Measures each contestant once a round, so that other load on the machine affects all alike.

    Args:
        contestants: name -> measurement. It has to warm up by itself.
        rounds: measurements of each.
        what: label of the progress bar.
    """
    found: dict[str, list[T]] = {name: [] for name in contestants}
    with tqdm(total=rounds * len(contestants), desc=what) as progress:
        for _ in range(rounds):
            for name, measure in contestants.items():
                progress.set_postfix_str(name)
                found[name].append(measure())
                progress.update()
    return found


def synchronise(device: torch.device) -> None:
    """Waits until the device has finished all queued work."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def seconds(work: Callable[[], object], device: torch.device) -> float:
    """Wall-clock time of the work, including the work that it queues on the device."""
    synchronise(device)
    started = time.perf_counter()
    work()
    synchronise(device)
    return time.perf_counter() - started


def matmul_rate(device: torch.device, precision: torch.dtype, repeats: int = 10) -> Measured:
    """FLOP/s of a large square matrix product: the reference for utilisation."""
    size, batch = (8192, 20) if device.type == "cuda" else (1024, 5)
    a = torch.randn(size, size, device=device, dtype=precision)
    out = torch.empty_like(a)
    torch.mm(a, a, out=out)

    def work():
        for _ in range(batch):
            torch.mm(a, a, out=out)

    return Measured.of([batch * 2 * size**3 / seconds(work, device) for _ in range(repeats)])
