"""Stopping cleanly: on a signal, when the launcher dies, or when time is up.

Nothing here imports torch, so that `scripts/train.py` can import it before everything else.
"""

import logging
import os
import signal
import threading
import time

logger = logging.getLogger(__name__)

# Exit codes. 0 is a finished run, and 1 a run that failed.
REFUSED = 2  # nothing was trained: the configuration, the data or the checkpoint is at fault
STOPPED = 75  # a checkpoint was saved: sysexits.h's EX_TEMPFAIL, "try again later"

# Batch systems warn with the last three. Windows has the first two alone.
_NAMES = ("SIGTERM", "SIGINT", "SIGHUP", "SIGUSR1", "SIGUSR2", "SIGXCPU")
SIGNALS = [getattr(signal, name) for name in _NAMES if hasattr(signal, name)]

# SIGTERM to `accelerate launch` with one process kills the launcher and leaves the trainer running.
# So the launcher's process id is noted at import, and `StopRequest` checks that it is still alive.
# Another parent may end: `nohup python scripts/train.py &` outlives its shell.
_LAUNCHED = "ACCELERATE_MIXED_PRECISION" in os.environ or "TORCHELASTIC_RUN_ID" in os.environ
LAUNCHER = os.getppid() if _LAUNCHED else None


class StopRequest:
    """Turns signals into a flag, which the training loop checks between two steps.

    Further signals are ignored: a launcher sends its own after the user's Ctrl-C, and none of them
    may interrupt the last checkpoint.

    Args:
        max_minutes: wall-clock minutes from now after which a stop is due; None: no limit.
        ends_process: the process ends after a stop: signals, which would change its exit code, stay
            ignored. If False, the handlers of before are installed again.
    """

    def __init__(self, max_minutes: float | None, *, ends_process: bool = False):
        self.reason: str | None = None
        self._ends_process = ends_process
        self._deadline = None if max_minutes is None else time.monotonic() + 60 * max_minutes
        self._previous = {}

    def __enter__(self) -> "StopRequest":
        if threading.current_thread() is not threading.main_thread():
            logger.warning("training in a thread: no signal stops it, but max_train_minutes does")
            return self
        for number in SIGNALS:
            # What `nohup` or `&` has started ignores some signals, and keeps doing so. None stands
            # for a handler of C, which could not be restored.
            if signal.getsignal(number) not in (signal.SIG_IGN, None):
                self._previous[number] = signal.signal(number, self._on_signal)
        return self

    def __exit__(self, *exception) -> None:
        ignore = self._ends_process and self.reason is not None
        for number, handler in self._previous.items():
            signal.signal(number, signal.SIG_IGN if ignore else handler)

    def _on_signal(self, number: int, frame) -> None:
        self.reason = self.reason or signal.Signals(number).name

    def due(self) -> bool:
        """Whether this process should stop now."""
        if self._deadline is not None and time.monotonic() >= self._deadline:
            self.reason = self.reason or "max_train_minutes"
        if LAUNCHER is not None and os.getppid() != LAUNCHER:
            self.reason = self.reason or "the end of its launcher"
        return self.reason is not None
