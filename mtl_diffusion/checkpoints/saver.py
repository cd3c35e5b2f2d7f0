"""Checkpoints are written in a thread; training waits only while the state is copied."""

import logging
import threading

import torch
from accelerate.utils import gather_object

from ..tools.distributed import any_process
from ..training.run import Run
from ..training.schedule import lengthening_steps
from .resume import folder_of, snapshot
from .store import Checkpoint
from .store import save as write

logger = logging.getLogger(__name__)

THREAD = "checkpoint"


class Saver:
    """Saves a run, one checkpoint at a time. Leaving the context waits for the pending write."""

    def __init__(self, run: Run):
        self.run = run
        self._thread: threading.Thread | None = None
        self._failure: Exception | None = None

    def __enter__(self) -> "Saver":
        return self

    def __exit__(self, *exception) -> None:
        self.wait()

    def save(self, step: int, *, needed: bool) -> None:
        """Saves the state after `step` steps. If one is still being written, waits for that.

        Args:
            needed: True for the last checkpoint of a run or before a stop: all processes wait
                until it is on the disk. If False, a full disk or an I/O error is logged, and the
                next checkpoint is the next attempt.

        Raises:
            FloatingPointError: a weight is not finite. Nothing has been written.
            OSError: the checkpoint could not be written, and it is needed.
        """
        run = self.run
        finite = torch.stack([weight.isfinite().all() for weight in run.unet.parameters()])
        if any_process(~finite.all()):
            raise FloatingPointError(f"step {step}: weights are not finite; no checkpoint is saved")
        positions = gather_object([run.loader.position]) if run.config.streaming else None
        if run.accelerator.is_main_process:
            self.wait()
            given = (snapshot(run, step, positions), needed)
            self._thread = threading.Thread(target=self._write, args=given, name=THREAD)
            self._thread.start()
        if needed:
            self.wait()
            if any_process(self._failure is not None):
                fault = f"step {step}: the main process could not write the checkpoint"
                raise self._failure or OSError(fault)

    def wait(self) -> None:
        """Waits for the pending write; raises its exception, unless that is an OSError."""
        if self._thread is not None:
            self._thread.join()
        if self._failure is not None and not isinstance(self._failure, OSError):
            raise self._failure

    def _write(self, checkpoint: Checkpoint, needed: bool) -> None:
        config, self._failure = self.run.config, None
        kept = lengthening_steps(config)
        try:
            write(folder_of(self.run), checkpoint, config.checkpoints_total_limit, keep=kept)
        except Exception as error:  # an exception of a thread is lost
            self._failure = error
            logger.error(
                "the checkpoint of step %d could not be written: %s. Older ones are untouched%s",
                *(checkpoint.step, error),
                "" if needed else "; training goes on, and the next one is tried",
            )
