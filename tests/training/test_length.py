"""A run whose length is given in minutes."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
from tiny import unet_of

from mtl_diffusion import loop
from mtl_diffusion.config import ConfigError
from mtl_diffusion.loop import train


@pytest.fixture
def config(config, steps_only, monkeypatch):
    monkeypatch.setattr(loop, "REHEARSAL", (1, 2))
    return replace(config, max_train_steps=None, max_train_minutes=0.05, lr_warmup_steps=0.5)


def rate(monkeypatch, seconds):
    monkeypatch.setattr(loop, "seconds_per_step", lambda config, accelerator: seconds)


def trained(config):
    train(config)
    return unet_of(config.output_dir)


def test_the_run_is_one_of_that_many_steps(config, monkeypatch, tmp_path):
    """The rehearsal leaves no trace: the weights are those of a run whose length was given."""
    asked = []
    measure = loop.seconds_per_step

    def spy(config, accelerator):
        asked.append(measure(config, accelerator))
        return 0.75  # 4 steps in 3 seconds

    monkeypatch.setattr(loop, "seconds_per_step", spy)
    by_minutes = trained(config)
    assert len(asked) == 1 and 0 < asked[0] < 60
    folder = Path(config.output_dir)
    assert json.loads((folder / "length.json").read_text()) == {"seconds_per_step": 0.75}
    assert [path.name for path in (folder / "checkpoints").glob("step-*")] == ["step-4"]

    given = replace(
        config, max_train_steps=4, max_train_minutes=None, output_dir=str(tmp_path / "given")
    )
    by_steps = trained(given)
    assert all((by_steps[name] == weight).all() for name, weight in by_minutes.items())


def test_a_run_that_goes_on_keeps_its_length(config, monkeypatch, tmp_path):
    rate(monkeypatch, 0.75)
    whole = trained(config)
    halfway = replace(config, output_dir=str(tmp_path / "halves"), checkpointing_steps=2)

    class Stop(Exception):
        pass

    step = loop.train_step

    def stop_at(run, number, meter):
        if number == 3:
            raise Stop
        step(run, number, meter)

    monkeypatch.setattr(loop, "train_step", stop_at)
    with pytest.raises(Stop):
        train(halfway)
    monkeypatch.setattr(loop, "train_step", step)
    rate(monkeypatch, 0.1)  # a faster machine
    again = trained(halfway)
    assert all((again[name] == weight).all() for name, weight in whole.items())


def test_a_dry_run_tells_the_length_and_leaves_nothing(config, monkeypatch, capsys):
    rate(monkeypatch, 0.75)
    train(replace(config, dry_run=True))
    assert "max_train_steps: 4" in capsys.readouterr().out
    assert not (Path(config.output_dir) / "length.json").exists()


@pytest.mark.parametrize("text", ["", "[]", '{"seconds_per_step": "1"}', "[" * 9999])
def test_a_note_that_is_none_is_named(config, text):
    note = Path(config.output_dir) / "length.json"
    note.parent.mkdir()
    note.write_text(text)
    with pytest.raises(ConfigError, match=r"length\.json, which does not hold .*delete it"):
        train(config)
