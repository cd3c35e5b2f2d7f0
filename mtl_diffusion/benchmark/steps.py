"""The rate of our training step, and the time that each of its parts takes."""

import time
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from itertools import count
from tempfile import TemporaryDirectory
from unittest.mock import patch

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from .. import loop
from ..config import TrainConfig
from ..launch.preflight import begin
from ..training.ema import EMA
from ..training.meter import Meter
from ..training.mixture import Mixture
from ..training.run import Run, build
from .timing import machine, measured, seconds, synchronise

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

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        """What is done inside is this part; also a decorator of a function."""
        self._mark()
        self._open.append(name)
        yield
        self._mark()
        self._open.pop()

    def _mark(self) -> None:
        synchronise(self._device)
        now = time.perf_counter()
        self.seconds[self._open[-1]] += now - self._since
        self._since = now


def step_parts(run: Run, step: int, meter: Meter) -> Counter[str]:
    """Takes one step; seconds of each of `PARTS`. "other" has the clipping of gradients in it."""
    clock = Stopwatch(run.accelerator.device)
    methods = [
        (type(run.loader), "batch", "data"),
        (Mixture, "draw", "corruption"),
        (Mixture, "condition", "corruption"),
        (type(run.objective), "__call__", "forward"),
        (type(run.accelerator), "backward", "backward"),
        (type(run.optimizer), "step", "optimiser"),
        (EMA, "update", "EMA"),
        (Meter, "add", "logging"),
        (Meter, "read", "logging"),
    ]
    with ExitStack() as stack:
        for owner, name, part in methods:
            timed = clock.part(part)(getattr(owner, name))
            stack.enter_context(patch.object(owner, name, timed))
        draw_sigma = clock.part("corruption")(run.draw_sigma)
        loop.train_step(replace(run, draw_sigma=draw_sigma), step, meter)
        meter.read()
    return clock.seconds


def time_steps(config: TrainConfig, steps: int, rounds: int, warm: int) -> dict:
    """Alternates windows of `steps` plain steps with one step whose parts are timed.

    Args:
        config: of the run that is built here; nothing of it is saved or logged.
        warm: steps before that, to compile and to fill caches.
    """
    length = {"max_train_steps": warm + rounds * (steps + 1) + 1, "max_train_minutes": None}
    config = replace(config, **length, report_to="none", push_to_hub=False)
    number = count()
    with TemporaryDirectory() as folder, begin(replace(config, output_dir=folder)) as accelerator:
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
        # The counter sees neither into compiled code nor into fused attention.
        eager, plain = torch.compiler.set_stance("force_eager"), sdpa_kernel(SDPBackend.MATH)
        with eager, plain, FlopCounterMode(display=False) as counter:
            window(1)
        accelerator.end_training()
    batch = config.total_batch_size
    return {
        "images_per_second": measured(batch / took for took in times),
        "milliseconds_a_step": measured(1e3 * took for took in times),
        "teraflop_a_step": f"{counter.get_total_flops() / 1e12:.4g}",
        **{f"milliseconds, {part}": measured(1e3 * a[part] for a in parts) for part in PARTS},
        **machine(device),
    }
