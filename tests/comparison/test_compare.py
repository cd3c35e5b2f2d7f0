"""Whether the tasks help each other: figures by hand, runs that are reused, and all of it once."""

import json
import math
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from matplotlib.axes import Axes
from PIL import Image
from tiny import MODEL, flags, write_shapes
from torch import tensor

from mtl_diffusion.checkpoints.store import Checkpoint
from mtl_diffusion.checkpoints.store import save as save_checkpoint
from mtl_diffusion.comparison import gradients
from mtl_diffusion.comparison.arms import AGGREGATIONS, Arm, configure, images_of_a_task, plan
from mtl_diffusion.comparison.launch import Stopped, ensure_trained
from mtl_diffusion.comparison.measure import LOSS, Metric, Score, loss_scores, metric_scores
from mtl_diffusion.comparison.report import (
    Spread,
    delta_m,
    loss_gap,
    plain,
    relative_change,
    rows_of,
    table,
)
from mtl_diffusion.config import TrainConfig, limits, to_dict
from mtl_diffusion.data.images import ImageDataset
from mtl_diffusion.pictures.task_plots import diverging
from mtl_diffusion.pipeline.pipeline import TASKS

ROOT = Path(__file__).parents[2]
BASE = TrainConfig(tasks={"generate": 2, "inpaint": 1, "edit": 1}, total_batch_size=32)
THREE = ("generate", "inpaint", "edit")


# --- what is trained ----------------------------------------------------------------------------


def test_all_seven_subsets_are_there_and_the_parts_at_both_budgets():
    arms = plan(THREE, ["uncertainty", "upgrad"], subsets=True)
    assert len({arm.tasks for arm in arms}) == 7
    assert [arm.weighting for arm in arms if arm.tasks == THREE] == ["uncertainty", "upgrad"]
    for part in {arm.tasks for arm in arms} - {THREE}:
        assert {arm.budget for arm in arms if arm.tasks == part} == {"per-task", "total"}
    assert {len(arm.tasks) for arm in plan(THREE, ["sum"], subsets=False)} == {1, 3}
    names = [arm.run(seed) for arm in arms for seed in (0, 1)]
    assert len(set(names)) == len(names)


def test_the_budgets_are_equal_images_per_task_and_in_total(tmp_path):
    joint = images_of_a_task(configure(Arm(THREE, "total", "sum"), BASE, 0, tmp_path))
    assert sum(joint.values()) == BASE.max_train_steps * 32
    for arm in plan(THREE, ["sum"], subsets=True)[1:]:
        images = images_of_a_task(configure(arm, BASE, 0, tmp_path))
        if arm.budget == "per-task":
            assert images == {task: joint[task] for task in arm.tasks}
        else:
            assert sum(images.values()) == sum(joint.values())


@pytest.mark.parametrize("weighting", ["uncertainty", "sum", "fixed", *AGGREGATIONS])
def test_every_arm_is_a_configuration_without_fault(weighting, tmp_path):
    for arm in plan(THREE, [weighting], subsets=True):
        config = configure(arm, BASE, 3, tmp_path)
        assert not limits.faults(config, list(TASKS))
        assert (config.seed, config.max_train_steps) == (3, BASE.max_train_steps)
    fixed = configure(Arm(THREE, "total", "fixed"), BASE, 0, tmp_path)
    assert fixed.task_weights == {"generate": 1.5, "inpaint": 0.75, "edit": 0.75}


# --- figures ------------------------------------------------------------------------------------


def test_a_change_is_positive_where_it_is_better():
    assert relative_change(Score(1.0, False, 9), Score(2.0, False, 9)) == 0.5
    assert relative_change(Score(0.4, True, 9), Score(0.5, True, 9)) == pytest.approx(-0.2)
    assert relative_change(Score(-3.0, True, 9), Score(-4.0, True, 9)) == 0.25
    assert math.isnan(relative_change(Score(0.4, True, 9), Score(0.0, True, 9)))


def test_delta_m_by_hand():
    changes = {"a": {"x": 0.5, "y": -0.1}, "b": {"x": -0.3}, "c": {"x": math.nan}}
    assert delta_m(changes) == pytest.approx((0.2 - 0.3) / 2)


def scored(value, metric=LOSS, higher=False):
    return {metric: Score(value, higher, 10)}


def test_every_seed_is_held_against_the_tasks_alone_of_its_own():
    tasks = ("a", "b")
    arms = plan(tasks, ["sum", "upgrad"], subsets=False)
    values = {  # of the tasks alone, by budget and seed
        ("per-task", 0): (2.0, 1.0),
        ("per-task", 1): (4.0, 1.0),
        ("total", 0): (1.0, 0.5),
        ("total", 1): (1.0, 0.5),
    }
    scores = {}
    for seed in (0, 1):
        for weighting, value in (("sum", 1.0), ("upgrad", 0.5)):
            joint = {task: scored(value) for task in tasks}
            scores[Arm(tasks, "total", weighting), seed] = joint
        for budget in ("per-task", "total"):
            for task, value in zip(tasks, values[budget, seed], strict=True):
                scores[Arm((task,), budget, "sum"), seed] = {task: scored(value)}
    rows = {(arm.weighting, budget): change for arm, budget, change in rows_of(arms, scores)}
    assert set(rows) == {(w, b) for w in ("sum", "upgrad") for b in ("per-task", "total")}
    assert rows["sum", "per-task"]["tasks"]["a"][LOSS].values == (0.5, 0.75)
    assert rows["sum", "per-task"]["tasks"]["b"][LOSS].values == (0, 0)
    assert rows["sum", "per-task"]["delta_m"].values == (0.25, 0.375)
    assert rows["sum", "total"]["delta_m"].values == (-0.5, -0.5)
    assert rows["upgrad", "total"]["delta_m"].mean == pytest.approx(0.25)
    text = table(rows_of(arms, scores), tasks)
    assert "| a + b | sum | per task | +62.5 ± 17.7 % | +0.0 ± 0.0 % | +31.2 ± 8.8 % |" in text


def test_the_gap_of_the_losses_by_noise_level():
    joint, alone = Arm(("a", "b"), "total", "sum"), {t: Arm((t,), "total", "sum") for t in "ab"}
    losses = {(joint, 0): {"a": {"low": 3.0, "high": 1.0}, "b": {"low": 1.0, "high": 1.0}}}
    losses[alone["a"], 0] = {"a": {"low": 2.0, "high": 2.0}}
    losses[alone["b"], 0] = {"b": {"low": 1.0, "high": 4.0}}
    gap = loss_gap(joint, "total", "sum", losses)
    means = {task: [spread.mean for spread in levels.values()] for task, levels in gap.items()}
    assert means == {"a": [0.5, -0.5], "b": [0.0, -0.75]}


def test_the_loss_of_a_task_is_the_mean_of_its_levels():
    scores = loss_scores({"a": {"low": 1.0, "high": 3.0}}, 7)
    assert scores == {"a": {LOSS: Score(2.0, False, 7)}}


def test_figures_are_found_by_their_path_and_carry_their_n():
    entry = {"accuracy": 0.5, "n": 20}
    metrics = {
        "summary": {
            "generate": {"x": entry, "floor": entry, "xy": {"other": 1}},
            "edit": {"z": entry},
        }
    }
    metrics["likelihood"] = {"bits_per_dim": 3.5}  # of no n: not taken
    wanted = (
        Metric("generate", "summary.generate.x*.accuracy", True),
        Metric("generate", "likelihood.bits_per_dim", False),
        Metric("edit", "summary.edit.*.accuracy", True),
        Metric("inpaint", "summary.inpaint.*.psnr", True),
    )
    found = metric_scores(metrics, wanted, ["generate", "inpaint"])
    name = "summary.generate.x.accuracy"
    assert found == {"generate": {name: Score(0.5, True, 20)}, "inpaint": {}}


def test_json_has_no_nan():
    written = plain({"a": Spread.of([1.0]), "b": [math.nan]})
    assert written == {"a": {"mean": 1.0, "std": None, "values": [1.0]}, "b": [None]}


# --- gradients ----------------------------------------------------------------------------------


def test_cosines_of_quadratics():
    w = tensor([0.0, 0.0], requires_grad=True)
    centres = tensor([[1.0, 0.0], [1.0, 1.0], [-2.0, 0.0], [0.0, 3.0]])
    rows = torch.stack([torch.autograd.grad((w - c).square().sum(), w)[0] for c in centres])
    half = 0.5**0.5
    expected = tensor(
        [[1, half, -1, 0], [half, 1, -half, half], [-1, -half, 1, 0], [0, half, 0, 1]]
    )
    torch.testing.assert_close(gradients.cosines(rows, rows), expected, atol=1e-6, rtol=0)


def dataset(n=8):
    random = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (n, 3, 8, 8), generator=random, dtype=torch.uint8)
    return ImageDataset.of(images, torch.arange(n) % 3, ("cat", "dog", "ship"))


def test_a_task_and_itself_agree_wholly_and_a_task_and_its_opposite_not_at_all(
    build_pipe, monkeypatch
):
    pipe, loss, calls = build_pipe(), gradients.denoising_loss, []

    def every_third_negated(*arguments):
        calls.append(None)
        return loss(*arguments) * (-1 if len(calls) % 3 == 0 else 1)

    monkeypatch.setattr(gradients, "denoising_loss", every_third_negated)
    edit = TASKS["edit"]
    found = gradients.gradient_cosines(pipe, [edit, edit, edit], dataset(), 4, 2)
    signs = tensor([[1.0, 1, -1], [1, 1, -1], [-1, -1, 1]])
    torch.testing.assert_close(found.between, signs.expand(2, 7, 3, 3), atol=1e-5, rtol=0)
    assert (found.repeated.abs() < 0.999).all()  # other images, another gradient
    assert not any(p.requires_grad for p in pipe.unet.parameters())


def test_tasks_that_differ_have_a_cosine_between_and_the_same_each_time(build_pipe):
    tasks = [TASKS["generate"], TASKS["inpaint"]]
    one, two = (gradients.gradient_cosines(build_pipe(), tasks, dataset(), 4, 2) for _ in "ab")
    assert torch.equal(one.between, two.between)
    assert (one.between[..., 0, 1].abs() < 0.999).all() and (one.norm > 0).all()
    with pytest.raises(ValueError, match="3 of 4 images"):
        gradients.gradient_cosines(build_pipe(), tasks, dataset(), 4, 3)


def test_the_heat_map_is_white_at_zero_and_says_its_values(tmp_path, monkeypatch):
    shown, written = [], []
    imshow, text = Axes.imshow, Axes.text
    monkeypatch.setattr(
        Axes, "imshow", lambda self, *a, **k: (shown.append((a, k)), imshow(self, *a, **k))[1]
    )
    monkeypatch.setattr(
        Axes, "text", lambda self, *a, **k: (written.append(a[:3]), text(self, *a, **k))[1]
    )
    mean, std = np.array([[1.0, -3.0]]), np.array([[0.5, math.nan]])
    diverging({"p": (mean, std)}, ["a"], ["low", "high"], "%", tmp_path / "x.png", "{:+.1f}")
    [((values,), options)] = shown
    assert values is mean and options["vmin"] == -3 and options["vmax"] == 3
    assert written == [(0, 0, "+1.0\n±0.5"), (1, 0, "-3.0")]
    assert Image.open(tmp_path / "x.png").width > 100


# --- runs ---------------------------------------------------------------------------------------

CHILD = "import sys; open(sys.argv[1], 'a').write('x'); sys.exit(int(sys.argv[2]))"


@pytest.fixture
def started(tmp_path):
    """A command that notes that it was started, and exits as it is told."""
    log = tmp_path / "started"
    log.touch()

    def command(code=0):
        return [sys.executable, "-c", CHILD, str(log), str(code)]

    return log, command


def pretend(config, step):
    """What a run leaves after so many steps."""
    folder = Path(config.output_dir)
    checkpoint = Checkpoint(step, {"unet": {"w": torch.zeros(1)}}, {"config": to_dict(config)})
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


@pytest.mark.parametrize("change", [{"seed": 1}, {"max_train_steps": 8}, {"learning_rate": 1.0}])
def test_a_run_of_another_configuration_is_refused_by_name(tmp_path, started, change):
    log, command = started
    config = replace(BASE, max_train_steps=4, output_dir=str(tmp_path / "run"))
    pretend(config, 4)
    (field,) = change
    with pytest.raises(
        ValueError, match=rf"another configuration.*\n  {field}: the checkpoint has"
    ):
        ensure_trained(replace(config, **change), command())
    assert not log.read_text()


def test_a_run_that_stops_or_fails_ends_the_comparison(tmp_path, started):
    _, command = started
    config = replace(BASE, output_dir=str(tmp_path / "run"))
    with pytest.raises(Stopped, match="run the same command again"):
        ensure_trained(config, command(75))
    with pytest.raises(RuntimeError, match="training exited with 2"):
        ensure_trained(config, command(2))


@pytest.mark.slow
def test_a_whole_comparison_and_the_same_again(tmp_path):
    data = write_shapes(tmp_path / "data", 40, 16)
    folder = tmp_path / "out"
    command = [
        *(sys.executable, str(ROOT / "scripts/compare_tasks.py"), "--output_dir", str(folder)),
        *("--seeds", "0", "--num_images", "8", "--weightings", "uncertainty", "upgrad"),
        *("--gradient_batch_size", "4", "--gradient_batches", "2", "--dataset_name", data),
        *("--tasks", "{generate: 1, inpaint: 1}", *flags(**MODEL)),
        *("--max_train_steps", "3", "--total_batch_size", "8"),
        *("--validation_images", "2", "--report_to", "none", "--num_threads", "1"),
    ]

    def compare(*more):
        return subprocess.run([*command, *more], capture_output=True, text=True, timeout=600)

    done = compare()
    assert done.returncode == 0, done.stderr[-3000:]
    assert "| generate + inpaint | upgrad | in total |" in done.stdout
    report = json.loads((folder / "comparison.json").read_text())
    assert len(report["scores"]) == 6 and report["num_images"] == 8
    assert set(report["loss_gap"]["total"]) == {"generate", "inpaint"}
    assert len(report["gradient_cosines"]["pairs"]) == 3
    assert Image.open(folder / "loss_gap.png") and Image.open(folder / "gradient_cosines.png")

    # One run is lost: it alone is trained again, and it comes out the same.
    lost = folder / "runs/inpaint.total.uncertainty.seed0"
    times = {p: p.stat().st_mtime_ns for p in folder.glob("runs/*/checkpoints/*/manifest.json")}
    shutil.rmtree(lost)
    assert compare().returncode == 0
    for path, before in times.items():
        assert (path.stat().st_mtime_ns == before) == (lost not in path.parents)
    again = json.loads((folder / "comparison.json").read_text())
    assert again["losses"] == report["losses"]
    refused = compare("--learning_rate", "0.5")
    assert refused.returncode == 1 and "another configuration" in refused.stderr
