"""Timing, memory and arithmetic: numbers with their spread, and what the machine could do."""

import statistics
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import TypeVar

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode
from tqdm.auto import tqdm

T = TypeVar("T")


@dataclass(frozen=True)
class Spread:
    """Several measurements of one thing."""

    median: float
    low: float
    high: float
    n: int

    @classmethod
    def of(cls, values: list[float]) -> "Spread":
        return cls(statistics.median(values), min(values), max(values), len(values))

    def times(self, factor: float) -> "Spread":
        """The same measurements in another unit, which `factor` > 0 of the old one make."""
        return Spread(self.median * factor, self.low * factor, self.high * factor, self.n)

    def to_dict(self) -> dict[str, float]:
        return asdict(self)

    def __str__(self) -> str:
        return f"{self.median:.4g} ({self.low:.4g} to {self.high:.4g}, n = {self.n})"


def interleaved(
    contestants: Mapping[str, Callable[[], T]], rounds: int, what: str
) -> dict[str, list[T]]:
    """Measures each once a round, so that what the machine does meanwhile meets all of them.

    Args:
        contestants: name -> measurement, and what it returns. What it does at its first call
            only (compiling, filling caches) is its own affair.
        rounds: measurements of each.
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
    """Waits until the device has done what it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def seconds(work: Callable[[], object], device: torch.device) -> float:
    """Wall-clock time of the work, what it leaves to the device included."""
    synchronise(device)
    started = time.perf_counter()
    work()
    synchronise(device)
    return time.perf_counter() - started


def matmul_rate(device: torch.device, precision: torch.dtype, repeats: int = 10) -> Spread:
    """FLOP/s of a large square matrix product: what the machine can reach."""
    size = 8192 if device.type == "cuda" else 1024
    a = torch.randn(size, size, device=device, dtype=precision)
    out = torch.empty_like(a)
    batch = 20 if device.type == "cuda" else 5
    torch.mm(a, a, out=out)

    def work():
        for _ in range(batch):
            torch.mm(a, a, out=out)

    return Spread.of([batch * 2 * size**3 / seconds(work, device) for _ in range(repeats)])


def flops_of_unet(unet: nn.Module) -> tuple[float, float]:
    """FLOPs of one image, measured: (forward, forward and backward) of a UNet of diffusers.

    A fresh copy on the CPU is counted: the counter doesn't see into compiled code, and neither
    device nor precision changes the count.
    """
    unet = type(unet).from_config(unet.config).train()
    size = unet.config.sample_size
    inputs = {
        "sample": torch.zeros(1, unet.config.in_channels, size, size),
        "timestep": torch.zeros(1),
    }
    if "encoder_hid_dim" in unet.config:  # ours, fed with one-hot tokens
        tokens = torch.zeros(1, 3, unet.config.encoder_hid_dim)
        inputs |= {"encoder_hidden_states": tokens, "class_labels": tokens.flatten(1)}
    with FlopCounterMode(display=False) as counter:
        output = unet(**inputs).sample
        forward = counter.get_total_flops()
        output.sum().backward()
        return float(forward), float(counter.get_total_flops())


class DeviceMemory:
    """The most memory of a GPU in use while it is open, by whomever: read from outside."""

    def __init__(self, device: torch.device):
        self.device = device
        self.peak: int | None = None  # bytes above what was in use before
        self._done = threading.Event()
        self._watcher = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> "DeviceMemory":
        if self.device.type == "cuda":
            self.peak = 0
            self._before = torch.cuda.mem_get_info(self.device)[0]
            self._watcher.start()
        return self

    def _watch(self) -> None:
        while not self._done.wait(0.05):
            used = self._before - torch.cuda.mem_get_info(self.device)[0]
            self.peak = max(self.peak, used)

    def __exit__(self, *exception) -> None:
        self._done.set()
        if self._watcher.is_alive():
            self._watcher.join()
