"""Runs of a comparison: finished ones are reused, others are continued, wrong ones are refused."""

import shutil
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from mtl_diffusion.checkpoints.store import Checkpoint
from mtl_diffusion.checkpoints.store import save as save_checkpoint
from mtl_diffusion.comparison.runs import SCORES, WEIGHTS, Stopped, ensure_scored, ensure_trained
from mtl_diffusion.config import TrainConfig, to_dict
from mtl_diffusion.evaluation.settings import PRESETS, read_flags

BASE = TrainConfig(tasks={"generate": 2, "inpaint": 1, "edit": 1}, total_batch_size=32)
CHILD = "import sys; open(sys.argv[1], 'a').write('x'); sys.exit(int(sys.argv[2]))"


@pytest.fixture
def started(tmp_path):
    """A command that logs each start, and exits with the given code."""
    log = tmp_path / "started"
    log.touch()

    def command(code=0):
        return [sys.executable, "-c", CHILD, str(log), str(code)]

    return log, command


def pretend(config, step, without=None):
    """What a run leaves after so many steps. without: a field that was not known then."""
    folder = Path(config.output_dir)
    facts = {"config": {k: v for k, v in to_dict(config).items() if k != without}}
    checkpoint = Checkpoint(step, {"unet": {"w": torch.zeros(1)}}, facts)
    save_checkpoint(folder / "checkpoints", checkpoint)
    (folder / "pipeline").mkdir(exist_ok=True)
    (folder / "pipeline/model_index.json").write_text("{}")


def test_a_finished_run_is_reused_and_an_unfinished_one_goes_on(tmp_path, started):
    log, command = started
    config = replace(BASE, max_train_steps=4, output_dir=str(tmp_path / "run"))
    assert ensure_trained(config, command()) == tmp_path / "run/pipeline"
    assert log.read_text() == "x" and (tmp_path / "run/config.yaml").exists()
    pretend(config, 2)
    ensure_trained(config, command())
    assert log.read_text() == "xx"
    pretend(config, 4)
    ensure_trained(config, command())
    assert log.read_text() == "xx"
    shutil.rmtree(tmp_path / "run/pipeline")  # it was killed before the export
    ensure_trained(config, command())
    assert log.read_text() == "xxx"


def test_a_run_of_before_a_field_was_added_is_reused(tmp_path, started):
    log, command = started
    config = replace(BASE, max_train_steps=4, output_dir=str(tmp_path / "run"))
    pretend(config, 4, without="token_paths")
    ensure_trained(config, command())
    with pytest.raises(ValueError, match='token_paths: the checkpoint has "both"'):
        ensure_trained(replace(config, token_paths="embedding"), command())
    assert log.read_text() == ""


def test_a_run_that_stops_or_fails_ends_the_comparison(tmp_path, started):
    _, command = started
    config = replace(BASE, output_dir=str(tmp_path / "run"))
    with pytest.raises(Stopped, match="run the same command again"):
        ensure_trained(config, command(75))
    with pytest.raises(RuntimeError, match="training exited with 2"):
        ensure_trained(config, command(2))


def test_a_pipeline_is_scored_once_with_the_flags_of_its_tasks_and_data(
    tmp_path, started, monkeypatch
):
    log, command = started
    script = "import sys; open(sys.argv[1], 'a').write(' '.join(sys.argv[2:]) + '\\n')"
    line = [sys.executable, "-c", script, str(log)]
    config = replace(BASE, tasks={"edit": 1, "colorize": 1}, output_dir=str(tmp_path / "run"))
    weights = tmp_path / "run/pipeline" / WEIGHTS
    weights.parent.mkdir(parents=True)
    (tmp_path / "run" / SCORES).parent.mkdir()
    weights.write_bytes(b"1")
    ensure_scored(config, [*line, "--preset", "smoke"])
    ensure_scored(config, [*line, "--preset", "smoke"])
    (once,) = log.read_text().splitlines()
    assert once.startswith("--preset smoke --dataset_name shapes")
    assert f"--pipeline {tmp_path}/run/pipeline --output_dir {tmp_path}/run/scores" in once
    assert once.endswith("--parts edit") and "column" not in once
    monkeypatch.setattr(sys, "argv", ["evaluate.py", *once.split(), "--classifier", "x"])
    args, settings = read_flags("The flags are those that the script reads.")
    assert args.parts == ["edit"] and settings == PRESETS["smoke"]
    weights.write_bytes(b"2")  # other weights, then other flags
    ensure_scored(config, [*line, "--preset", "smoke"])
    ensure_scored(config, [*line, "--preset", "full"])
    assert len(log.read_text().splitlines()) == 3
    with pytest.raises(RuntimeError, match="the evaluation exited with 2"):
        ensure_scored(config, command(2))
    ensure_scored(replace(config, tasks={"colorize": 1}), command(2))  # the scorecard has no part
