"""The benchmark: the parts of a step, sampling, and training scripts, on models of 8 channels."""

import sys
import time

import pytest
import torch
from in_process import run_script
from tiny import RUN, flags, own_state, write_shapes

from mtl_diffusion.benchmark.programs import race
from mtl_diffusion.benchmark.steps import PARTS, step_parts
from mtl_diffusion.config import TrainConfig
from mtl_diffusion.launch.preflight import begin
from mtl_diffusion.loop import train_step
from mtl_diffusion.training.meter import Meter
from mtl_diffusion.training.run import build


@pytest.fixture
def fields(tmp_path):
    data = write_shapes(tmp_path / "shapes", 64, 8)
    return {**RUN, "dataset_name": data, "output_dir": f"{tmp_path}/x"}


@pytest.mark.parametrize("changes", [{}, {"use_ema": False}])
def test_a_step_whose_parts_are_timed_is_a_step_and_the_sum_of_them(fields, changes):
    config = TrainConfig(**fields, **changes)
    weights = []
    for take in (train_step, step_parts):
        with own_state(), begin(config) as accelerator:
            run = build(config, accelerator)
            meter, started = Meter(run), time.perf_counter()
            parts = take(run, 0, meter)
            took = time.perf_counter() - started
            train_step(run, 1, meter)  # as before: the hooks are gone
            weights.append([p.clone() for p in run.unet.parameters()])
    assert all(map(torch.equal, *weights))
    assert {*PARTS} - {*parts} == ({"EMA"} if changes else set())
    assert all(seconds > 0 for seconds in parts.values())
    assert 0.5 * took < sum(parts.values()) <= took


def test_the_command_times_a_step(fields, monkeypatch, capsys):
    given = ("step", "--steps", 2, "--rounds", 1, "--warm", 1, *flags(**fields))
    assert run_script("benchmark.py", *given, monkeypatch=monkeypatch) == 0
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert [line[0] for line in lines[:2]] == ["images_per_second", "milliseconds_a_step"]
    assert float(lines[0][1]) * float(lines[1][1]) == pytest.approx(8 * 1000, rel=0.01)
    assert lines[2][0] == "teraflop_a_step" and float(lines[2][1]) > 0


def test_the_command_times_sampling(pipe, tmp_path, monkeypatch, capsys):
    pipe.save_pretrained(tmp_path / "pipeline")
    given = ("--pipeline", tmp_path / "pipeline", "--batch_size", 2, "--num_inference_steps", 3)
    assert run_script("benchmark.py", "sampling", *given, monkeypatch=monkeypatch) == 0
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert ["batch_size", "2"] in lines and ["steps", "3"] in lines
    assert float(lines[0][1]) > 0 and lines[0][0] == "images_per_second"


# Logs a first step of a minute, then steps of the given seconds.
SCRIPT = """
import sys
from tensorboard.compat.proto.event_pb2 import Event
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.summary.writer.event_file_writer import EventFileWriter
name, seconds, folder = sys.argv[1:]
writer = EventFileWriter(folder.removeprefix("--output_dir=") + "/logs/run")
for step in range(1, 7):
    now = 1000 + (60 if step == 1 else float(seconds) * step)
    values = [Summary.Value(tag=tag, simple_value=0.1) for tag in (name, "loss")]
    writer.add_event(Event(step=step, wall_time=now, summary=Summary(value=values)))
writer.close()
"""


def test_scripts_are_timed_by_their_logs_without_their_first_steps(tmp_path, monkeypatch, capsys):
    (tmp_path / "script.py").write_text(SCRIPT)
    start = f"{sys.executable} {tmp_path}/script.py"
    given = (f"{start} learning_rate 0.25", f"{start} lr 0.5", "--warm", 2, "--rounds", 2)
    assert run_script("benchmark.py", "scripts", *given, monkeypatch=monkeypatch) == 0
    assert [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()] == [
        "1, steps_per_second 4 (4 to 4, n = 2)",
        "2, steps_per_second 2 (2 to 2, n = 2)",
        "1 is faster than 2, times 2 (2 to 2, n = 2)",
    ]
    with pytest.raises(ValueError, match="at 1 steps from step 6 on"):
        race([given[0]], rounds=1, warm=6)
    with pytest.raises(ValueError, match=r"exited with 1:\nno such flag"):
        race([f"{sys.executable} -c \"raise SystemExit('no such flag')\""], 1, 1)


def test_mistakes_are_refused_at_once(monkeypatch, capsys):
    assert run_script("benchmark.py", "step", "--rounds", 0, monkeypatch=monkeypatch) == 2
    assert "--rounds is 0; it must be 1 or more" in capsys.readouterr().err
    few = ("sampling", "--pipeline", "x", "--batch", 2)
    assert run_script("benchmark.py", *few, monkeypatch=monkeypatch) == 2
    assert "unrecognized arguments: --batch 2" in capsys.readouterr().err
