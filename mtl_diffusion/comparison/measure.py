"""Measurements of a trained model: held-out losses, and the summary of its scorecard."""

import json
from pathlib import Path

from ..data.images import ImageDataset
from ..pipeline.pipeline import TASKS, MultiTaskPipeline
from ..tools.files import write_text
from ..training.validation import held_out_loss
from .runs import weights_hash

Losses = dict[str, dict[str, float]]  # task -> noise level -> loss


def losses(pipeline: Path, data: ImageDataset, num_images: int, device: str) -> Losses:
    """The held-out loss of each task that an exported pipeline has learned, by noise level.

    Noise and corruption are the same for every model. The result is cached beside the pipeline,
    and computed again if the weights, the data or the number of images change.
    """
    key = {
        "weights": weights_hash(pipeline),
        "data": data.fingerprint,
        "num_images": min(num_images, len(data)),
    }
    cache = pipeline.parent / "held_out.json"
    if cache.exists() and (cached := json.loads(cache.read_text()))["key"] == key:
        return cached["loss"]
    pipe = MultiTaskPipeline.from_pretrained(pipeline).to(device)
    measured = held_out_loss(
        pipe.unet,
        pipe.scheduler,
        [TASKS[task] for task in pipe.tasks],
        pipe.vocabulary,
        data.relabelled(pipe.class_names),
        num_images,
        device=device,
    )
    table = {
        task: {level: entry["loss"] for level, entry in levels.items()}
        for task, levels in measured.table().items()
    }
    write_text(cache, json.dumps({"key": key, "loss": table}, indent=2) + "\n")
    return table


def scorecard(metrics: Path) -> dict[str, float]:
    """The summary of a metrics.json of scripts/evaluate.py, flat; empty if there is no such file.

    Standard errors and the figures of other methods are left out.
    """
    if not metrics.exists():
        return {}
    summary = json.loads(metrics.read_text())["summary"]
    return {
        f"{part}, {setting}, {name}": value
        for part, settings in summary.items()
        if part != "baselines"
        for setting, entry in settings.items()
        for name, value in entry.items()
        if name != "n" and not name.endswith("_standard_error")
    }
