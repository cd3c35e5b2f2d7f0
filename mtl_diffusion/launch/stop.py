"""Stopping cleanly: on SIGTERM, Ctrl-C or SIGHUP, when the launcher dies, or when time is up.

Nothing here imports torch, so that `scripts/train.py` can import it before everything else.
"""

import os
import signal
import time

# Exit codes. 0 is a finished run, and 1 a run that failed.
REFUSED = 2  # nothing was trained: the configuration, the data or the checkpoint is at fault
STOPPED = 75  # a checkpoint was saved: sysexits.h's EX_TEMPFAIL, "try again later"

# Windows has no SIGHUP.
SIGNALS = [
    getattr(signal, name) for name in ("SIGTERM", "SIGINT", "SIGHUP") if hasattr(signal, name)
]

# SIGTERM to `accelerate launch` with one process kills the launcher and leaves the trainer running.
# So the launcher's process id is noted at import, and `StopRequest` checks that it is still alive.
# Another parent may end: `nohup python scripts/train.py &` outlives its shell.
_LAUNCHED = "ACCELERATE_MIXED_PRECISION" in os.environ or "TORCHELASTIC_RUN_ID" in os.environ
LAUNCHER = os.getppid() if _LAUNCHED else None


class StopRequest:
    """Turns signals into a flag, which the training loop checks between two steps.

    Further signals are ignored: a launcher sends its own after the user's Ctrl-C, and none of them
    may interrupt the last checkpoint.
    """

    def __init__(self, max_minutes: float | None):
        """max_minutes: wall-clock minutes from now after which a stop is due; None: no limit."""
        self.reason: str | None = None
        self._deadline = None if max_minutes is None else time.monotonic() + 60 * max_minutes
        self._previous = {}

    def __enter__(self) -> "StopRequest":
        for number in SIGNALS:
            # A process that `nohup` or `&` started ignores some signals, and keeps doing so.
            if signal.getsignal(number) is not signal.SIG_IGN:
                self._previous[number] = signal.signal(number, self._on_signal)
        return self

    def __exit__(self, *exception) -> None:
        for number, handler in self._previous.items():
            # After a stop the process is about to end, and its exit code must not be a signal's.
            signal.signal(number, handler if self.reason is None else signal.SIG_IGN)

    def _on_signal(self, number: int, frame) -> None:
        self.reason = self.reason or signal.Signals(number).name

    def due(self) -> bool:
        """Whether this process should stop now."""
        if self._deadline is not None and time.monotonic() >= self._deadline:
            self.reason = self.reason or "max_train_minutes"
        if LAUNCHER is not None and os.getppid() != LAUNCHER:
            self.reason = self.reason or "the end of its launcher"
        return self.reason is not None
