"""A whole comparison: trains the runs that are missing, measures all, writes tables."""

import json
import subprocess
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch
from tqdm.auto import tqdm

from ..config import TrainConfig, resolved, to_dict
from ..data.images import load_splits
from ..launch.stop import STOPPED
from ..publishing.export import PIPELINE
from ..tools import flags
from ..tools.files import write_text
from ..training.model import image_format
from .arms import Arm, configure
from .measure import losses, scores
from .report import changes, loss_table, scorecard_table


def compare(
    arms: Sequence[Arm],
    base: TrainConfig,
    seeds: Sequence[int],
    folder: Path,
    num_images: int,
    command: Sequence[str],
    evaluate: Sequence[str] | None = None,
) -> str:
    """Trains each arm with each seed, in `folder`/runs, and compares them on held-out images.

    Args:
        num_images: held-out images of the base's validation_split.
        command: starts scripts/train.py; the flags are appended.
        evaluate: starts scripts/evaluate.py, see `scores`. None: losses alone are compared.

    Returns:
        The tables as Markdown. They and comparison.json are written to `folder`.

    Raises:
        ValueError: a configuration is not allowed.
        RuntimeError: a run was stopped, or it or an evaluation failed.
    """
    if base.max_train_steps is None:
        raise ValueError("max_train_steps is null; give a number, so that all runs are as long")
    configs: dict[tuple[str, int], TrainConfig] = {}  # all of them, before anything is trained
    for arm in arms:
        for seed in seeds:
            run = folder / "runs" / f"{arm.name}.seed{seed}"
            source = arm.source and Path(configs[arm.source, seed].output_dir, PIPELINE)
            configs[arm.name, seed] = configure(arm, base, seed, run, source)
    _, data = load_splits(base, image_format(base))
    torch.set_num_threads(base.num_threads or torch.get_num_threads())

    measured, figures = ({arm.name: [] for arm in arms} for _ in range(2))
    for (name, _), config in tqdm(configs.items(), desc="Runs", unit="run"):
        ensure_trained(config, command)
        measured[name].append(losses(Path(config.output_dir), data, num_images))
        if evaluate is not None:
            figures[name].append(scores(config, evaluate))

    levels = [*next(iter(measured[arms[0].name][0].values())), "mean"]  # evenly wide in ln sigma
    by_task = {
        name: {task: _with_mean([run[task] for run in runs]) for task in runs[0]}
        for name, runs in measured.items()
    }
    changed = changes(by_task)
    tables = loss_table(by_task, changed)
    if evaluate is not None:
        tables += f"\n{scorecard_table(figures)}"
    report = {
        "command": flags.command(),
        "base": to_dict(base),
        "arms": [asdict(arm) for arm in arms],
        "seeds": list(seeds),
        "dataset_fingerprint": data.fingerprint,
        "num_images": min(num_images, len(data)),
        "noise_levels": levels,
        "losses": by_task,
        "changes_in_percent": changed,
        "scorecards": figures,
    }
    text = json.dumps(report, indent=2, default=np.ndarray.tolist)
    write_text(folder / "comparison.json", text + "\n")
    write_text(folder / "comparison.md", tables)
    return tables


def ensure_trained(config: TrainConfig, command: Sequence[str]) -> None:
    """Starts or continues the run, unless it has finished with this configuration.

    Args:
        command: starts scripts/train.py, which refuses to continue a run of another configuration;
            the flags are appended.

    Raises:
        RuntimeError: the run failed, for a reason that is in its output, or was stopped after a
            checkpoint.
    """
    folder, text = Path(config.output_dir), resolved(config)
    given, finished = folder / "config.yaml", folder / "finished.yaml"
    if finished.exists() and finished.read_text(encoding="utf-8") == text:
        return
    folder.mkdir(parents=True, exist_ok=True)
    write_text(given, text)
    code = subprocess.run([*command, "--config", str(given)]).returncode
    if code == STOPPED:
        raise RuntimeError(f"{folder} was stopped; run the same command again to continue")
    if code:
        raise RuntimeError(f"{folder}: training exited with {code}")
    write_text(finished, text)


def _with_mean(runs: Sequence[dict[str, float]]) -> np.ndarray:
    """(S, K + 1): the losses of a task in S runs, by noise level, and their mean."""
    table = np.array([list(levels.values()) for levels in runs])
    return np.column_stack([table, table.mean(1)])
