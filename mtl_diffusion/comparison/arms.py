"""The arms of a comparison: runs that differ from a base configuration in a few fields.

All arms have the base's number of optimiser steps and its schedules, unless they change them.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from pathlib import Path
from typing import Any

from ..config import ConfigError, TrainConfig, to_dict
from ..config.command_line import checked
from ..tools.yaml_reader import load_strictly

_OURS = ("seed", "output_dir", "push_to_hub", "dry_run")  # fields that a comparison sets itself


@dataclass(frozen=True)
class Arm:
    """One way to train.

    Attributes:
        name: its row in the tables, and part of the names of its folders.
        changes: field of the configuration -> value; the other fields are the base's.
        source: name of the arm whose pipeline of the same seed it starts from; None: the base's
            start.
    """

    name: str
    changes: Mapping[str, Any]
    source: str | None = None

    def run(self, seed: int) -> str:
        """The name of the folder of its run with this seed."""
        return f"{self.name}.seed{seed}"


def named_arms(name: str, base: TrainConfig, budgets: Sequence[str]) -> list[Arm]:
    """All tasks jointly, and each alone ("alone"); all subsets ("subsets"); or those of a file.

    Args:
        budgets: see `subsets_of_tasks`; the arms of one follow those of another.
    """
    count = len(base.shares)
    sizes = {"alone": (count, 1), "subsets": range(count, 0, -1)}
    if name not in sizes:
        return read_arms(Path(name))
    arms = [arm for budget in budgets for arm in subsets_of_tasks(base, sizes[name], budget)]
    return list({arm.name: arm for arm in arms}.values())


def subsets_of_tasks(base: TrainConfig, sizes: Sequence[int], budget: str) -> list[Arm]:
    """An arm for every subset of the base's tasks that has one of these sizes.

    Args:
        sizes: numbers of tasks, in the order of the arms.
        budget: the quantity that equals that of a step of all tasks. "per_task": the number of
            samples of each task. "total": the number of all samples.
    """
    arms = []
    for size in dict.fromkeys(sizes):
        for tasks in combinations(base.shares, size):
            batch = base.total_batch_size
            if budget == "per_task":
                batch = max(round(batch * sum(base.shares[task] for task in tasks)), size)
            changes = {"tasks": {t: base.tasks[t] for t in tasks}, "total_batch_size": batch}
            if base.task_weights is not None:
                changes["task_weights"] = {task: base.task_weights[task] for task in tasks}
            # All tasks are the same arm under both budgets.
            name = "+".join(tasks) if size == len(base.shares) else f"{'+'.join(tasks)}.{budget}"
            arms.append(Arm(name, changes))
    return arms


def read_arms(path: Path) -> list[Arm]:
    """The arms of a YAML file: name -> changed fields, and `from`: the name of an earlier arm.

    Raises:
        ValueError: the file does not hold that.
        OSError: it can't be read.
    """
    try:
        entries = load_strictly(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"arms: {path} is not YAML: {error}") from error
    if not isinstance(entries, dict) or not all(isinstance(v, dict) for v in entries.values()):
        raise ValueError(f"arms: {path} must hold lines such as name: {{field: value}}")
    arms: list[Arm] = []
    for name, changes in entries.items():
        source = changes.pop("from", None)
        if not re.fullmatch(r"\w[\w.+-]*", str(name)):
            raise ValueError(f"arms: found the name {name!r}; use letters, digits, '.', '+', '-'")
        if source is not None and source not in [arm.name for arm in arms]:
            raise ValueError(f"arms: {name} starts from {source}, which is no earlier arm")
        if ours := [field for field in _OURS if field in changes]:
            raise ValueError(f"arms: {name} changes {ours[0]}, which a comparison sets itself")
        arms.append(Arm(str(name), changes, source))
    return arms


def configure(
    arm: Arm, base: TrainConfig, seed: int, folder: Path, source: Path | None = None
) -> TrainConfig:
    """The configuration of one run.

    Args:
        source: the exported pipeline of the arm that it starts from.

    Raises:
        ConfigError: a change is not allowed; the message names the arm.
    """
    values = to_dict(base) | dict(arm.changes)
    values |= {"seed": seed, "output_dir": str(folder), "push_to_hub": False, "dry_run": False}
    if source is not None:
        values["pretrained_model_name_or_path"] = str(source)
    try:
        # What is not given is the source's, in a run that starts from one.
        return replace(checked(values), written=base.written | arm.changes.keys())
    except ConfigError as error:
        raise ConfigError([f"{arm.name}: {fault}" for fault in error.faults]) from error
