"""Training on data that is streamed: to the end, killed and run again, and from a Hub."""

import json
import re
import sys
from functools import partial
from pathlib import Path

import datasets
import pytest
from forked import ARGUMENTS, SHORT, STEPS, die, train
from loopback_hub import LoopbackHub
from tables import encoded, write_table
from tiny import flags

from mtl_diffusion.data.shapes import CLASSES, shapes

ROOT = Path(__file__).parents[2]
STREAM = {"streaming": "true", "shuffle_buffer_size": 10}


def write(folder, files):
    """Sixty training rows in so many files, as in the other tests of runs, and eight for tests."""
    folder.mkdir(parents=True)
    rows = shapes(8, num_train=60, num_test=8)
    for i in range(files):
        part = rows["train"].shard(files, i)
        part.to_parquet(folder / f"train-{i:05d}-of-{files:05d}.parquet")
    rows["test"].to_parquet(folder / "test-00000-of-00001.parquet")
    return folder


@pytest.mark.parametrize("files", [4, 3])  # of their own, or both processes read all of them
def test_killed_and_run_again_begins_a_new_epoch(files, tmp_path):
    arguments = STREAM | {"dataset_name": write(tmp_path / "data", files)}
    code, run = train(tmp_path / "run", *SHORT, partial(die, 4), processes=2, **arguments)
    assert code == [-9, -9], run.text
    code, run = train(tmp_path / "run", *SHORT, **arguments)
    assert code == 0 and "the stream begins a new epoch" in run.text, run.text
    assert "is of 2 processes and this run has 1" in run.text
    facts = json.loads((run.folder / f"checkpoints/step-{STEPS}/facts.json").read_text())
    # An export draws classes as often as the main process has seen them.
    seen = facts["unet"]["_class_frequencies"]
    assert sum(seen.values()) == 3 * 4 + 9 * 8 and len(seen) == 5


def test_a_bad_row_ends_the_run_and_names_itself(tmp_path):
    folder, labels = write(tmp_path / "data", 1), [0] * 60
    images = [*encoded(41), {"bytes": b"junk", "path": None}, *encoded(18, first=42)]
    write_table(folder, labels, datasets.ClassLabel(names=[*CLASSES]), images=images)
    code, run = train(tmp_path / "run", *SHORT, dataset_name=folder, **STREAM)
    assert code == 1 and "row 41 of train-00000-of-00001.parquet of 'train' does not" in run.text


@pytest.mark.slow
def test_a_run_that_streams_from_a_hub(tmp_path):
    """Nothing is downloaded to a cache: files are read by ranges, under the dataset's own name."""
    folder = write(tmp_path / "data", 2)
    with LoopbackHub() as hub:
        files = {f"plain_text/{path.name}": path.read_bytes() for path in folder.iterdir()}
        hub.add("uoft-cs/cifar10", files, kind="dataset")
        given = ARGUMENTS | STREAM | {"max_train_steps": 9, "output_dir": tmp_path / "run"}
        given |= {"dataset_name": "uoft-cs/cifar10", "image_column": "image"}
        config = {"config": ROOT / "configs/cifar10_cpu.yaml"}
        command = [sys.executable, "scripts/train.py", *flags(**config, **given)]
        done = hub.run(command, tmp_path / "home")
        assert done.returncode == 0, done.stderr[-3000:]
        asked = [name for name in hub.requests if re.match("GET .*train-.*parquet", name)]
    assert asked and (tmp_path / "run/checkpoints/step-9").is_dir()
    assert not list((tmp_path / "home").rglob("*.parquet"))
    assert not list((tmp_path / "home").rglob("*.arrow"))
