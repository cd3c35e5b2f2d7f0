"""Our training step taken apart: where its time goes, and how near it comes to the hardware."""

import time
from collections import defaultdict
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, replace
from unittest.mock import patch

import torch

from .. import loop
from ..data.loader import Loader
from ..training.ema import EMA
from ..training.meter import Meter
from ..training.mixture import Mixture
from ..training.run import Run
from .measure import Spread, seconds, synchronise

# Each part of a step, and the calls of the step that it consists of.
PARTS = {
    "data": [(Loader, "batch")],
    "corruption": [(Mixture, "draw"), (Mixture, "condition"), (loop, "draw_sigma")],
    "optimiser": [(torch.nn.utils, "clip_grad_norm_")],  # and the optimiser's own step
    "EMA": [(EMA, "update")],
    "logging": [(Meter, "add"), (Meter, "end_step"), (Meter, "read")],
}
NETWORK = ("forward", "backward")  # the objective's own, with the loss; and what accelerate calls


@dataclass(frozen=True)
class Breakdown:
    """Where the time of a step goes.

    Attributes:
        whole: seconds a step, nothing in it being watched.
        parts: name -> seconds a step, the device being waited for around each part.
        device_bytes: most memory that PyTorch held on a GPU; None on a CPU.
    """

    whole: Spread
    parts: dict[str, Spread]
    device_bytes: int | None

    @property
    def overhead(self) -> float:
        """The share of all that is neither forward nor backward in a step, 0 to 1."""
        total = sum(part.median for part in self.parts.values())
        return 1 - sum(self.parts[name].median for name in NETWORK) / total


class Stopwatch:
    """Adds up the seconds of calls, by the part that they belong to."""

    def __init__(self, device: torch.device):
        self.device = device
        self.total: dict[str, float] = defaultdict(float)

    def around(self, part: str, function: Callable) -> Callable:
        def watched(*arguments, **options):
            synchronise(self.device)
            started = time.perf_counter()
            result = function(*arguments, **options)
            synchronise(self.device)
            self.total[part] += time.perf_counter() - started
            return result

        return watched


def break_down(run: Run, steps: int, warm: int = 3) -> Breakdown:
    """Takes `steps` steps as they are, and as many that are watched, in turn.

    Args:
        run: it is trained by this.
        warm: steps before that, which compile and fill caches.
    """
    device, meter = run.accelerator.device, Meter(run)
    number = iter(range(10**9))

    def step(part_of: Run) -> None:
        i = next(number)
        loop.train_step(part_of, i, meter)
        if (i + 1) % run.config.logging_steps == 0:
            meter.read()

    parts = PARTS | {"optimiser": [*PARTS["optimiser"], (type(run.optimizer), "step")]}
    for _ in range(warm):
        step(run)
    whole, watched = [], []
    for _ in range(steps):
        whole.append(seconds(lambda: step(run), device))
        watch = Stopwatch(device)
        with ExitStack() as patches:
            for part, calls in parts.items():
                for home, name in calls:
                    watching = watch.around(part, getattr(home, name))
                    patches.enter_context(patch.object(home, name, watching))
            backward = watch.around("backward", run.accelerator.backward)
            patches.enter_context(patch.object(run.accelerator, "backward", backward))
            of_parts = replace(run, objective=watch.around("forward", run.objective))
            took = seconds(lambda run=of_parts: step(run), device)
        watch.total["other"] = took - sum(watch.total.values())
        watched.append(watch.total)
    names = [*NETWORK, *PARTS, "other"]
    return Breakdown(
        whole=Spread.of(whole),
        parts={name: Spread.of([total[name] for total in watched]) for name in names},
        device_bytes=torch.cuda.max_memory_allocated(device) if device.type == "cuda" else None,
    )
