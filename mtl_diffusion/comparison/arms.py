"""What a comparison trains: the joint model, each task alone, and the subsets between them.

Every arm takes the same number of optimiser steps, with the same schedule. What differs is what a
step sees:

    per-task  a task has as many samples in a step as it has in the joint model's, and no others are
              there: the joint model's step, less the other tasks
    total     a step has as many samples as the joint model's, all of the arm's own tasks

The joint model of all tasks is the same under both.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from pathlib import Path
from typing import Any

from ..config import TrainConfig

BUDGETS = ("per-task", "total")
LOSS_WEIGHTINGS = ("uncertainty", "sum", "fixed")
AGGREGATIONS = ("upgrad", "mgda", "imtlg", "alignedmtl")


@dataclass(frozen=True)
class Arm:
    """One way to train.

    Attributes:
        tasks: what it learns, in the order of the configuration.
        budget: one of `BUDGETS`.
        weighting: one of `LOSS_WEIGHTINGS`; or of `AGGREGATIONS`, whose losses are not weighted.
    """

    tasks: tuple[str, ...]
    budget: str
    weighting: str

    @property
    def name(self) -> str:
        return f"{'+'.join(self.tasks)}.{self.budget}.{self.weighting}"

    def run(self, seed: int) -> str:
        """The name of its run with this seed."""
        return f"{self.name}.seed{seed}"


def plan(tasks: Sequence[str], weightings: Sequence[str], subsets: bool) -> list[Arm]:
    """The arms of a comparison: joint with each weighting, then every part with the first one.

    Args:
        subsets: all subsets of the tasks; else only all of them, and each alone.
    """
    tasks, first = tuple(tasks), weightings[0]
    sizes = range(1, len(tasks)) if subsets else (1,)
    parts = [part for size in sizes for part in combinations(tasks, size)]
    joint = [Arm(tasks, "total", weighting) for weighting in weightings]
    return joint + [Arm(part, budget, first) for part in parts for budget in BUDGETS]


def configure(arm: Arm, base: TrainConfig, seed: int, folder: Path) -> TrainConfig:
    """The configuration of an arm's run, in `folder`.

    Fixed weights that the base doesn't have are the tasks' shares of a batch: every sample weighs
    the same.
    """
    share = sum(base.shares[task] for task in arm.tasks)
    batch = base.total_batch_size
    if arm.budget == "per-task":
        batch = max(round(batch * share), len(arm.tasks))
    return replace(
        base,
        tasks={task: base.tasks[task] for task in arm.tasks},
        total_batch_size=batch,
        seed=seed,
        output_dir=str(folder),
        **_weighted(arm, base),
    )


def _weighted(arm: Arm, base: TrainConfig) -> dict[str, Any]:
    if arm.weighting in AGGREGATIONS:
        changes = {"task_weighting": "sum", "gradient_aggregation": arm.weighting}
    else:
        changes = {"task_weighting": arm.weighting, "gradient_aggregation": "sum"}
    weights = None
    if arm.weighting == "fixed":
        given = base.task_weights or {t: len(base.shares) * s for t, s in base.shares.items()}
        weights = {task: given[task] for task in arm.tasks}
    return {**changes, "task_weights": weights}


def images_of_a_task(config: TrainConfig) -> dict[str, int]:
    """Task -> how many samples of it a run sees, to within the few that a batch rounds."""
    images = config.max_train_steps * config.total_batch_size
    return {task: round(images * share) for task, share in config.shares.items()}
