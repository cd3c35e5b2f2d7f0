"""Comparisons: the arms, the figures by hand, and a whole one of models of 8 channels."""

import json
import shutil
from pathlib import Path

import pytest
from in_process import run_script
from PIL import Image
from tables import write_images
from tiny import MODEL, flags, write_shapes

from mtl_diffusion.comparison.arms import Arm, configure, named_arms, read_arms
from mtl_diffusion.comparison.compare import compare
from mtl_diffusion.comparison.report import (
    MEAN,
    changes,
    loss_table,
    scorecard_table,
)
from mtl_diffusion.config import ConfigError, TrainConfig
from mtl_diffusion.pipeline.pipeline import TASKS

ROOT = Path(__file__).parents[2]
BASE = TrainConfig(tasks={"generate": 2, "inpaint": 1, "edit": 1}, total_batch_size=32)


def images_of_a_task(arm):
    """Task -> samples that a run sees."""
    config = configure(arm, BASE, 0, Path("x"))
    images = config.max_train_steps * config.total_batch_size
    return {task: round(images * share) for task, share in config.shares.items()}


@pytest.mark.parametrize("budget", ["per_task", "total"])
def test_subsets_see_equal_images_of_a_task_or_in_total(budget):
    joint, *parts = named_arms("subsets", BASE, [budget])
    assert len({tuple(arm.changes["tasks"]) for arm in [*parts, joint]}) == 7
    joint = images_of_a_task(joint)
    assert sum(joint.values()) == BASE.max_train_steps * 32
    for arm in parts:
        images = images_of_a_task(arm)
        if budget == "per_task":
            assert images == {task: joint[task] for task in arm.changes["tasks"]}
        else:
            assert sum(images.values()) == sum(joint.values())


def test_both_budgets_share_the_joint_arm():
    arms = named_arms("alone", BASE, ["per_task", "total"])
    assert [arm.name for arm in arms] == [
        "generate+inpaint+edit",
        *("generate.per_task", "inpaint.per_task", "edit.per_task"),
        *("generate.total", "inpaint.total", "edit.total"),
    ]
    (one,) = named_arms("alone", TrainConfig(tasks={"edit": 1}), ["total"])
    assert one.name == "edit"


@pytest.mark.parametrize("path", sorted(ROOT.glob("configs/comparisons/*.yaml")), ids=str)
def test_the_arms_that_are_shipped_are_configurations_without_fault(path):
    arms = read_arms(path)
    assert len(arms) > 1
    for arm in arms:
        config = configure(arm, BASE, 3, Path("x"), arm.source and Path("old"))
        assert (config.seed, config.output_dir) == (3, "x")
        assert config.pretrained_model_name_or_path == (arm.source and "old")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[1]", "must hold lines such as"),
        ("a: 1", "must hold lines such as"),
        ("a/b: {}", "found the name 'a/b'"),
        ("a: {from: b}\nb: {}", "a starts from b, which is no earlier arm"),
        ("a: {seed: 1}", "a changes seed"),
        ("a: {}\na: {}", "is not YAML: given twice: a"),
    ],
)
def test_a_file_that_does_not_hold_arms_is_refused(text, words, tmp_path):
    (tmp_path / "arms.yaml").write_text(text)
    with pytest.raises(ValueError, match=words):
        read_arms(tmp_path / "arms.yaml")


def test_every_fault_of_an_arm_names_it(tmp_path):
    with pytest.raises(ConfigError, match="wrong: learning_rat: unknown field"):
        configure(Arm("wrong", {"learning_rat": 1}), BASE, 0, tmp_path)
    with pytest.raises(ConfigError, match=r"wrong: learning_rate: found -1; must be"):
        compare([Arm("wrong", {"learning_rate": -1})], BASE, [0], tmp_path, 8, ["false"])
    assert not list(tmp_path.iterdir())


# Two seeds; b is trained alone, a alone, and both jointly.
LOSSES = {
    "a": {0: {"a": {"low": 3.0, "high": 1.0}}, 1: {"a": {"low": 1.0, "high": 1.0}}},
    "b": {0: {"b": {"low": 1.0, "high": 1.0}}, 1: {"b": {"low": 2.0, "high": 2.0}}},
    "a+b": {
        0: {"a": {"low": 1.5, "high": 1.5}, "b": {"low": 1.0, "high": 2.0}},
        1: {"a": {"low": 1.5, "high": 1.0}, "b": {"low": 2.0, "high": 2.0}},
    },
}


def test_every_seed_is_compared_with_the_first_arm_that_has_the_task():
    found = changes(LOSSES)
    assert found["a"] == found["b"] == {}
    joint = found["a+b"]
    assert joint["a"]["low"].values == (-0.5, 0.5) and joint["a"]["high"].values == (0.5, 0)
    assert joint["a"][MEAN].values == (-0.25, 0.25) and joint["b"][MEAN].values == (0.5, 0)
    assert joint["b"][MEAN].mean == 0.25 and joint["b"][MEAN].std == pytest.approx(0.5 / 2**0.5)


def test_the_tables_by_hand():
    lines = loss_table(LOSSES, changes(LOSSES)).splitlines()
    assert lines[0] == "| arm | a | b | mean change |"
    assert lines[2] == "| a | 1.5000 ± 0.7071 |  |  |"
    # a changes by -25 and 25 %, b by 50 and 0 %: the means of the seeds are 12.5 and 12.5 %.
    assert lines[4].startswith("| a+b | 1.3750 ± 0.1768 (+0.0 ± 35.4 %) | 1.7500 ± 0.3536 (+25.0")
    assert lines[4].endswith("| +12.5 ± 0.0 % |")
    figures = {"a": {0: {"x": 1.0}, 1: {"x": 2.0}}, "b": {0: {}, 1: {"y": 0.5}}}
    assert scorecard_table(figures).splitlines()[2:] == ["| x | 1.5 ± 0.71 |  |", "| y |  | 0.5 |"]
    assert scorecard_table({"a": {0: {}}}) == ""


def test_runs_that_are_compared_need_a_number_of_steps(tmp_path, monkeypatch, capsys):
    minutes = ("--max_train_steps", "null", "--max_train_minutes", "5")
    given = ("--output_dir", tmp_path, *minutes)
    assert run_script("compare_tasks.py", *given, monkeypatch=monkeypatch) == 2
    assert "max_train_steps: found null" in capsys.readouterr().err


@pytest.mark.slow
def test_a_whole_comparison_and_the_same_again(tmp_path, monkeypatch, capsys):
    """A new task, from a model of two others; then again, after one of the runs was lost."""
    arms = tmp_path / "arms.yaml"
    arms.write_text(
        "old: {tasks: {generate: 1, edit: 1}}\n"
        "token: {from: old, tasks: {colorize: 1}, train_only: tokens}\n"
    )
    folder = tmp_path / "out"
    given = [
        *("--arms", str(arms), "--output_dir", str(folder), "--seeds", "0", "--num_images", "8"),
        *("--dataset_name", write_shapes(tmp_path / "data", 40, 16), *flags(**MODEL)),
        *("--max_train_steps", "3", "--total_batch_size", "8"),
        *("--validation_images", "2", "--report_to", "none", "--num_threads", "1"),
    ]

    def command(*more):
        return run_script("compare_tasks.py", *given, *more, monkeypatch=monkeypatch)

    assert command() == 0
    printed = capsys.readouterr().out
    assert "| token |" in printed and (folder / "comparison.md").read_text() in printed
    report = json.loads((folder / "comparison.json").read_text())
    assert report["num_images"] == 8
    measured = {arm: set(runs["0"]) for arm, runs in report["losses"].items()}
    assert measured["old"] == {"generate", "edit"} == set(report["changes"]["token"])
    assert measured["token"] == {"generate", "edit", "colorize"}
    assert Image.open(folder / "changes.png").width > 400

    # One run is lost: it alone is trained again, and it comes out the same.
    lost = folder / "runs/token.seed0"
    times = {p: p.stat().st_mtime_ns for p in folder.glob("runs/*/checkpoints/*/manifest.json")}
    shutil.rmtree(lost)
    assert command() == 0
    for path, before in times.items():
        assert (path.stat().st_mtime_ns == before) == (lost not in path.parents)
    again = json.loads((folder / "comparison.json").read_text())
    assert again["losses"] == report["losses"] and len(times) == 2
    assert command("--learning_rate", "0.5") == 2
    assert "another configuration" in capsys.readouterr().err


def test_task_tokens_writes_a_table_and_a_plot(pipe, tmp_path, monkeypatch, capsys):
    pipe.save_pretrained(tmp_path / "pipeline")
    places = [(split, name) for split in ("train", "test") for name in ("cat", "dog", "ship")]
    write_images(tmp_path / "data", *(f"{s}/{name}/{i}.png" for s, name in places for i in "123"))
    given = (
        *("--pipeline", tmp_path / "pipeline", "--dataset_name", tmp_path / "data"),
        *("--num_images", "6", "--output_dir", tmp_path / "out"),
    )
    assert run_script("task_tokens.py", *given, monkeypatch=monkeypatch) == 0
    printed = capsys.readouterr().out
    report = json.loads((tmp_path / "out/task_tokens.json").read_text())
    assert report["num_images"] == 6 and list(report["loss"]) == list(TASKS)
    for task, tokens in report["loss"].items():
        assert next(iter(tokens)) == task and set(tokens) == {*TASKS, "null"}
        for token, levels in tokens.items():
            for level, entry in levels.items():
                right = tokens[task][level]["loss"]
                assert entry["loss"] - right == pytest.approx(entry["excess"], abs=3e-5)
                assert entry["standard_error"] >= 0 and (token == task) == (entry["excess"] == 0)
    assert Image.open(tmp_path / "out/task_tokens.png").width > 400
    assert printed.count("| wrong: ") == 12 and printed.count("| none |") == 4
