"""Tables of a comparison: losses and their relative changes, with the spread over the seeds.

Each task is compared with the first arm that has it, its reference, seed by seed.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from statistics import fmean, stdev
from typing import Any

from .measure import Losses

MEAN = "mean"  # over the noise levels, which are evenly wide in ln sigma
Runs = Mapping[str, Mapping[int, Losses]]  # arm -> seed -> task -> noise level -> loss
Changes = dict[str, dict[str, dict[str, "MeanStd"]]]  # arm -> task -> noise level or MEAN -> change


@dataclass(frozen=True)
class MeanStd:
    """A figure over several seeds: mean, standard deviation (NaN for one seed), and all values."""

    mean: float
    std: float
    values: tuple[float, ...]

    @classmethod
    def of(cls, values: Sequence[float]) -> "MeanStd":
        std = stdev(values) if len(values) > 1 else math.nan
        return cls(fmean(values), std, tuple(values))

    def show(self, mean: str, std: str, scale: float = 1) -> str:
        """mean ± std, in these formats; the mean alone for one seed."""
        text = format(scale * self.mean, mean)
        return text if math.isnan(self.std) else f"{text} ± {scale * self.std:{std}}"


def changes(losses: Runs) -> Changes:
    """Relative changes of the loss: 0.01 is one percent more than the reference has."""
    found: Changes = {}
    for arm, runs in losses.items():
        found[arm] = {}
        for task in _tasks(runs):
            reference = next(other for other in losses if task in _tasks(losses[other]))
            if reference == arm:
                continue
            pairs = [(runs[seed][task], losses[reference][seed][task]) for seed in runs]
            found[arm][task] = {
                level: MeanStd.of([own[level] / other[level] - 1 for own, other in pairs])
                for level in pairs[0][0]
            }
            found[arm][task][MEAN] = MeanStd.of(
                [fmean(own.values()) / fmean(other.values()) - 1 for own, other in pairs]
            )
    return found


def loss_table(losses: Runs, changed: Changes) -> str:
    """Markdown: an arm a row, the loss and its change for each task, and the mean change."""
    tasks = list(dict.fromkeys(task for runs in losses.values() for task in _tasks(runs)))
    rows = []
    for arm, runs in losses.items():
        cells = []
        for task in tasks:
            if task not in _tasks(runs):
                cells.append("")
                continue
            loss = MeanStd.of([fmean(run[task].values()) for run in runs.values()])
            text = loss.show(".4f", ".4f")
            if task in changed[arm]:
                text += f" ({changed[arm][task][MEAN].show('+.1f', '.1f', 100)} %)"
            cells.append(text)
        of_tasks = [levels[MEAN].values for levels in changed[arm].values()]
        means = [fmean(values) for values in zip(*of_tasks, strict=True)]
        cells.append(f"{MeanStd.of(means).show('+.1f', '.1f', 100)} %" if means else "")
        rows.append([arm, *cells])
    return _markdown(["arm", *tasks, "mean change"], rows)


def scorecard_table(figures: Mapping[str, Mapping[int, Mapping[str, float]]]) -> str:
    """Markdown: a figure a row, an arm a column; empty if no run has a scorecard.

    Args:
        figures: arm -> seed -> figure -> value.
    """
    names = dict.fromkeys(
        name for runs in figures.values() for found in runs.values() for name in found
    )
    rows = []
    for name in names:
        values = [
            [found[name] for found in runs.values() if name in found] for runs in figures.values()
        ]
        rows.append([name, *(MeanStd.of(v).show(".4g", ".2g") if v else "" for v in values)])
    return _markdown(["figure", *figures], rows) if rows else ""


def plain(value: Any) -> Any:
    """The value as JSON can hold it: `MeanStd` as a dict, NaN as None."""
    if isinstance(value, MeanStd):
        return plain(asdict(value))
    if isinstance(value, Mapping):
        return {key: plain(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [plain(part) for part in value]
    if isinstance(value, float):
        return None if math.isnan(value) else round(value, 6)
    return value


def _tasks(runs: Mapping[int, Losses]) -> list[str]:
    return list(next(iter(runs.values())))


def _markdown(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "".join(f"| {' | '.join(cells)} |\n" for cells in lines)
