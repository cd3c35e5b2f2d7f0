"""The parts of our training step, and the time that each takes."""

import time
from collections import defaultdict
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from unittest.mock import patch

import torch

from .. import loop
from ..data.loader import Loader
from ..training.ema import EMA
from ..training.meter import Meter
from ..training.mixture import Mixture
from ..training.run import Run
from .timing import Measured, seconds, synchronise

# Each part of a step, and the calls that it consists of.
STEP_PARTS = {
    "data": [(Loader, "batch")],
    "corruption": [(Mixture, "draw"), (Mixture, "condition")],
    "optimiser": [(torch.nn.utils, "clip_grad_norm_")],  # and the optimiser's own step
    "EMA": [(EMA, "update")],
    "logging": [(Meter, "add"), (Meter, "end_step"), (Meter, "read")],
}
NETWORK = ("forward", "backward")  # the objective with its loss; accelerator.backward


@dataclass(frozen=True)
class Breakdown:
    """The time of a step, and of its parts.

    Attributes:
        whole: seconds a step, without timing its parts.
        parts: name -> seconds a step, with a synchronisation around each part.
        device_bytes: peak memory that PyTorch allocated on a GPU; None on a CPU.
    """

    whole: Measured
    parts: dict[str, Measured]
    device_bytes: int | None

    @property
    def overhead(self) -> float:
        """The share of a step that is neither forward nor backward pass, 0 to 1."""
        total = sum(part.median for part in self.parts.values())
        return 1 - sum(self.parts[name].median for name in NETWORK) / total


def watched(function: Callable, part: str, total: dict[str, float], device: torch.device):
    """The function, with its seconds added to those of the part in `total`."""

    def call(*arguments, **options):
        synchronise(device)
        started = time.perf_counter()
        result = function(*arguments, **options)
        synchronise(device)
        total[part] += time.perf_counter() - started
        return result

    return call


def break_down(run: Run, steps: int, warm: int = 3) -> Breakdown:
    """Alternates `steps` plain steps with as many whose parts are timed.

    Args:
        run: its weights change.
        warm: steps before that, to compile and to fill caches.
    """
    device, meter = run.accelerator.device, Meter(run)
    number = iter(range(10**9))

    def step(part_of: Run) -> None:
        i = next(number)
        loop.train_step(part_of, i, meter)
        if (i + 1) % run.config.logging_steps == 0:
            meter.read()

    parts = STEP_PARTS | {"optimiser": [*STEP_PARTS["optimiser"], (type(run.optimizer), "step")]}
    for _ in range(warm):
        step(run)
    whole, timed = [], []
    for _ in range(steps):
        whole.append(seconds(lambda: step(run), device))
        total: dict[str, float] = defaultdict(float)
        watch = partial(watched, total=total, device=device)
        with ExitStack() as patches:
            for part, calls in parts.items():
                for home, name in calls:
                    watching = watch(getattr(home, name), part)
                    patches.enter_context(patch.object(home, name, watching))
            forward = watch(run.gradients.objective, "forward")
            patches.enter_context(patch.object(run.gradients, "objective", forward))
            backward = watch(run.accelerator.backward, "backward")
            patches.enter_context(patch.object(run.accelerator, "backward", backward))
            of_parts = replace(run, draw_sigma=watch(run.draw_sigma, "corruption"))
            took = seconds(lambda run=of_parts: step(run), device)
        total["other"] = took - sum(total.values())
        timed.append(total)
    names = [*NETWORK, *STEP_PARTS, "other"]
    return Breakdown(
        whole=Measured.of(whole),
        parts={name: Measured.of([total[name] for total in timed]) for name in names},
        device_bytes=torch.cuda.max_memory_allocated(device) if device.type == "cuda" else None,
    )
