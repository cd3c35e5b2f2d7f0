"""The runs of a comparison: started, continued, or reused if they are finished."""

import subprocess
from collections.abc import Sequence
from pathlib import Path

from ..checkpoints.resume import MAY_CHANGE
from ..checkpoints.store import load_latest
from ..config import TrainConfig, differences, resolved, to_dict
from ..launch.stop import STOPPED
from ..publishing.export import PIPELINE
from ..tools.files import write_text


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
    if lines := differences(newest.facts["config"], to_dict(config), allowed):
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
