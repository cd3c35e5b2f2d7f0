"""Stopping cleanly: on SIGTERM, on Ctrl-C, or when the time is up."""

import signal
import time

import torch
from accelerate import Accelerator

# What a run that stopped early exits with: sysexits.h's EX_TEMPFAIL, "try again later".
STOPPED = 75


class StopRequest:
    """Remembers that somebody asked to stop. The loop looks at it between two steps.

    Further signals change nothing: a launcher sends its own after the user's Ctrl-C, and none of
    them may cut the saving short.
    """

    def __init__(self, max_minutes: float | None):
        """max_minutes: wall-clock minutes from now after which a stop is due; None: no limit."""
        self.reason: str | None = None
        self._deadline = None if max_minutes is None else time.monotonic() + 60 * max_minutes
        self._previous = {}

    def __enter__(self) -> "StopRequest":
        for number in (signal.SIGTERM, signal.SIGINT):
            self._previous[number] = signal.signal(number, self._on_signal)
        return self

    def __exit__(self, *exception) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _on_signal(self, number: int, frame) -> None:
        self.reason = self.reason or signal.Signals(number).name

    def due(self) -> bool:
        """Whether this process wants to stop."""
        if self._deadline is not None and time.monotonic() >= self._deadline:
            self.reason = self.reason or "max_train_minutes"
        return self.reason is not None


def any_process(accelerator: Accelerator, flag: bool) -> bool:
    """Whether the flag is set on any process: the same answer on all of them."""
    if accelerator.num_processes == 1:
        return flag
    total = torch.tensor(float(flag), device=accelerator.device)
    return accelerator.reduce(total, reduction="sum").item() > 0
