"""Comparisons: arms, runs, figures by hand, and a whole comparison of models of 8 channels."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from in_process import run_script
from metrics import SUMMARY
from tiny import RUN, flags, write_shapes

from mtl_diffusion.commands import evaluate
from mtl_diffusion.comparison.arms import Arm, configure, read_arms
from mtl_diffusion.comparison.compare import compare
from mtl_diffusion.comparison.measure import scores
from mtl_diffusion.comparison.report import changes, loss_table, scorecard_table
from mtl_diffusion.config import TrainConfig
from mtl_diffusion.evaluation.settings import PRESETS

SHIPPED = Path(__file__).parents[2] / "configs/comparisons"
BASE = TrainConfig(max_train_steps=4)


@pytest.mark.parametrize("path", sorted(SHIPPED.glob("*.yaml")), ids=lambda path: path.name)
def test_the_arms_that_are_shipped_are_configurations_without_fault(path):
    arms = read_arms(path)
    first, *others = configs = [
        configure(arm, BASE, 3, Path(arm.name), arm.source and Path("old")) for arm in arms
    ]
    for arm, config in zip(arms, configs, strict=True):
        assert (config.seed, config.output_dir) == (3, arm.name)
        assert config.pretrained_model_name_or_path == (arm.source and "old")
    if path.stem not in ("alone", "subsets"):
        return
    # A step has as many samples of a task, or in total, as one of all tasks.
    for config in others:
        total, batch = config.output_dir.endswith(".total"), config.total_batch_size
        samples = {task: share * batch for task, share in config.shares.items()}
        joint = {task: first.shares[task] * first.total_batch_size for task in samples}
        assert batch == first.total_batch_size if total else samples == pytest.approx(joint)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("{}", "must hold lines such as"),
        ("a: 1", "must hold lines such as"),
        ("a/b: {}", "the name is 'a/b'"),
        ("a: {from: b}\nb: {}", "a starts from b, which is no earlier arm"),
        ("a: {seed: 1}", "a changes seed"),
        ("a: {", "is not YAML"),
    ],
)
def test_a_file_that_does_not_hold_arms_is_refused(text, words, tmp_path):
    (tmp_path / "arms.yaml").write_text(text)
    with pytest.raises(ValueError, match=words):
        read_arms(tmp_path / "arms.yaml")


def test_every_run_is_checked_before_any_is_trained(tmp_path):
    endless = replace(BASE, max_train_steps=None, max_train_minutes=1)
    for base, changed, words in (
        (BASE, {"learning_rat": 1}, "wrong: learning_rat: unknown field"),
        (BASE, {"learning_rate": -1}, r"wrong: learning_rate: found -1; must be"),
        (endless, {}, "max_train_steps is null"),
    ):
        with pytest.raises(ValueError, match=words):
            compare([Arm("fine", {}), Arm("wrong", changed)], base, [0], tmp_path, 8, ["false"])
    assert not list(tmp_path.iterdir())


def test_a_model_is_scored_with_the_flags_of_its_tasks_and_data(tmp_path, monkeypatch):
    started, codes = [], [0, 2]

    def run(command):
        started.append(command)
        return subprocess.CompletedProcess(command, codes.pop(0))

    monkeypatch.setattr(subprocess, "run", run)
    config = replace(BASE, output_dir=str(tmp_path), tasks={"edit": 1, "colorize": 1})
    (tmp_path / "scores").mkdir()
    (tmp_path / "scores/metrics.json").write_text(json.dumps({"summary": SUMMARY}))
    figures = scores(config, ["evaluate.py", "--preset", "smoke"])
    assert figures["edit, strength_0.65, class_accuracy"] == 0.625
    assert not any("standard_error" in name for name in figures)
    monkeypatch.setattr(sys, "argv", [*started[0], "--classifier", "x"])
    args, settings = evaluate.parse()
    assert args.parts == ["edit"] and settings == PRESETS["smoke"]
    assert args.dataset_name == "shapes" and args.image_column is None
    assert args.pipeline == f"{tmp_path}/pipeline" and args.output_dir == tmp_path / "scores"
    with pytest.raises(RuntimeError, match="the evaluation exited with 2"):
        scores(config, ["evaluate.py"])
    assert scores(replace(config, tasks={"colorize": 1}), []) == {} and not codes  # no part of it


def test_every_seed_is_compared_with_the_first_arm_that_has_the_task():
    # a is trained alone, b alone, and both jointly; two seeds; two noise levels and their mean.
    losses = {
        "a": {"a": np.array([[3.0, 1.0, 2.0], [1.0, 1.0, 1.0]])},
        "b": {"b": np.array([[1.0, 1.0, 1.0], [2.0, 2.0, 2.0]])},
        "a+b": {
            "a": np.array([[1.5, 1.5, 1.5], [1.5, 1.0, 1.25]]),
            "b": np.array([[1.0, 2.0, 1.5], [2.0, 2.0, 2.0]]),
        },
    }
    changed = changes(losses)
    assert changed["a"] == changed["b"] == {}
    assert changed["a+b"]["a"].tolist() == [[-50, 50, -25], [50, 0, 25]]
    assert changed["a+b"]["b"].tolist() == [[0, 100, 50], [0, 0, 0]]
    lines = loss_table(losses, changed).splitlines()
    assert lines[0] == "| arm | a | b |"
    assert lines[2] == "| a | 1.5000 ± 0.7071 |  |"
    assert lines[4].startswith("| a+b | 1.3750 ± 0.1768 (+0.0 ± 35.4 %) | 1.7500 ± 0.3536 (+25.0")
    figures = {"a": [{"x": 1.0}, {"x": 2.0}], "b": [{}, {"y": 0.5}]}
    assert scorecard_table(figures).splitlines()[2:] == ["| x | 1.5 ± 0.71 |  |", "| y |  | 0.5 |"]


@pytest.mark.slow
def test_a_whole_comparison_and_the_same_again(tmp_path, monkeypatch, capsys, forking_python):
    """A new task, from a model of two others; then again, which trains nothing."""
    arms, folder = tmp_path / "arms.yaml", tmp_path / "out"
    token = "token: {from: old, tasks: {colorize: 1}, train_only: tokens}"
    arms.write_text(f"old: {{tasks: {{generate: 1, edit: 1}}}}\n{token}\n")
    fields = {**RUN, "dataset_name": write_shapes(tmp_path / "data", 40, 16)}
    given = ["--arms", arms, "--output_dir", folder, "--seeds", 0, "--num_images", 8]
    given += flags(**fields)
    monkeypatch.setattr(sys, "executable", forking_python)  # which its runs are started with

    def command(*more):
        return run_script("compare_tasks.py", *given, *more, monkeypatch=monkeypatch)

    assert command() == 0
    table = (folder / "comparison.md").read_text()
    assert "| token |" in table and table in capsys.readouterr().out
    report = json.loads((folder / "comparison.json").read_text())
    levels, losses = report["noise_levels"], report["losses"]
    assert set(losses["old"]) == {"generate", "edit"} == set(report["changes_in_percent"]["token"])
    assert set(losses["token"]) == {"generate", "edit", "colorize"}
    assert np.shape(losses["old"]["edit"]) == (1, len(levels)) and levels[-1] == "mean"

    runs = {path: path.stat().st_mtime_ns for path in folder.glob("runs/*/checkpoints/*/*.json")}
    assert command() == 0 and (folder / "comparison.md").read_text() == table
    assert {path: path.stat().st_mtime_ns for path in runs} == runs and len(runs) >= 2
    assert "old.seed0: training exited with 2" in command("--learning_rate", "0.5")
