"""What is compared of a trained model: its held-out losses, and the figures of its scorecard."""

from __future__ import annotations

import fnmatch
import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..data.images import ImageDataset
from ..pipeline.pipeline import TASKS, MultiTaskPipeline
from ..tools.files import write_text
from ..training.validation import held_out_loss

LOSS = "held-out loss"
WEIGHTS = Path("unet", "diffusion_pytorch_model.safetensors")
Losses = dict[str, dict[str, float]]  # task -> noise level -> loss


@dataclass(frozen=True)
class Metric:
    """A figure of metrics.json, by its path in it, and of which task it is."""

    task: str
    path: str
    higher_is_better: bool


# Of scripts/evaluate.py; where a run has no such figure, the metric is left out.
METRICS = (
    # Not "floor", which is of the data alone.
    Metric("generate", "summary.generate.*steps*.frechet_distance_to_train", False),
    Metric("generate", "summary.generate.*steps*.class_accuracy", True),
    Metric("generate", "likelihood.bits_per_dim", False),
    Metric("inpaint", "summary.inpaint.*.psnr_in_hole", True),
    Metric("inpaint", "summary.inpaint.*.same_class", True),
    Metric("edit", "summary.edit.strength_*.class_accuracy", True),
    Metric("edit", "summary.edit.strength_*.ssim_to_source", True),
)


@dataclass(frozen=True)
class Score:
    """One figure of one model: of n images."""

    value: float
    higher_is_better: bool
    n: int


def losses(
    pipeline: Path, tasks: Sequence[str], data: ImageDataset, num_images: int, device: str
) -> Losses:
    """The held-out loss of an exported pipeline, by task and noise level.

    Kept beside the pipeline, and computed again if the weights, the data or n change. Noise and
    corruption are the same for every model, so that models differ by what they answer.
    """
    key = {
        "weights": hashlib.sha256((pipeline / WEIGHTS).read_bytes()).hexdigest(),
        "data": data.fingerprint,
        "num_images": min(num_images, len(data)),
        "tasks": list(tasks),
    }
    kept = pipeline.parent / "held_out.json"
    if kept.exists() and (found := json.loads(kept.read_text()))["key"] == key:
        return found["loss"]
    pipe = MultiTaskPipeline.from_pretrained(pipeline).to(device)
    found = held_out_loss(
        pipe.unet,
        pipe.scheduler,
        [TASKS[task] for task in tasks],
        pipe.vocabulary,
        data.relabelled(pipe.class_names),
        num_images,
        device=device,
    )
    table = {
        task: {level: entry["loss"] for level, entry in levels.items()}
        for task, levels in found.table().items()
    }
    write_text(kept, json.dumps({"key": key, "loss": table}, indent=2) + "\n")
    return table


def loss_scores(table: Losses, num_images: int) -> dict[str, dict[str, Score]]:
    """Task -> the mean of its loss over the noise levels, which are evenly wide in ln sigma."""
    return {
        task: {LOSS: Score(sum(levels.values()) / len(levels), False, num_images)}
        for task, levels in table.items()
    }


def metric_scores(
    metrics: Mapping[str, Any], wanted: Sequence[Metric], tasks: Sequence[str]
) -> dict[str, dict[str, Score]]:
    """Task -> path -> figure, of the wanted ones that a metrics.json has. Names in a path may
    have the wildcards of file names. The n of a figure is the one that stands beside it.
    """
    scores: dict[str, dict[str, Score]] = {task: {} for task in tasks}
    for metric in wanted:
        if metric.task in tasks:
            for path, value, n in _find(metrics, metric.path.split("."), ()):
                scores[metric.task][path] = Score(value, metric.higher_is_better, n)
    return scores


def _find(node: Any, path: list[str], walked: tuple[str, ...]) -> list[tuple[str, float, int]]:
    if not isinstance(node, Mapping):
        return []
    *places, last = path
    if not places:
        there = last in node and "n" in node
        return [(".".join([*walked, last]), float(node[last]), int(node["n"]))] if there else []
    names = fnmatch.filter(node, places[0])
    return [hit for name in names for hit in _find(node[name], path[1:], (*walked, name))]
