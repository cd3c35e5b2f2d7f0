"""From the losses of the tasks to one gradient: their sum, or an aggregation by torchjd.

Both have `add`, for each microbatch, and `finish`, which leaves the gradients in `.grad`.
"""

from collections.abc import Callable
from contextlib import nullcontext

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from .losses import Objective, sum_of_task_means

# Value of `gradient_aggregation` -> name of torchjd's class.
AGGREGATORS = {"upgrad": "UPGrad", "mgda": "MGDA", "imtlg": "IMTLG", "alignedmtl": "AlignedMTL"}
# Modules that these need; torchjd does not install all of them.
REQUIRED = ("torchjd", "quadprog", "qpsolvers")


def build_aggregator(name: str) -> Callable[[Tensor], Tensor]:
    """torchjd's aggregator of that name: (T, P) gradients -> (P,), on the scale of their mean."""
    import torchjd.aggregation  # an optional dependency

    return getattr(torchjd.aggregation, AGGREGATORS[name])()


class Sum:
    """The gradient of the sum of the tasks' losses.

    Args:
        objective: as `accelerator.prepare` returns it, which averages the processes' gradients.
    """

    def __init__(self, objective: nn.Module, accelerator: Accelerator):
        self.objective = objective
        self.accelerator = accelerator

    def add(self, inputs: tuple, counts: Tensor, *, is_last: bool, **options: float) -> Tensor:
        """Adds the gradients of some of the batch's samples; returns their plain losses (b,).

        Args:
            inputs: arguments of the objective, each with b rows; the last is the task indices (b,).
            counts: (T,) samples of each task in the global batch.
            is_last: these are the last samples of the step: the processes exchange gradients.
            options: the objective's.
        """
        with nullcontext() if is_last else self.accelerator.no_sync(self.objective):
            plain, weighted = self.objective(*inputs, **options)
            # Processes average their gradients, and the parts of a sum must be added.
            loss = sum_of_task_means(weighted, inputs[-1], counts)
            self.accelerator.backward(self.accelerator.num_processes * loss)
        return plain

    def finish(self, counts: Tensor) -> None:
        """Nothing is left to do: the backward passes have added up the gradients."""


class Jacobian:
    """The gradient of every task's loss by every trained weight, accumulated over one step.

    Quinton and Rey 2024, arXiv:2406.16232.

    Row i is the gradient of L_i, the mean loss of task i over the whole global batch. The rows of
    microbatches and processes are added before they are aggregated, so the result does not depend
    on how a batch is cut.

    Args:
        objective: not wrapped, since the processes' gradients must not be averaged here.
        num_tasks: T.
        aggregate: (T, P) -> (P,), on the scale of a mean of the rows.
    """

    def __init__(
        self,
        objective: Objective,
        accelerator: Accelerator,
        num_tasks: int,
        aggregate: Callable[[Tensor], Tensor],
    ):
        self.objective = objective
        self.accelerator = accelerator
        self.aggregate = aggregate
        self.shared = [p for p in objective.unet.parameters() if p.requires_grad]
        heads = [module for module in objective.children() if module is not objective.unet]
        self.parameters = [*self.shared, *(p for head in heads for p in head.parameters())]
        size = sum(p.numel() for p in self.parameters)
        self.rows = torch.zeros(num_tasks, size, device=self.parameters[0].device)

    def add(self, inputs: tuple, counts: Tensor, *, is_last: bool, **options: float) -> Tensor:
        """As `Sum.add`.

        Each sample has one task, so each task needs a forward and a backward pass of its own
        samples only, and all of these cost as much as one pass of all samples.
        """
        task = inputs[-1]
        plain = torch.zeros(len(task), device=task.device)
        for i, row in enumerate(self.rows):
            mine = (task == i).nonzero()[:, 0]
            if not len(mine):
                continue
            rows = (part[mine] for part in inputs)
            plain[mine], weighted = self.objective(*rows, **options)
            gradients = torch.autograd.grad(
                weighted.sum() / counts[i], self.parameters, materialize_grads=True
            )
            row += torch.cat([g.flatten() for g in gradients])
        return plain

    def finish(self, counts: Tensor) -> None:
        """Aggregates the rows into the parameters' `.grad`, and starts the next step.

        torchjd's result is multiplied by T, because the loss is a sum of the tasks, not a mean. The
        weighting's own parameters get the plain sum.
        """
        rows = self.accelerator.reduce(self.rows, reduction="sum")[counts > 0]
        P = sum(p.numel() for p in self.shared)
        total = rows.sum(0)
        # A loss that is not finite ends the run later, with its own message.
        if rows.isfinite().all():
            total[:P] = len(rows) * self.aggregate(rows[:, :P])
        sizes = [p.numel() for p in self.parameters]
        for parameter, part in zip(self.parameters, total.split(sizes), strict=True):
            # In the memory order of the weight, as the fused AdamW expects.
            parameter.grad = torch.empty_like(parameter).copy_(part.view_as(parameter))
        self.rows.zero_()


def build_gradients(
    name: str, objective: Objective, wrapped: nn.Module, accelerator: Accelerator, num_tasks: int
) -> Sum | Jacobian:
    """The aggregation that `gradient_aggregation` names.

    Args:
        wrapped: the objective, as `accelerator.prepare` returns it.
    """
    if name == "sum":
        return Sum(wrapped, accelerator)
    return Jacobian(objective, accelerator, num_tasks, build_aggregator(name))
