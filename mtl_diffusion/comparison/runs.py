"""The runs of a comparison: started, continued, or reused if finished."""

import subprocess
from collections.abc import Sequence
from pathlib import Path

from ..checkpoints.resume import MAY_CHANGE
from ..checkpoints.store import load_latest
from ..config import TrainConfig, differences, resolved, to_dict
from ..config.network import with_network
from ..launch.stop import STOPPED
from ..publishing.export import PIPELINE
from ..tools.files import write_text


def ensure_trained(config: TrainConfig, command: Sequence[str]) -> None:
    """Trains in a subprocess, unless output_dir has this run, complete and exported.

    Args:
        command: starts scripts/train.py; the flags are appended.

    Raises:
        ValueError: the folder has a run of another configuration.
        RuntimeError: the run failed, for a reason that is in its output, or was stopped after a
            checkpoint.
    """
    folder = Path(config.output_dir)
    newest, _ = load_latest(folder / "checkpoints")
    if newest is not None:
        # Resuming may change the length of a run, but its learning rates then differ.
        allowed = MAY_CHANGE - {"max_train_steps"}
        if lines := differences(newest.facts["config"], to_dict(with_network(config)), allowed):
            raise ValueError(
                f"{folder} has a run of another configuration; move it away, or choose another "
                "output_dir:" + "".join(f"\n  {line}" for line in lines)
            )
        exported = (folder / PIPELINE / "model_index.json").exists()
        if exported and newest.step == config.max_train_steps:
            return
    folder.mkdir(parents=True, exist_ok=True)
    write_text(folder / "config.yaml", resolved(config))
    code = subprocess.run([*command, "--config", str(folder / "config.yaml")]).returncode
    if code == STOPPED:
        raise RuntimeError(f"{folder} was stopped; run the same command again to continue")
    if code:
        raise RuntimeError(f"{folder}: training exited with {code}")
