"""The benchmark: timing, the parts of a step, solvers, on models of 8 channels."""

import json
import math

import pytest
import torch
from in_process import run_script
from tiny import MODEL, flags, own_state, write_shapes

from mtl_diffusion.benchmark import report, sampling
from mtl_diffusion.benchmark.measure import Measured, interleaved, matmul_rate
from mtl_diffusion.benchmark.sampling import Point, Sampler, evaluations_for
from mtl_diffusion.benchmark.steps import STEP_PARTS, break_down
from mtl_diffusion.config import TrainConfig
from mtl_diffusion.launch.preflight import begin
from mtl_diffusion.training.run import build

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_shapes(tmp_path_factory.mktemp("shapes"), 64, 8)


@pytest.fixture
def config(data, tmp_path):
    return TrainConfig(
        dataset_name=data,
        **MODEL,
        total_batch_size=4,
        logging_steps=2,
        num_threads=1,
        report_to="none",
        output_dir=str(tmp_path / "run"),
    )


# --- counting and timing ------------------------------------------------------------------------


def test_measurements_are_a_median_and_a_range():
    spread = Measured.of([3.0, 1.0, 2.0, 10.0])
    assert (spread.median, spread.low, spread.high, spread.n) == (2.5, 1.0, 10.0, 4)
    assert spread.times(1e3) == Measured(2500.0, 1000.0, 10_000.0, 4)
    assert str(spread) == "2.5 (1 to 10, n = 4)"


def test_contestants_take_turns():
    order = []
    contestants = {name: lambda name=name: order.append(name) or len(order) for name in "ab"}
    assert interleaved(contestants, 3, "test") == {"a": [1, 3, 5], "b": [2, 4, 6]}
    assert order == ["a", "b"] * 3


def test_the_rate_of_a_product_is_plausible():
    rate = matmul_rate(CPU, torch.float32, repeats=2)
    assert 1e8 < rate.low <= rate.median <= rate.high < 1e15 and rate.n == 2


# --- a step in its parts ------------------------------------------------------------------------


def test_a_step_is_the_sum_of_its_parts_and_is_left_as_it_was(config):
    torch.optim.AdamW([torch.zeros(1)])  # the first one changes its class
    originals = [getattr(home, name) for calls in STEP_PARTS.values() for home, name in calls]
    with own_state(), begin(config) as accelerator:
        run = build(config, accelerator)
        step = break_down(run, steps=4, warm=1)
    assert originals == [
        getattr(home, name) for calls in STEP_PARTS.values() for home, name in calls
    ]
    assert list(step.parts) == ["forward", "backward", *STEP_PARTS, "other"]
    assert all(part.median > 0 and part.n == 4 for part in step.parts.values())
    total = sum(part.median for part in step.parts.values())
    network = step.parts["forward"].median + step.parts["backward"].median
    assert step.overhead == pytest.approx(1 - network / total)
    assert 0.2 < total / step.whole.median < 5 and step.device_bytes is None


# --- sampling -----------------------------------------------------------------------------------


def test_every_solver_comes_to_the_same_images(pipe):
    """And as fast as its order says: so they solve one equation, with the same conditions."""
    curves = Sampler(pipe, batch_size=2).curve([16, 32])
    orders = {
        name: math.log2(coarse.distance / fine.distance) for name, (coarse, fine) in curves.items()
    }
    assert 0.7 < orders["euler"] < 1.4
    assert orders["heun"] > 1.6 and orders["ours"] > 1.4, orders
    assert curves["heun"][0].evaluations == 31 and curves["ours"][0].evaluations == 16


def test_times_are_an_image_s(pipe):
    times = Sampler(pipe, batch_size=2).times({"ours": 2, "euler": 2, "heun": 2}, rounds=2)
    assert set(times) == {"ours", "euler", "heun"}
    assert all(0 < spread.median < 10 and spread.n == 2 for spread in times.values())


def test_how_many_evaluations_come_as_near():
    points = [Point(n, n, 8 / n**2) for n in (4, 8, 16)]
    assert evaluations_for(points, 8 / 10**2) == pytest.approx(10)
    assert evaluations_for(points, 0.5) == 4 and evaluations_for(points, 1) == 4
    assert evaluations_for(points, 0.001) is None


# --- the command --------------------------------------------------------------------------------


def test_mistakes_are_refused_at_once(monkeypatch, capsys):
    for given, words in (
        ([], "sampling needs a --pipeline"),
        (["--parts", "steps", "--learning_rat", "1"], "learning_rat"),
    ):
        assert run_script("benchmark.py", *given, monkeypatch=monkeypatch) == 2
        assert words in capsys.readouterr().err


def test_the_command_measures_everything(data, pipe, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(report, "STEP_COUNTS", (4, 18))
    monkeypatch.setattr(sampling, "REFERENCE_STEPS", 32)
    pipe.save_pretrained(tmp_path / "pipeline")
    given = (
        *("--rounds", 1, "--steps", 2, "--warm", 1, "--sample_batch", 2),
        *("--pipeline", tmp_path / "pipeline", "--json", tmp_path / "speed.json"),
        *flags(**MODEL, dataset_name=data, total_batch_size=4, num_threads=1),
    )
    with own_state():
        assert run_script("benchmark.py", *given, monkeypatch=monkeypatch) == 0
    found = json.loads((tmp_path / "speed.json").read_text())
    assert set(found) == {"machine", "steps", "sampling"}
    assert found["steps"]["images_per_second"] > 0
    assert found["sampling"]["at_equal_quality"]["18_steps"]["distance"] > 0
    assert "steps, milliseconds " in capsys.readouterr().out
