"""The rate of our training step, and the time that each of its parts takes."""

import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from itertools import count
from pathlib import Path
from types import SimpleNamespace

import torch

from .. import loop
from ..config import TrainConfig
from ..launch.preflight import begin
from ..tools.flops import flops_of_unet
from ..training.meter import Meter
from ..training.run import Run, build
from .timing import Measured, machine, seconds, synchronise

PARTS = ("data", "corruption", "forward", "backward", "optimiser", "EMA", "logging", "other")


class Stopwatch:
    """Seconds of each part. A part inside another one is not counted for that one.

    The device is waited for at the beginning and the end of each part. So on a GPU all parts
    together take longer than a step without a stopwatch.
    """

    def __init__(self, device: torch.device):
        self.seconds: Counter[str] = Counter()
        self._device = device
        self._open = ["other"]
        self._since = time.perf_counter()

    def start(self, part: str) -> None:
        self._mark()
        self._open.append(part)

    def stop(self) -> None:
        self._mark()
        self._open.pop()

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        """What is done inside is this part; also a decorator of a function."""
        self.start(name)
        yield
        self.stop()

    def _mark(self) -> None:
        synchronise(self._device)
        now = time.perf_counter()
        self.seconds[self._open[-1]] += now - self._since
        self._since = now


def step_parts(run: Run, step: int, meter: Meter) -> Counter[str]:
    """Takes one step; seconds of each of `PARTS`. "other" has the clipping of gradients in it."""
    accelerator = run.accelerator
    clock = Stopwatch(accelerator.device)
    data, corruption, backward, average, logging = map(
        clock.part, ("data", "corruption", "backward", "EMA", "logging")
    )
    # What `train_step` calls of each part of a run, and no more.
    watched = replace(
        run,
        loader=SimpleNamespace(batch=data(run.loader.batch)),
        mixture=SimpleNamespace(
            images=run.mixture.images,
            draw=corruption(run.mixture.draw),
            condition=corruption(run.mixture.condition),
        ),
        draw_sigma=corruption(run.draw_sigma),
        accelerator=SimpleNamespace(
            device=accelerator.device,
            process_index=accelerator.process_index,
            num_processes=accelerator.num_processes,
            no_sync=accelerator.no_sync,
            backward=backward(accelerator.backward),
        ),
        ema=run.ema and SimpleNamespace(update=average(run.ema.update)),
    )
    record = SimpleNamespace(add=logging(meter.add))
    hooks = [
        run.objective.register_forward_pre_hook(lambda *_: clock.start("forward")),
        run.objective.register_forward_hook(lambda *_: clock.stop()),
        run.optimizer.register_step_pre_hook(lambda *_: clock.start("optimiser")),
        run.optimizer.register_step_post_hook(lambda *_: clock.stop()),
    ]
    loop.train_step(watched, step, record)
    logging(meter.read)()
    for hook in hooks:
        hook.remove()
    return clock.seconds


def time_steps(config: TrainConfig, folder: Path, steps: int, rounds: int, warm: int) -> dict:
    """Alternates windows of `steps` plain steps with one step whose parts are timed.

    Args:
        config: of the run that is built here; nothing of it is saved or logged.
        folder: an empty one.
        warm: steps before that, to compile and to fill caches.
    """
    length = {"max_train_steps": warm + rounds * (steps + 1), "max_train_minutes": None}
    quiet = {"output_dir": str(folder), "report_to": "none", "push_to_hub": False}
    config = replace(config, **length, **quiet)
    number = count()
    with begin(config) as accelerator:
        run = build(config, accelerator)
        meter, device = Meter(run), accelerator.device

        def window(length: int) -> None:
            for _ in range(length):
                loop.train_step(run, next(number), meter)
            meter.read()

        window(warm)
        times, parts = [], []
        for _ in range(rounds):
            times.append(seconds(lambda: window(steps), device) / steps)
            parts.append(step_parts(run, next(number), meter))
        _, flops = flops_of_unet(run.unet)
        accelerator.end_training()
    batch = config.total_batch_size
    return {
        "images_per_second": Measured.of(batch / took for took in times),
        "milliseconds_a_step": Measured.of(1e3 * took for took in times),
        "teraflop_a_step": round(flops * batch / 1e12, 4),
        **{f"milliseconds, {part}": Measured.of(1e3 * a[part] for a in parts) for part in PARTS},
        **machine(device),
    }
