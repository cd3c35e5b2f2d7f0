"""The losses of the steps, for progress bar and trackers, and a check that they are finite."""

from typing import NamedTuple

import torch
from torch import Tensor

from ..tools.distributed import any_process, from_all_processes
from .run import Run


class StepRecord(NamedTuple):
    """The losses of one step, before the host has waited for them.

    Attributes:
        step: its number.
        loss, sigma: (b,) of this process's samples, on the device.
        task: (b,) their task indices, on the CPU.
        norm: () norm of the averaged gradient, the same on all processes, on the device.
    """

    step: int
    loss: Tensor
    sigma: Tensor
    task: Tensor
    norm: Tensor


class Meter:
    """Keeps losses on the device until they are read: waiting in each step would idle a GPU.

    Attributes:
        skipped: steps of this process that were not taken: a gradient was too large for float16.
    """

    def __init__(self, run: Run):
        self.run = run
        self.names = [task.name for task in run.mixture.tasks]
        self.skipped = 0
        self.unread: list[StepRecord] = []
        self.sums = torch.zeros(2, len(self.names))  # on the CPU: losses, samples

    def add(self, record: StepRecord) -> None:
        """Keeps the record of a step, without waiting for the device."""
        self.unread.append(record)

    def check(self) -> None:
        """Waits for the device, and for all processes.

        Raises:
            FloatingPointError: on all processes, if a step since the last check was not finite on
                any of them. With a loss scale, steps whose loss is finite and whose gradient is not
                are counted as skipped instead, unless the scale has fallen below 1.
        """
        if not self.unread:
            return
        steps, *tensors = zip(*self.unread, strict=True)
        losses, sigmas, tasks, norms = (torch.stack(part).cpu() for part in tensors)
        finite, bad = norms.isfinite(), ~losses.isfinite().all(dim=1)
        scale = self.run.loss_scale
        if scale is None or scale.get_scale() < 1:
            bad |= ~finite
        else:
            self.skipped += int((~finite).sum())  # the norm is the same on all processes
        if any_process(bool(bad.any())):
            mine = [str(steps[i]) for i in bad.nonzero()[:, 0]]
            i = min(map(int, from_all_processes(mine))) - steps[0]
            self._refuse(StepRecord(steps[i], losses[i], sigmas[i], tasks[i], norms[i]))
        self.sums[0].index_add_(0, tasks.flatten(), losses.flatten())
        self.sums[1] += tasks.flatten().bincount(minlength=len(self.names))
        self.unread.clear()

    def read(self) -> dict[str, float]:
        """Task name -> mean loss since the last reading, over all processes.

        Raises:
            FloatingPointError: see `check`.
        """
        self.check()
        sums = self.sums.to(self.run.accelerator.device)
        sums, counts = self.run.accelerator.reduce(sums, reduction="sum").tolist()
        self.sums.zero_()
        rows = zip(self.names, sums, counts, strict=True)
        return {name: total / count for name, total, count in rows if count}

    def _refuse(self, record: StepRecord) -> None:
        step, loss, sigma, task, norm = record
        worst = (~loss.isfinite()).nonzero()[:, 0].tolist() or [int(loss.argmax())]
        places = [
            f"{self.names[task[i]]} at sigma {sigma[i]:.4g}: {loss[i]:.4g}" for i in worst[:8]
        ]
        rank = self.run.accelerator.process_index
        lines = from_all_processes([f"process {rank}: {'; '.join(places)}"])
        raise FloatingPointError(
            # Numbered as checkpoints are.
            f"step {step + 1}: a loss or a gradient is not finite, and the optimiser has not taken "
            f"that step. Norm of the gradient: {norm:.4g}. Worst losses: {'. '.join(lines)}"
        )
