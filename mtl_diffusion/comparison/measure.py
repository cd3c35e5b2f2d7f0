"""Figures of a trained model: held-out losses, and the summary of its scorecard."""

import json
import subprocess
from collections.abc import Sequence
from pathlib import Path

import torch

from ..config import TrainConfig
from ..data.images import ImageDataset
from ..pipeline.pipeline import MultiTaskPipeline
from ..publishing.export import PIPELINE
from ..training.losses import Objective
from ..training.mixture import Mixture
from ..training.validation import held_out_loss

_DATA = ("dataset_name", "dataset_config_name", "train_split", "validation_split")
_DATA += ("image_column", "label_column")


def losses(run: Path, data: ImageDataset, num_images: int) -> dict[str, dict[str, float]]:
    """Task -> noise level -> held-out loss, of the model that was trained in the folder `run`."""
    pipe = MultiTaskPipeline.from_pretrained(run / PIPELINE)
    pipe.to("cuda" if torch.cuda.is_available() else "cpu")
    tasks = tuple(pipe.spec(name) for name in pipe.tasks)
    mixture = Mixture(tasks, (1.0,) * len(tasks), pipe.vocabulary, pipe.format)
    objective = Objective(pipe.unet, pipe.scheduler)
    data = data.relabelled(pipe.class_names)
    found = held_out_loss(objective, pipe.unet, mixture, data, num_images)
    return {
        task: {level: loss.mean().item() for level, loss in levels.items()}
        for task, levels in found.items()
    }


def scores(config: TrainConfig, command: Sequence[str]) -> dict[str, float]:
    """The summary of the scorecard, flat, of the tasks that were trained and have a part in it.

    Standard errors are left out. Again, no image is drawn again.

    Args:
        config: the model's, whose held-out data is used.
        command: starts scripts/evaluate.py, with the flags of how much is measured; the others are
            appended.

    Raises:
        RuntimeError: it failed; the reason is in its output.
    """
    parts = [part for part in ("generate", "inpaint", "edit") if part in config.shares]
    if not parts:
        return {}
    run = Path(config.output_dir)
    given = {name: value for name in _DATA if (value := getattr(config, name)) is not None}
    given |= {"pipeline": run / PIPELINE, "output_dir": run / "scores"}
    flags = [text for name, value in given.items() for text in (f"--{name}", str(value))]
    if code := subprocess.run([*command, *flags, "--parts", *parts]).returncode:
        raise RuntimeError(f"{run}: the evaluation exited with {code}")
    summary = json.loads((run / "scores/metrics.json").read_text())["summary"]
    return {
        f"{part}, {setting}, {name}": value
        for part, settings in summary.items()
        for setting, entry in settings.items()
        for name, value in entry.items()
        if name != "n" and not name.endswith("_standard_error")
    }
