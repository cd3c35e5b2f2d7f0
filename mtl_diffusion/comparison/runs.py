"""The runs of a comparison: started, continued, or reused if finished; and their scores."""

import hashlib
import json
import subprocess
from collections.abc import Sequence
from pathlib import Path

from ..checkpoints.resume import MAY_CHANGE, config_of
from ..checkpoints.store import load_latest
from ..config import TrainConfig, differences, resolved, to_dict
from ..launch.stop import STOPPED
from ..publishing.export import PIPELINE
from ..tools.files import write_text

WEIGHTS = Path("unet", "diffusion_pytorch_model.safetensors")
SCORES = Path("scores", "metrics.json")  # in the folder of a run
_DATA = ("dataset_name", "dataset_config_name", "train_split", "validation_split")
_DATA += ("image_column", "label_column")
_PARTS = ("generate", "inpaint", "edit")  # of the scorecard; they have the names of their tasks


class Stopped(RuntimeError):
    """A run was stopped by a signal, after a checkpoint; the same command continues it."""


def finished(config: TrainConfig) -> bool:
    """Whether the output_dir holds the run of this configuration, complete and exported.

    Raises:
        ValueError: the folder has a run of another configuration.
    """
    folder = Path(config.output_dir)
    newest, _ = load_latest(folder / "checkpoints")
    if newest is None:
        return False
    # Resuming may change the length of a run, but its learning rates then differ.
    allowed = MAY_CHANGE - {"max_train_steps"}
    if lines := differences(config_of(newest), to_dict(config), allowed):
        raise ValueError(
            f"{folder} has a run of another configuration; move it away, or choose another "
            "output_dir:" + "".join(f"\n  {line}" for line in lines)
        )
    exported = (folder / PIPELINE / "model_index.json").exists()
    return exported and newest.step == config.max_train_steps


def ensure_trained(config: TrainConfig, command: Sequence[str]) -> Path:
    """Trains in a subprocess unless the run is finished; returns the exported pipeline.

    Args:
        command: starts scripts/train.py; the flags are appended.

    Raises:
        ValueError: the folder has a run of another configuration.
        Stopped: the run was stopped after a checkpoint.
        RuntimeError: the run failed; the reason is in its output.
    """
    folder = Path(config.output_dir)
    if not finished(config):
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / "config.yaml"
        write_text(path, resolved(config))
        code = subprocess.run([*command, "--config", str(path)]).returncode
        if code == STOPPED:
            raise Stopped(f"{folder} was stopped; run the same command again to continue")
        if code:
            raise RuntimeError(f"{folder}: training exited with {code}")
    return folder / PIPELINE


def ensure_scored(config: TrainConfig, command: Sequence[str]) -> None:
    """Evaluates an exported pipeline in a subprocess, unless its weights were so evaluated before.

    Args:
        command: starts scripts/evaluate.py, with the flags of how much is measured. The pipeline,
            the data, the folder, and the parts of the tasks that were trained are appended.

    Raises:
        RuntimeError: it failed; the reason is in its output.
    """
    folder = Path(config.output_dir)
    given = {name: value for name in _DATA if (value := getattr(config, name)) is not None}
    given |= {"pipeline": folder / PIPELINE, "output_dir": folder / SCORES.parent}
    flags = [text for name, value in given.items() for text in (f"--{name}", str(value))]
    parts = [part for part in _PARTS if part in config.shares]
    line = [*command, *flags, "--parts", *parts]
    note = folder / SCORES.with_name("evaluated.json")
    key = json.dumps({"weights": weights_hash(folder / PIPELINE), "command": line}, indent=2)
    if not parts or (note.exists() and note.read_text() == key):
        return
    if code := subprocess.run(line).returncode:
        raise RuntimeError(f"{folder}: the evaluation exited with {code}")
    write_text(note, key)


def weights_hash(pipeline: Path) -> str:
    """The SHA-256 of the weights of an exported pipeline."""
    return hashlib.sha256((pipeline / WEIGHTS).read_bytes()).hexdigest()
