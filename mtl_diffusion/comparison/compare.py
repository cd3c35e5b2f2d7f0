"""A whole comparison: trains the runs that are missing, measures all, writes tables and a plot."""

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch
from tqdm.auto import tqdm

from ..config import TrainConfig, to_dict
from ..data.images import load_splits
from ..pictures.plots import signed_matrix
from ..publishing.export import PIPELINE
from ..tools import flags
from ..tools.files import write_text
from .arms import Arm, configure
from .measure import losses, scorecard
from .report import Changes, changes, loss_table, plain, scorecard_table
from .runs import SCORES, ensure_scored, ensure_trained


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
        evaluate: starts scripts/evaluate.py, see `ensure_scored`. None: the scores that are there
            are compared.

    Returns:
        The tables as Markdown. They and comparison.json and changes.png are written to `folder`.

    Raises:
        ValueError: a configuration is not allowed, or a folder has a run of another one.
        Stopped, RuntimeError: see `ensure_trained` and `ensure_scored`.
    """
    if base.max_train_steps is None:
        raise ValueError("max_train_steps: found null; runs that are compared need a number")
    folders = {(arm.name, seed): folder / "runs" / arm.run(seed) for seed in seeds for arm in arms}
    configs = {}  # all of them, before anything is trained
    for seed in seeds:
        for arm in arms:
            source = arm.source and folders[arm.source, seed] / PIPELINE
            configs[arm.name, seed] = configure(arm, base, seed, folders[arm.name, seed], source)
    _, data = load_splits(base, base.resolution)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    torch.set_num_threads(base.num_threads or torch.get_num_threads())

    measured = {arm.name: {} for arm in arms}
    figures = {arm.name: {} for arm in arms}
    for (name, seed), run in tqdm(folders.items(), desc="Runs", unit="run"):
        pipeline = ensure_trained(configs[name, seed], command)
        measured[name][seed] = losses(pipeline, data, num_images, device)
        if evaluate is not None:
            ensure_scored(configs[name, seed], evaluate)
        figures[name][seed] = scorecard(run / SCORES)

    changed = changes(measured)
    tables = "\n".join(filter(None, [loss_table(measured, changed), scorecard_table(figures)]))
    report = {
        "command": flags.command(),
        "base": to_dict(base),
        "arms": [asdict(arm) for arm in arms],
        "seeds": list(seeds),
        "dataset_fingerprint": data.fingerprint,
        "num_images": min(num_images, len(data)),
        "losses": measured,
        "changes": changed,
        "scorecards": figures,
    }
    write_text(folder / "comparison.json", json.dumps(plain(report), indent=2) + "\n")
    write_text(folder / "comparison.md", tables)
    _plot(changed, folder / "changes.png")
    return tables


def _plot(changed: Changes, path: Path) -> None:
    rows = {f"{arm}: {task}": row for arm, tasks in changed.items() for task, row in tasks.items()}
    if rows:
        cells = [list(row.values()) for row in rows.values()]
        signed_matrix(
            100 * np.array([[cell.mean for cell in row] for row in cells]),
            100 * np.array([[cell.std for cell in row] for row in cells]),
            list(rows),
            list(next(iter(rows.values()))),
            "more loss than the reference, %",
            path,
        )
