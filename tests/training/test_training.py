"""Whole runs: what they leave, how a batch may be cut, precision, compilation."""

import json
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from forked import no_export
from forked import train as forked
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tiny import own_state, unet_of

from mtl_diffusion import loop
from mtl_diffusion.loop import train
from mtl_diffusion.pipeline.pipeline import MultiTaskPipeline


def largest_difference(one, other):
    assert one.keys() == other.keys()
    return max((one[name] - other[name]).abs().max().item() for name in one)


def test_a_run_leaves_everything_it_should(config):
    config = replace(config, report_to="tensorboard", validation_steps=2, checkpointing_steps=2)
    train(config)
    folder = Path(config.output_dir)
    pipe = MultiTaskPipeline.from_pretrained(folder / "pipeline")
    assert set(pipe.tasks) == {"generate", "inpaint", "edit"}
    assert pipe.class_names == ("disc", "square", "triangle", "cross", "ring")
    assert pipe(class_label="ring", num_inference_steps=2).images[0].size == (8, 8)
    assert (folder / "pipeline" / "README.md").exists()

    for step in (2, 4):
        table = json.loads((folder / f"validation/step-{step}.json").read_text())
        assert table["step"] == step and set(table["loss"]) == set(config.tasks)
        assert all(loss > 0 for levels in table["loss"].values() for loss in levels.values())
        for name in config.tasks:
            assert Image.open(folder / f"validation/step-{step}-{name}.png").width > 64

    (events,) = (folder / "logs").glob("*/events.out.tfevents.*")
    log = EventAccumulator(str(events)).Reload()
    expected = {"learning_rate", *(f"train/{name}" for name in config.tasks)}
    expected |= {f"held_out/{name}/sigma_0.1-0.3" for name in config.tasks}
    assert expected <= set(log.Tags()["scalars"])
    assert {f"samples/{name}" for name in config.tasks} <= set(log.Tags()["images"])


# --- how a batch is cut, and precision ----------------------------------------------------------


@pytest.fixture
def weights(config, steps_only):
    """Trains with changes of the configuration, and gives the UNet's weights."""

    def trained(**changes):
        folder = f"{config.output_dir}-{changes}"
        with own_state():
            train(replace(config, output_dir=folder, use_ema=False, **changes))
        return unet_of(folder)

    return trained


# A sign of rounding in a gradient of zero becomes a whole step of Adam where epsilon is small.
CALM = {"adam_epsilon": 1e-3, "max_train_steps": 6}


def test_accumulation_and_checkpointing_change_nothing_but_rounding(weights):
    whole = weights(**CALM)
    for change in ({"per_device_batch_size": 3}, {"gradient_checkpointing": True}):
        assert largest_difference(whole, weights(**CALM, **change)) < 2e-6
    assert largest_difference(whole, weights(**CALM, seed=1)) > 1e-2


def test_two_processes_train_as_one_does(tmp_path):
    """And validate: the same losses, and the same grids."""
    # Seven samples: the processes' shares differ, and so do the tasks' counts in them.
    cut = {"total_batch_size": 7, "per_device_batch_size": 3, "dropout": 0.0, "augmentation": 0.4}
    cut |= {"validation_images": 5}
    found, folders = [], []
    for processes in (1, 2):
        code, run = forked(tmp_path / str(processes), no_export, processes=processes, **CALM, **cut)
        assert code in (0, [0, 0]), run.text
        facts = json.loads((run.folder / "checkpoints/step-6/facts.json").read_text())
        assert facts["num_processes"] == processes
        found.append(unet_of(run.folder))
        folders.append(run.folder / "validation")
    assert largest_difference(*found) < 2e-6
    one, two = (json.loads((folder / "step-6.json").read_text()) for folder in folders)
    assert one["num_images"] == two["num_images"] == 5
    for task, levels in one["loss"].items():
        assert two["loss"][task] == pytest.approx(levels, abs=3e-5)
        name = f"step-6-{task}.png"
        pictures = (np.asarray(Image.open(folder / name), int) for folder in folders)
        assert np.abs(np.subtract(*pictures)).max() <= 1  # rounding


def test_bf16_trains_and_keeps_float32_weights(weights):
    full, half = (weights(mixed_precision=precision) for precision in ("no", "bf16"))
    assert {tensor.dtype for tensor in half.values()} == {torch.float32}
    assert all(tensor.isfinite().all() for tensor in half.values())
    # It was in bfloat16, or the weights would be the same; and it went the same way.
    assert 0 < largest_difference(full, half) < 0.05


@pytest.mark.slow
def test_a_compiled_run_has_one_graph_and_compiles_it_once(config, monkeypatch, steps_only):
    from torch._dynamo.utils import counters

    torch._dynamo.reset()
    counters.clear()
    # Graphs and guards are the same for every backend, and C++ takes minutes to compile.
    compile_module = torch.nn.Module.compile
    monkeypatch.setattr(
        torch.nn.Module, "compile", lambda self, mode: compile_module(self, backend="eager")
    )
    graphs, train_step = [], loop.train_step

    def counting(*arguments):
        train_step(*arguments)
        graphs.append(counters["stats"]["unique_graphs"])

    monkeypatch.setattr(loop, "train_step", counting)
    train(replace(config, compile=True, max_train_steps=6))
    assert not counters["graph_break"]
    assert graphs[0] >= 1 and graphs[1] <= 2 and len(set(graphs[1:])) == 1
    # A compiled module's weights have no other names.
    assert "conv_in.weight" in unet_of(config.output_dir)
    torch._dynamo.reset()


# --- what happens before the first step ---------------------------------------------------------


def test_dry_run_says_what_would_be_done_and_does_nothing(config, capsys, monkeypatch):
    monkeypatch.setattr(loop, "seconds_per_step", lambda *_: 0.75)  # 4 steps in 3 seconds
    length = {"max_train_steps": None, "max_train_minutes": 0.05, "dry_run": True}
    train(replace(config, **length, report_to="tensorboard", attention_resolutions=None))
    printed = capsys.readouterr().out
    for line in (
        "max_train_steps: 4\n",
        r"block_out_channels: \[8, 8\]\n",
        r"attention_resolutions: \[4\]\n",
        r"chosen for resolution 8: attention_resolutions \[4\], num_attention_heads 2",
        r"memory of a process: \d+\.\d\d GB with its data, measured",
        r"rate: [\d.e+]+ images a second, measured",
        r"parameters: 0\.\d\dM, of which 0\.\d\dM are trained\n",
        r"run: 32 images, [\d.e-]+ minutes at this rate",
    ):
        assert re.search(f"^{line}", printed, re.M), line
    assert "60 training and 16 held-out images, 5 classes" in printed
    folder = Path(config.output_dir)
    assert not folder.exists() or not list(folder.iterdir())
