"""Do the tasks help each other? Signed relative changes against the tasks learned alone."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from statistics import fmean, stdev
from typing import Any

from .arms import BUDGETS, Arm
from .measure import Losses, Score

Scores = Mapping[str, Mapping[str, Score]]  # task -> metric -> figure


@dataclass(frozen=True)
class Spread:
    """A figure over several seeds: mean, standard deviation (NaN of one seed), and each."""

    mean: float
    std: float
    values: tuple[float, ...]

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        std = stdev(values) if len(values) > 1 else math.nan
        return cls(fmean(values), std, tuple(values))


def relative_change(ours: Score, base: Score) -> float:
    """(ours - base) / |base|, with the sign turned so that positive is better; NaN of base 0.

    Maninis et al. 2019, Attentive single-tasking of multiple tasks, eq. 1.
    """
    assert ours.higher_is_better == base.higher_is_better
    if base.value == 0:
        return math.nan
    sign = 1 if base.higher_is_better else -1
    return sign * (ours.value - base.value) / abs(base.value)


def delta_m(changes: Mapping[str, Mapping[str, float]]) -> float:
    """The mean over the tasks of the mean change of their metrics; those without one are left out.

    A task with many metrics so weighs no more than a task with one.
    """
    tasks = []
    for metrics in changes.values():
        if known := [change for change in metrics.values() if not math.isnan(change)]:
            tasks.append(fmean(known))
    return fmean(tasks)


def changes(arm: Arm, budget: str, first: str, scores: Mapping[tuple[Arm, int], Scores]) -> dict:
    """An arm against each of its tasks alone, seed by seed.

    Args:
        budget: of the tasks alone. first: their weighting.
        scores: (arm, seed) -> figures.

    Returns:
        {"tasks": task -> metric -> Spread, "delta_m": Spread}; a metric counts where both have it.
    """
    by_seed = []
    for seed in sorted({seed for other, seed in scores if other == arm}):
        found = {}
        for task in arm.tasks:
            alone = scores[Arm((task,), budget, first), seed][task]
            ours = scores[arm, seed][task]
            found[task] = {
                metric: relative_change(ours[metric], alone[metric])
                for metric in alone
                if metric in ours
            }
        by_seed.append(found)
    shared = {t: [m for m in by_seed[0][t] if all(m in s[t] for s in by_seed)] for t in arm.tasks}
    return {
        "tasks": {
            task: {m: Spread.of([found[task][m] for found in by_seed]) for m in metrics}
            for task, metrics in shared.items()
        },
        "delta_m": Spread.of([delta_m(found) for found in by_seed]),
    }


def loss_gap(
    joint: Arm, budget: str, first: str, losses: Mapping[tuple[Arm, int], Losses]
) -> dict[str, dict[str, Spread]]:
    """Task -> noise level -> how much more loss, relatively, the joint model has than the task
    alone. Positive: joint training hurts there."""
    seeds = sorted({seed for arm, seed in losses if arm == joint})
    gap = {}
    for task in joint.tasks:
        alone = [losses[Arm((task,), budget, first), seed][task] for seed in seeds]
        ours = [losses[joint, seed][task] for seed in seeds]
        gap[task] = {
            level: Spread.of([o[level] / a[level] - 1 for o, a in zip(ours, alone, strict=True)])
            for level in ours[0]
        }
    return gap


def percent(spread: Spread) -> str:
    """+1.2 ± 0.3 %"""
    if math.isnan(spread.mean):
        return "no change: the baseline is 0"
    text = f"{100 * spread.mean:+.1f}"
    return f"{text} %" if math.isnan(spread.std) else f"{text} ± {100 * spread.std:.1f} %"


def table(rows: Sequence[tuple[Arm, str, dict]], tasks: Sequence[str]) -> str:
    """Markdown: an arm and a budget a row, the change of each task's metrics and Delta_m."""
    names = {
        task: list(dict.fromkeys(m for _, _, c in rows for m in c["tasks"].get(task, {})))
        for task in tasks
    }
    columns = [(task, metric) for task in tasks for metric in names[task]]
    head = [f"{task}: {metric}" for task, metric in columns]
    lines = [
        f"| tasks | weighting | against each alone, equal images | {' | '.join(head)} | Δm |",
        f"|---|---|---|{'---|' * len(columns)}---|",
    ]
    for arm, budget, change in rows:
        cells = [
            percent(change["tasks"][task][metric])
            if metric in change["tasks"].get(task, {})
            else ""
            for task, metric in columns
        ]
        which = {"per-task": "per task", "total": "in total"}[budget]
        lines.append(
            f"| {' + '.join(arm.tasks)} | {arm.weighting} | {which} | {' | '.join(cells)} | "
            f"{percent(change['delta_m'])} |"
        )
    return "\n".join(lines) + "\n"


def plain(value: Any) -> Any:
    """Spreads and NaN as JSON has them."""
    if isinstance(value, Spread):
        return plain(asdict(value))
    if isinstance(value, Mapping):
        return {key: plain(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [plain(part) for part in value]
    if isinstance(value, float):
        return None if math.isnan(value) else round(value, 6)
    return value


def rows_of(
    arms: Sequence[Arm], scores: Mapping[tuple[Arm, int], Scores]
) -> list[tuple[Arm, str, dict]]:
    """Every arm of several tasks, against its tasks alone at each budget that is its own."""
    joint, first = arms[0].tasks, arms[0].weighting
    return [
        (arm, budget, changes(arm, budget, first, scores))
        for arm in arms
        if len(arm.tasks) > 1
        for budget in (BUDGETS if arm.tasks == joint else (arm.budget,))
    ]
