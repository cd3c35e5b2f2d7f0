"""Learning something new from a trained model: what is divided how, and all of it once."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from matplotlib.axes import Axes
from tiny import MODEL, flags, write_shapes

from mtl_diffusion.comparison.adaptation import (
    FROM_NOTHING,
    FROM_OLD,
    Part,
    configure,
    loss,
    novelty,
    with_words_for,
)
from mtl_diffusion.config import TrainConfig, limits
from mtl_diffusion.data.images import load_images
from mtl_diffusion.pictures.task_plots import spread_curves
from mtl_diffusion.pipeline.pipeline import TASKS

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "scripts"))
import adapt  # noqa: E402


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_shapes(tmp_path_factory.mktemp("data") / "shapes", 40, 20)


@pytest.fixture
def base(data):
    return TrainConfig(dataset_name=data, resolution=8, total_batch_size=20, train_split="train")


def test_a_task_more_takes_an_equal_share_and_the_data_stays(base, tmp_path):
    given = novelty("task", "colorize", base, tmp_path)
    assert given.share == 0.25 and given.new.tasks == {"colorize": 1.0}
    assert given.both.tasks == {
        "generate": 0.375,
        "inpaint": 0.1875,
        "edit": 0.1875,
        "colorize": 0.25,
    }
    assert given.new.load(base).fingerprint == given.old.load(base).fingerprint
    with_share = replace(base, tasks={"generate": 1, "colorize": 1})
    given = novelty("task", "colorize", with_share, tmp_path)
    assert given.old.tasks == {"generate": 0.5} and given.share == 0.5


def test_a_class_is_left_out_and_is_all_that_is_new(base, tmp_path):
    given = novelty("class", "triangle", base, tmp_path)
    old, new, both = (part.load(base) for part in (given.old, given.new, given.both))
    assert old.class_names == ("disc", "square", "cross", "ring") and len(old) == 16
    assert new.class_names == ("triangle",) and len(new) == 4
    assert set(both.class_names) == {*old.class_names, "triangle"} and len(both) == 20
    assert given.share == 0.2
    source = load_images(base.dataset_name, split="test", resolution=8)
    assert torch.equal(new.images, source.images[source.labels == 2])
    for i in range(len(old)):  # every image is still what it was called
        (row,) = (source.images == old.images[i]).all((1, 2, 3)).nonzero()
        assert source.class_names[source.labels[row]] == old.class_names[old.labels[i]]
    novelty("class", "triangle", base, tmp_path)  # again: what is there is taken


def test_another_dataset_is_new_and_shares_the_names_of_its_classes(base, tmp_path):
    other = write_shapes(tmp_path / "hues", 120, 10, class_hues=True)
    given = novelty("dataset", other, base, tmp_path / "out")
    assert given.share == 0.75
    assert len(given.both.load(base)) == 30
    assert given.both.load(base).class_names == given.old.load(base).class_names


def test_what_is_not_there_is_refused(base, tmp_path):
    for kind, name in (("task", "fly"), ("class", "hexagon")):
        with pytest.raises(ValueError, match=f"{kind}: found {name}"):
            novelty(kind, name, base, tmp_path)
    with pytest.raises(ValueError, match="not the only one"):
        novelty("task", "edit", replace(base, tasks={"edit": 1}), tmp_path)


def test_every_way_sees_as_many_samples_of_the_new_in_a_step(base, tmp_path):
    given = novelty("task", "colorize", base, tmp_path)
    for way in (*FROM_OLD, *FROM_NOTHING):
        config = configure(way, given, base, 1, tmp_path, tmp_path)
        assert config.shares["colorize"] * config.total_batch_size == 5
        assert not limits.faults(config, list(TASKS))
        assert config.train_only == (way if way in FROM_OLD else "all")
        assert (config.pretrained_model_name_or_path is None) == (way in FROM_NOTHING)
    assert configure("old", given, base, 1, tmp_path, None).tasks == given.old.tasks


def test_what_a_model_has_no_words_for_has_no_loss_until_it_has(build_pipe, base, tmp_path):
    given = novelty("task", "colorize", base, tmp_path)
    held_out = given.new.load(base)
    pipe = build_pipe(tasks=("generate", "edit"), classes=held_out.class_names)
    assert loss(pipe, given.new, held_out, 4, "cpu") is None
    ready = with_words_for(pipe, given.new, held_out)
    assert loss(ready, given.new, held_out, 4, "cpu") > 0
    old = Part({"edit": 1.0}, {})
    assert loss(ready, old, held_out, 4, "cpu") == loss(pipe, old, held_out, 4, "cpu")


def test_the_table_by_hand():
    def curve(*losses, old=None):
        return {10 * i: {"new": value, "old": old} for i, value in losses}

    curves = {
        "all": [curve((0, 0.9), (1, 0.4), (2, 0.2), old=0.6)],
        "tokens": [curve((0, 0.9), (1, 0.8), (2, 0.7), old=0.5)],
        "joint": [curve((1, 0.8), (2, 0.4), old=0.25)],
        "alone": [curve((1, 0.8), (2, 0.5))],
    }
    lines = adapt.table(curves, [{"new": 0.9, "old": 0.5}]).splitlines()[2:]
    assert lines[0].startswith("| the old | all | 0.2000") and lines[0].endswith("| 10 | +20.0 % |")
    assert lines[1].endswith("| never | +0.0 % |")
    assert lines[2].endswith("| 20 | -50.0 % |") and lines[2].startswith("| nothing | all, joint |")
    assert lines[3].endswith("| never |  |")


def test_a_way_has_one_colour_in_all_panels(tmp_path, monkeypatch):
    drawn, plot = [], Axes.plot
    monkeypatch.setattr(
        Axes,
        "plot",
        lambda self, *a, **k: (drawn.append((k["label"], k["color"], *a)), plot(self, *a, **k))[1],
    )
    values = np.array([[1.0, 0.5], [2.0, 0.0]])
    panels = {
        "new": {"alone": ([1, 2], values), "joint": ([1, 2], values)},
        "old": {"joint": ([1, 2], values)},
    }
    spread_curves(panels, "step", "loss", tmp_path / "x.png", {"old": ("before", 1.0)})
    colours = {}
    for name, colour, places, mean in drawn:
        assert colours.setdefault(name, colour) == colour
        assert places == [1, 2] and mean.tolist() == [1.5, 0.25]
    assert len(drawn) == 3 and len(set(colours.values())) == 2 and (tmp_path / "x.png").exists()


@pytest.mark.slow
def test_a_new_class_from_end_to_end(data, tmp_path):
    folder = tmp_path / "out"
    command = [
        *(sys.executable, str(ROOT / "scripts/adapt.py"), "--new", "class", "ring"),
        *("--output_dir", str(folder), "--seeds", "0", "--num_images", "4", "--points", "2"),
        *("--dataset_name", data, "--tasks", "{generate: 1, edit: 1}", *flags(**MODEL)),
        *("--total_batch_size", "20"),
        *("--max_train_steps", "4", "--validation_images", "2", "--report_to", "none"),
        *("--num_threads", "1"),
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr[-3000:]
    report = json.loads((folder / "adaptation.json").read_text())
    steps = {way: list(found[0]) for way, found in report["curves"].items()}
    assert steps == {w: ["0", "2", "4"] for w in FROM_OLD} | {w: ["2", "4"] for w in FROM_NOTHING}
    ends = {way: found[0]["4"] for way, found in report["curves"].items()}
    assert ends["alone"]["old"] is None and ends["joint"]["old"] > 0
    assert report["curves"]["tokens"][0]["0"] == report["before"][0]
    assert (folder / "adaptation.png").exists()
