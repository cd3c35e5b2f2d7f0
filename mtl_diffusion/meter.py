"""The losses of the steps: what progress bar and trackers show, and whether all of it is finite."""

import torch
from torch import Tensor

from .run import Run
from .survival import any_process, from_all_processes


class Meter:
    """Running means of the tasks' losses, kept on the device until they are read."""

    def __init__(self, run: Run):
        self.run = run
        self.names = [task.name for task in run.mixture.tasks]
        self.latest: list[tuple[Tensor, Tensor, Tensor]] = []  # the microbatches of this step
        self._reset()

    def _reset(self) -> None:
        self.sums = torch.zeros(2, len(self.names), device=self.run.accelerator.device)

    def add(self, loss: Tensor, sigma: Tensor, task: Tensor) -> None:
        """loss: (b,) as measured. sigma: (b, 1, 1, 1). task: (b,) indices."""
        self.latest.append((loss, sigma.flatten(), task))
        self.sums[0].index_add_(0, task, loss)
        self.sums[1].index_add_(0, task, torch.ones_like(loss))

    def read(self) -> dict[str, float]:
        """Task name -> mean loss since the last reading, over all processes."""
        sums, counts = self.run.accelerator.reduce(self.sums, reduction="sum").tolist()
        self._reset()
        return {
            name: total / count
            for name, total, count in zip(self.names, sums, counts, strict=True)
            if count
        }

    def require_finite(self, step: int, norm: Tensor) -> None:
        """Ends the step's account. All processes raise, if one has a loss that is not finite.

        Args:
            norm: of the averaged gradient, and so the same on all processes.
        """
        loss, sigma, task = (torch.cat(parts) for parts in zip(*self.latest, strict=True))
        self.latest.clear()
        if not any_process(~(loss.isfinite().all() & norm.isfinite())):
            return
        bad = (~loss.isfinite()).nonzero()[:, 0].tolist() or [int(loss.argmax())]
        places = [f"{self.names[task[i]]} at sigma {sigma[i]:.4g}: {loss[i]:.4g}" for i in bad[:8]]
        rank = self.run.accelerator.process_index
        lines = from_all_processes([f"process {rank}: {'; '.join(places)}"])
        raise FloatingPointError(
            f"step {step}: a loss or a gradient is not finite, and the optimiser has not stepped. "
            f"Norm of the gradient: {norm:.4g}. Worst losses: {'. '.join(lines)}"
        )
