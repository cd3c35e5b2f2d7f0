"""The benchmark: timing, programs, the parts of a step, solvers, on models of 8 channels."""

import json
import math
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from datasets import load_dataset
from in_process import run_script
from tiny import MODEL, own_state, write_shapes

from mtl_diffusion.benchmark import programs
from mtl_diffusion.benchmark.sampling import Point, Sampler, evaluations_for
from mtl_diffusion.benchmark.steps import STEP_PARTS, break_down
from mtl_diffusion.benchmark.twin import build_twin
from mtl_diffusion.config import TrainConfig
from mtl_diffusion.config.command_line import parse
from mtl_diffusion.data.images import ImageDataset
from mtl_diffusion.launch.preflight import begin
from mtl_diffusion.tools.flops import flops_of_unet
from mtl_diffusion.training.run import build


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


def test_the_twin_has_our_channels_and_nearly_our_flops(pipe):
    twin = build_twin(pipe.unet)
    assert twin.unet.config.block_out_channels == tuple(pipe.unet.config.block_out_channels)
    assert twin.flops == flops_of_unet(twin.unet)[1]
    assert twin.our_flops == flops_of_unet(pipe.unet)[1]
    assert abs(math.log(twin.flops / twin.our_flops)) < math.log(1.3)


PROGRAM = """
import sys, time
from torch.utils.tensorboard import SummaryWriter
writer = SummaryWriter(sys.argv[1] + "/logs/run")
for step in range(1, 7):
    writer.add_scalar("lr", 0.1, step, walltime=1000 + (60 if step == 1 else 0.5 * step))
    writer.add_scalar("loss", 0.1, step)
writer.close()
"""


def test_a_program_is_timed_by_its_own_log(tmp_path):
    folder = tmp_path / "run"
    command = [sys.executable, "-c", PROGRAM, str(folder)]
    timed = programs.program(command, folder, batch_size=8, warm=2)
    assert timed.rate == pytest.approx(8 * 4 / 2)  # four steps after the second, half a second each
    assert timed.host_bytes > 1e6


def test_a_program_that_fails_says_why(tmp_path):
    command = [sys.executable, "-c", "raise SystemExit('no such flag')"]
    with pytest.raises(RuntimeError, match=r"exited with 1:\nno such flag"):
        programs.program(command, tmp_path / "run", 8, 2)


def test_our_command_is_read_back_as_the_same_run(config, tmp_path):
    command = programs.our_command(config, 40, tmp_path)
    flags = command[command.index(str(programs.SCRIPTS / "train.py")) + 1 :]
    read = parse(flags)
    assert read.max_train_steps == 40 and read.report_to == "tensorboard"
    kept = ("dataset_name", "block_out_channels", "tasks", "total_batch_size", "mixed_precision")
    assert all(getattr(read, name) == getattr(config, name) for name in kept)


def test_diffusers_gets_the_same_images_batch_and_precision(config, data, tmp_path):
    images = torch.randint(256, (6, 3, 8, 8), dtype=torch.uint8)
    programs.write_images(ImageDataset.of(images, torch.zeros(6).long(), ("a",)), 5, tmp_path)
    rows = load_dataset(str(tmp_path), split="train")["image"]
    written = torch.from_numpy(np.stack([np.asarray(image) for image in rows]))
    assert torch.equal(written.permute(0, 3, 1, 2), images[:5])
    places = (tmp_path / "twin", tmp_path, tmp_path / "run")
    command = programs.their_command(Path("checkout"), Path("python"), config, *places)
    assert command[4] == str(Path("checkout") / programs.THEIRS)
    assert {"--train_batch_size=4", "--mixed_precision=no", "--use_ema"} < set(command)


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
    assert step.device_bytes is None
    # The quickest ones: another process may take the core in the middle of any.
    quickest = sum(part.low for part in step.parts.values())
    assert 0.2 < quickest / step.whole.low < 5


def test_every_solver_comes_to_the_same_images(pipe):
    """And as fast as its order says: so they solve one equation, with the same conditions."""
    curves = Sampler(pipe, batch_size=2).curve([16, 32])
    orders = {
        name: math.log2(coarse.distance / fine.distance) for name, (coarse, fine) in curves.items()
    }
    assert 0.7 < orders["euler"] < 1.4
    assert orders["heun"] > 1.6 and orders["ours"] > 1.4, orders
    assert curves["heun"][0].evaluations == 31 and curves["ours"][0].evaluations == 16


def test_how_many_evaluations_come_as_near():
    points = [Point(n, n, 8 / n**2) for n in (4, 8, 16)]
    assert evaluations_for(points, 8 / 10**2) == pytest.approx(10)
    assert evaluations_for(points, 0.5) == 4 and evaluations_for(points, 1) == 4
    assert evaluations_for(points, 0.001) is None


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--diffusers", "x"], "--diffusers and --twin_python go together"),
        (["--steps", "3", "--warm", "3"], "--steps is 3; it must be more than --warm, 3"),
        ([], "sampling needs a --pipeline"),
        (["--parts", "steps", "--learning_rat", "1"], "learning_rat"),
    ],
)
def test_mistakes_are_refused_at_once(flags, words, monkeypatch, capsys):
    assert run_script("benchmark.py", *flags, monkeypatch=monkeypatch) == 2
    assert words in capsys.readouterr().err


@pytest.mark.slow
def test_the_command_measures_everything(config, pipe, tmp_path, monkeypatch, capsys):
    pipe.save_pretrained(tmp_path / "pipeline")
    command = programs.our_command(replace(config, dataset_name="shapes"), 6, tmp_path / "unused")
    flags = (
        *("--rounds", 1, "--steps", 6, "--warm", 2, "--sample_batch", 2),
        *("--pipeline", tmp_path / "pipeline", "--json", tmp_path / "speed.json"),
        *command[command.index(str(programs.SCRIPTS / "train.py")) + 1 :],
    )
    assert run_script("benchmark.py", *flags, monkeypatch=monkeypatch) == 0
    found = json.loads((tmp_path / "speed.json").read_text())
    assert set(found) == {"machine", "training", "steps", "sampling"}
    assert found["training"]["ours"]["images_per_second"]["median"] > 0
    assert found["sampling"]["at_equal_quality"]["18_steps"]["distance"] > 0
    assert "training, ours, images_per_second " in capsys.readouterr().out
