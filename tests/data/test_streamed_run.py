"""Training on data that is streamed: to the end, killed and run again, and from a Hub."""

import json
import re
import sys
from functools import partial
from pathlib import Path

import datasets
import pytest
from forked import ARGUMENTS, SHORT, STEPS, check_killed_and_run_again, die, train
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


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write(tmp_path_factory.mktemp("data") / "shapes", 4)


@pytest.mark.parametrize(
    ("files", "kills", "arguments"),
    [
        # In mid-epoch; where an epoch ends; in the last step.
        (4, ((5, 0), (7, 3), (11, 6)), {}),
        (4, ((7, 0),), {"processes": 2, "per_device_batch_size": 3, "total_batch_size": 9}),
        (3, ((7, 0),), {"processes": 2}),  # both processes read all three files
    ],
    ids=["one process", "files of their own", "shared files"],
)
def test_killed_and_run_again_is_byte_equal(files, kills, arguments, tmp_path):
    arguments = STREAM | arguments | {"dataset_name": write(tmp_path / "data", files)}
    check_killed_and_run_again(tmp_path, kills, **arguments)


def test_another_number_of_processes_begins_the_next_epoch(data, tmp_path):
    arguments = STREAM | {"dataset_name": data}
    code, run = train(tmp_path / "run", *SHORT, partial(die, 4), processes=2, **arguments)
    assert code == [-9, -9], run.text
    code, run = train(tmp_path / "run", *SHORT, **arguments)
    assert code == 0, run.text
    assert "of 2 processes and this run has 1: the stream is divided anew" in run.text
    facts = json.loads((run.folder / f"checkpoints/step-{STEPS}/facts.json").read_text())
    # From epoch 1 on, nine steps of eight: sixty rows, and twelve of the epoch after it.
    assert facts["stream"] == [[2, 12]]
    # An export draws classes as often as the main process has seen them.
    seen = facts["unet"]["_class_frequencies"]
    assert sum(seen.values()) == 3 * 4 + 9 * 8 and len(seen) == 5


def another_order() -> None:
    import mtl_diffusion.checkpoints.resume

    mtl_diffusion.checkpoints.resume.ORDER = "another"


def test_another_order_is_refused(data, tmp_path):
    code, run = train(tmp_path / "run", *SHORT, partial(die, 4), dataset_name=data, **STREAM)
    assert code == -9
    code, run = train(tmp_path / "run", *SHORT, another_order, dataset_name=data, **STREAM)
    assert code == 2 and "streaming: the checkpoint has read its stream in the order" in run.text


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
    facts = json.loads((tmp_path / "run/checkpoints/step-9/facts.json").read_text())
    assert facts["stream"] == [[1, 12]] and asked
    assert not list((tmp_path / "home").rglob("*.parquet"))
    assert not list((tmp_path / "home").rglob("*.arrow"))
