"""A run whose length is given in minutes."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from safetensors.torch import load_file
from tiny import MODEL

from mtl_diffusion import loop as train_module
from mtl_diffusion.config import ConfigError, TrainConfig
from mtl_diffusion.config.command_line import parse
from mtl_diffusion.loop import train

WEIGHTS = "pipeline/unet/diffusion_pytorch_model.safetensors"


@pytest.fixture
def config(tmp_path, monkeypatch):
    monkeypatch.setattr(train_module, "validate", lambda run, step, **options: None)
    monkeypatch.setattr(train_module, "REHEARSAL", (1, 2))
    return TrainConfig(
        train_split="train[:64]",
        validation_split="test[:8]",
        **MODEL,
        strength_levels=3,
        total_batch_size=8,
        max_train_steps=None,
        max_train_minutes=0.05,
        lr_warmup_steps=0.5,
        num_threads=1,
        report_to="none",
        output_dir=str(tmp_path / "run"),
    )


def rate(monkeypatch, seconds):
    monkeypatch.setattr(train_module, "seconds_per_step", lambda config, accelerator: seconds)


def trained(config):
    train(config)
    return load_file(Path(config.output_dir) / WEIGHTS)


def test_the_run_is_one_of_that_many_steps(config, monkeypatch, tmp_path):
    """The rehearsal leaves no trace: the weights are those of a run that was told its length."""
    asked = []
    measure = train_module.seconds_per_step

    def spy(config, accelerator):
        asked.append(measure(config, accelerator))
        return 0.75  # 4 steps in 3 seconds

    monkeypatch.setattr(train_module, "seconds_per_step", spy)
    by_minutes = trained(config)
    assert len(asked) == 1 and 0 < asked[0] < 5
    folder = Path(config.output_dir)
    assert json.loads((folder / "length.json").read_text()) == {"seconds_per_step": 0.75}
    assert [path.name for path in (folder / "checkpoints").glob("step-*")] == ["step-4"]

    told = replace(
        config, max_train_steps=4, max_train_minutes=None, output_dir=str(tmp_path / "told")
    )
    by_steps = trained(told)
    assert all((by_steps[name] == weight).all() for name, weight in by_minutes.items())


def test_a_run_that_goes_on_keeps_its_length(config, monkeypatch, tmp_path):
    rate(monkeypatch, 0.75)
    whole = trained(config)
    halfway = replace(config, output_dir=str(tmp_path / "halves"), checkpointing_steps=2)

    class Stop(Exception):
        pass

    step = train_module.train_step

    def stop_at(run, number, meter):
        if number == 3:
            raise Stop
        step(run, number, meter)

    monkeypatch.setattr(train_module, "train_step", stop_at)
    with pytest.raises(Stop):
        train(halfway)
    monkeypatch.setattr(train_module, "train_step", step)
    rate(monkeypatch, 0.1)  # a faster machine
    again = trained(halfway)
    assert all((again[name] == weight).all() for name, weight in whole.items())


def test_other_minutes_stretch_it(config, monkeypatch):
    rate(monkeypatch, 0.75)
    train(config)
    rate(monkeypatch, 123.0)
    train(replace(config, max_train_minutes=0.1))
    assert (Path(config.output_dir) / "checkpoints" / "step-8").exists()


def test_a_dry_run_tells_the_length_and_leaves_nothing(config, monkeypatch, capsys):
    rate(monkeypatch, 0.75)
    train(replace(config, dry_run=True))
    assert "max_train_steps: 4" in capsys.readouterr().out
    assert not (Path(config.output_dir) / "length.json").exists()


def test_neither_steps_nor_minutes_is_refused():
    with pytest.raises(ConfigError, match="max_train_steps: found null; must be a number of steps"):
        parse(["--max_train_steps", "null"])
    assert parse(["--max_train_steps", "null", "--max_train_minutes", "5"]).max_train_steps is None


@pytest.mark.parametrize("script", ["compare_tasks.py", "adapt.py --new task colorize"])
def test_runs_that_are_compared_need_a_number_of_steps(script, tmp_path):
    minutes = ["--max_train_steps", "null", "--max_train_minutes", "5"]
    done = subprocess.run(
        [sys.executable, *f"scripts/{script}".split(), "--output_dir", str(tmp_path), *minutes],
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
    )
    assert done.returncode and "max_train_steps: found null" in done.stderr


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"seconds_per_step": "1"}', "[" * 9999])
def test_a_note_that_is_none_is_named(config, text):
    note = Path(config.output_dir) / "length.json"
    note.parent.mkdir()
    note.write_text(text)
    with pytest.raises(ConfigError, match=r"length\.json, which does not hold .*delete it"):
        train(config)
