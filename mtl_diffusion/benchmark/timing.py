"""Timing: repeated measurements with their range."""

import statistics
import time
from collections.abc import Callable, Iterable

import torch


def measured(values: Iterable[float]) -> str:
    """Repeated measurements of one quantity: their median, lowest, highest and number."""
    values = list(values)
    low, high, n = min(values), max(values), len(values)
    return f"{statistics.median(values):.4g} ({low:.4g} to {high:.4g}, n = {n})"


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


def machine(device: torch.device) -> dict[str, str | int]:
    """What a figure depends on, besides the code; on a GPU also the peak of allocated memory."""
    found = {"torch": torch.__version__, "threads": torch.get_num_threads()}
    if device.type != "cuda":
        return {"device": "cpu", **found}
    peak = torch.cuda.max_memory_allocated(device) / 1e6
    return {"device": torch.cuda.get_device_name(device), **found, "megabytes": round(peak)}
