"""The gradients of the tasks aggregated to one: Jacobian descent, through torchjd.

Quinton and Rey 2024, arXiv:2406.16232. The plain sum needs none of this.
"""

from collections.abc import Callable

import torch
from accelerate import Accelerator
from torch import Tensor

from .losses import Objective

# What `gradient_aggregation` names, as torchjd's classes.
AGGREGATORS = {"upgrad": "UPGrad", "mgda": "MGDA", "imtlg": "IMTLG", "alignedmtl": "AlignedMTL"}
# Modules that these need; torchjd does not install all of them.
REQUIRED = ("torchjd", "quadprog", "qpsolvers")


def build_aggregator(name: str) -> Callable[[Tensor], Tensor]:
    """torchjd's aggregator of that name: (T, P) gradients -> (P,), on the scale of their mean."""
    import torchjd.aggregation  # an optional dependency

    return getattr(torchjd.aggregation, AGGREGATORS[name])()


class Jacobian:
    """The gradient of every task's loss by every trained weight, accumulated over one step.

    Row i is the gradient of L_i, the mean loss of task i over the whole global batch. The rows of
    microbatches and processes are added before they are aggregated, so the result does not depend
    on how a batch is cut.

    Args:
        objective: not wrapped, since the processes' gradients must not be averaged here.
        num_tasks: T.
        aggregate: (T, P) -> (P,), on the scale of a mean of the rows.
    """

    def __init__(self, objective: Objective, num_tasks: int, aggregate: Callable[[Tensor], Tensor]):
        self.objective = objective
        self.aggregate = aggregate
        self.shared = [p for p in objective.unet.parameters() if p.requires_grad]
        heads = [module for module in objective.children() if module is not objective.unet]
        self.parameters = [*self.shared, *(p for head in heads for p in head.parameters())]
        size = sum(p.numel() for p in self.parameters)
        self.rows = torch.zeros(num_tasks, size, device=self.parameters[0].device)

    def add(self, inputs: tuple, counts: Tensor, **options: float) -> Tensor:
        """Adds the gradients of some of the batch's samples; returns their plain losses (b,).

        Each sample has one task, so each task needs a forward and a backward pass of its own
        samples only, and all of these cost as much as one pass of all samples.

        Args:
            inputs: arguments of the objective, each with b rows; the last is the task indices (b,).
            counts: (T,) samples of each task in the global batch.
            options: the objective's.
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

    def write_gradients(self, counts: Tensor, accelerator: Accelerator) -> None:
        """Aggregates the rows into the parameters' `.grad`, and starts the next step.

        torchjd's result is multiplied by T, because the loss is a sum of the tasks, not a mean. The
        weighting's own parameters get the plain sum.
        """
        rows = accelerator.reduce(self.rows, reduction="sum")[counts > 0]
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


def build_jacobian(name: str, objective: Objective, num_tasks: int) -> Jacobian | None:
    """The Jacobian for the method that `gradient_aggregation` names; None for the plain sum."""
    if name == "sum":
        return None
    return Jacobian(objective, num_tasks, build_aggregator(name))
