"""A run whose length is given in minutes."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tiny import unet_of

from mtl_diffusion import loop
from mtl_diffusion.config import ConfigError
from mtl_diffusion.loop import train


@pytest.fixture
def config(config, steps_only, monkeypatch):
    monkeypatch.setattr(loop, "REHEARSAL", (1, 2))
    return replace(config, max_train_steps=None, max_train_minutes=0.05, lr_warmup_steps=0.5)


def trained(config):
    train(config)
    return unet_of(config.output_dir)


def equal(one, other):
    return all(torch.equal(other[name], weight) for name, weight in one.items())


def test_a_slow_device_is_measured_in_fewer_steps(config, monkeypatch):
    monkeypatch.setattr(loop, "REHEARSAL", (10, 30))
    monkeypatch.setattr(loop, "PATIENCE", 0)
    steps, train_step = [], loop.train_step

    def spy(run, step, meter):
        steps.append(step)
        train_step(run, step, meter)

    monkeypatch.setattr(loop, "train_step", spy)
    with loop.begin(config) as accelerator:
        assert loop.seconds_per_step(config, accelerator) > 0
    assert steps == [*range(2 * loop.LEAST)]


def test_the_run_is_one_of_that_many_steps(config, monkeypatch):
    """The rehearsal leaves no trace: the weights are those of a run whose length was given."""
    asked, measure = [], loop.seconds_per_step

    def spy(config, accelerator):
        asked.append(measure(config, accelerator))
        return 0.75  # 4 steps in 3 seconds

    monkeypatch.setattr(loop, "seconds_per_step", spy)
    by_minutes, folder = trained(config), Path(config.output_dir)
    assert len(asked) == 1 and 0 < asked[0] < 60
    assert json.loads((folder / "length.json").read_text()) == {"seconds_per_step": 0.75}
    assert [path.name for path in (folder / "checkpoints").glob("step-*")] == ["step-4"]
    given = {"max_train_steps": 4, "max_train_minutes": None, "output_dir": f"{folder}-given"}
    assert equal(by_minutes, trained(replace(config, **given)))

    # A run that goes on keeps its length.
    halfway = replace(config, output_dir=f"{folder}-halves", checkpointing_steps=2)
    train_step = loop.train_step

    def cut(run, step, meter):
        assert step < 3, "cut"
        train_step(run, step, meter)

    with monkeypatch.context() as patch, pytest.raises(AssertionError, match="cut"):
        patch.setattr(loop, "train_step", cut)
        train(halfway)
    monkeypatch.setattr(loop, "seconds_per_step", lambda *_: 0.1)  # a faster machine
    assert equal(by_minutes, trained(halfway))


def test_a_damaged_note_of_the_rate_is_named(config):
    note = Path(config.output_dir) / "length.json"
    note.parent.mkdir()
    note.write_text("[]")
    with pytest.raises(ConfigError, match=r"length\.json is damaged: delete it"):
        train(config)
