"""Minutes of training, by the hardware that they were spent on."""

import platform
import time
from collections.abc import Mapping
from pathlib import Path

import torch
from accelerate import Accelerator


class Clock:
    """Counts a run's minutes, by hardware. A resumed run continues the count of its checkpoint.

    Attributes:
        minutes: hardware -> minutes, as they were when `read` was called last.
    """

    def __init__(self, accelerator: Accelerator):
        self.hardware = hardware(accelerator)
        self.minutes: dict[str, float] = {}
        self._started = time.monotonic()

    def go_on(self, minutes: Mapping[str, float]) -> None:
        """Restarts the clock, with the minutes of earlier."""
        self.minutes, self._started = dict(minutes), time.monotonic()

    def read(self) -> dict[str, float]:
        """The minutes until now."""
        now = time.monotonic()
        spent = self.minutes.get(self.hardware, 0.0) + (now - self._started) / 60
        self.go_on({**self.minutes, self.hardware: spent})
        return self.minutes


def hardware(accelerator: Accelerator) -> str:
    """The devices of all processes, in words."""
    count = accelerator.num_processes
    if accelerator.device.type == "cuda":
        return f"{count} x {torch.cuda.get_device_name()}"
    threads = count * torch.get_num_threads()
    return f"{threads} thread{'s' if threads > 1 else ''} of {_processor()}"


def _processor() -> str:
    """The name of the CPU, if the system gives it, and its vector instructions."""
    facts = Path("/proc/cpuinfo")
    lines = facts.read_text().splitlines() if facts.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    name = names[0] if names else platform.processor() or platform.machine()
    return f"{name} ({torch.backends.cpu.get_cpu_capability()})"
