"""Timing: repeated measurements with their range; the rate of sampling."""

import statistics
import time
from collections.abc import Callable, Iterable
from functools import partial

import torch

from ..pipeline.pipeline import MultiTaskPipeline


def time_sampling(name: str, batch_size: int, rounds: int, steps: int | None) -> dict:
    """The rate of the generate task of a pipeline, a folder or a name, without guidance."""
    pipe = MultiTaskPipeline.from_pretrained(name)
    pipe.set_progress_bar_config(disable=True)
    pipe.to("cuda" if torch.cuda.is_available() else "cpu")
    options = {"guidance_scale": 1.0, "num_inference_steps": steps, "output_type": "pt"}
    draw = partial(pipe, num_images_per_prompt=batch_size, **options)
    draw()  # to fill caches
    times = [seconds(draw, pipe.device) for _ in range(rounds)]
    rate = measured(batch_size / took for took in times)
    facts = {"batch_size": batch_size, "steps": pipe.num_timesteps, **machine(pipe.device)}
    return {"images_per_second": rate, **facts}


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
