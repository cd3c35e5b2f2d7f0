"""Tables of a comparison: losses and their relative changes, with the spread over the seeds.

Each task is compared with the first arm that has it, its reference, seed by seed.
"""

from collections.abc import Mapping, Sequence

import numpy as np

# arm -> task -> (S, K + 1): a value for each seed and noise level, and for the mean of the levels
ByTask = Mapping[str, Mapping[str, np.ndarray]]


def changes(losses: ByTask) -> dict[str, dict[str, np.ndarray]]:
    """Relative changes in percent: 1 is one percent more loss than the reference has."""
    references: dict[str, np.ndarray] = {}
    found = {}
    for arm, tasks in losses.items():
        found[arm] = {
            task: 100 * (loss / references[task] - 1)
            for task, loss in tasks.items()
            if references.setdefault(task, loss) is not loss
        }
    return found


def loss_table(losses: ByTask, changed: ByTask) -> str:
    """Markdown: an arm a row, for each task the loss and its change."""
    tasks = list(dict.fromkeys(task for by_task in losses.values() for task in by_task))
    rows = []
    for arm, by_task in losses.items():
        texts = {task: spread(loss[:, -1], ".4f", ".4f") for task, loss in by_task.items()}
        for task, change in changed[arm].items():
            texts[task] += f" ({spread(change[:, -1], '+.1f', '.1f')} %)"
        rows.append([arm, *(texts.get(task, "") for task in tasks)])
    return markdown(["arm", *tasks], rows)


def scorecard_table(figures: Mapping[str, Sequence[Mapping[str, float]]]) -> str:
    """Markdown: a figure a row, an arm a column.

    Args:
        figures: arm -> for each seed: figure -> value.
    """
    names = dict.fromkeys(name for runs in figures.values() for run in runs for name in run)
    rows = []
    for name in names:
        values = [[run[name] for run in runs if name in run] for runs in figures.values()]
        rows.append([name, *(spread(of_arm, ".4g", ".2g") if of_arm else "" for of_arm in values)])
    return markdown(["figure", *figures], rows)


def spread(values: Sequence[float], mean: str, std: str) -> str:
    """Mean ± standard deviation, in these formats; the value alone if there is one."""
    text = format(np.mean(values), mean)
    return text if len(values) == 1 else f"{text} ± {np.std(values, ddof=1):{std}}"


def markdown(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table in Markdown."""
    lines = [head, ["---"] * len(head), *rows]
    return "".join(f"| {' | '.join(cells)} |\n" for cells in lines)
