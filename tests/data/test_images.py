"""Splits of a dataset, decoded: which rows, their fingerprint, and what can't be read."""

import re
from collections import Counter
from functools import partial
from pathlib import Path

import datasets
import pytest
import torch
from tables import encoded, load, write_images, write_table

from mtl_diffusion.config import TrainConfig
from mtl_diffusion.data.images import ImageDataset, load_splits
from mtl_diffusion.data.line import data_line
from mtl_diffusion.data.shapes import shapes
from mtl_diffusion.pipeline.format import ImageFormat


@pytest.fixture
def imagefolder(tmp_path):
    """Two classes of four images, one folder a class."""
    names = [f"train/{name}/{i}.png" for name in ("cat", "dog") for i in range(4)]
    return write_images(tmp_path / "photos", *names)


def splits(name, train="train", held_out="test"):
    """What a run's configuration loads."""
    given = {"dataset_name": str(name), "train_split": train, "validation_split": held_out}
    return load_splits(TrainConfig(**given), ImageFormat.square(8))


def test_embedded_shapes(monkeypatch):
    monkeypatch.setattr("mtl_diffusion.data.source.shapes", partial(shapes, num_train=10))
    data = load("shapes", split="test", resolution=16)
    assert data.images.shape == (1000, 3, 16, 16) and data.class_names[4] == "ring"
    assert data.fingerprint == "d74f7921317ecaa1"  # checkpoints hold it
    small = shapes(num_train=500, num_test=100)
    train, test = ({image.tobytes() for image in part["image"]} for part in small.values())
    assert len(train) == 500 and len(test) == 100 and not train & test
    with pytest.raises(ValueError, match="resolution: 4 is too low"):
        load("shapes", resolution=4)


def test_fingerprint_tells_data_apart_not_files(imagefolder):
    data = load(imagefolder)
    images, labels, names = data.images, data.labels, data.class_names
    assert ImageDataset.of(images, labels, names) == data
    changed = images.clone()
    changed[0, 0, 0, 0] ^= 1
    others = [(changed, labels, names), (images, 1 - labels, names), (images, labels, ("a", "b"))]
    assert len({data.fingerprint, *(ImageDataset.of(*o).fingerprint for o in others)}) == 4


def line(name, train="train", held_out="test", **fields):
    return data_line(*splits(name, train, held_out), TrainConfig(**fields))


def test_the_line_of_a_run(tmp_path, imagefolder):
    some = ("train[:5]", "train[5:]")
    words = (
        f"Data: 5 training and 3 held-out images, 2 classes, from the images of {imagefolder}"
        " (train[:5]; train[5:])"
    )
    assert line(imagefolder, *some, random_flip=False) == words
    assert line(imagefolder, *some, balance_classes=True) == (
        f"{words}; half of the training images are mirrored left to right (random_flip); "
        "all classes are drawn equally often (balance_classes)"
    )
    # Slices of a folder that is sorted by class: the line says what they have done.
    sorted_by_class = line(imagefolder, "train[:4]", "train[4:]")
    assert ", 2 classes, 1 of them without a training image: dog, from" in sorted_by_class
    flat = write_images(tmp_path / "flat", *(f"{i}.png" for i in range(5)))
    assert "Data: 4 training and 1 held-out images, no classes," in line(flat)


def test_the_images_shown_are_of_many_classes(imagefolder):
    """The rows are sorted by class: four cats, four dogs."""
    data = load(imagefolder)
    assert data.spread(3).labels.tolist() == [0, 1, 0] and len(data.spread(100)) == 8
    assert torch.equal(data.spread(3).images, data.images[[0, 4, 1]])


# Held out, and trained on


def test_copies_in_both_splits(tmp_path):
    """They are reported; from a tenth of the held-out split on they are refused."""
    images = encoded(60)
    for split, rows in (("train", images[:40]), ("test", images[39:])):  # one of 21 in both
        write_table(tmp_path / "d", [0] * len(rows), split=split, images=rows)
    words = ", 1 of the held-out images among the training images, from"
    assert words in line(tmp_path / "d")
    for train, held_out in (("train", "train"), ("train[:80%]", "train[50%:]")):
        message = r"validation_split: \d+ of the \d+ images .* \"train\[:90%\]\" and"
        with pytest.raises(ValueError, match=message):
            splits(tmp_path / "d", train, held_out)
    assert len(splits(tmp_path / "d", "train[:90%]", "train[90%:]")[1]) == 4


# A dataset with one split


def pixels(data: ImageDataset) -> Counter:
    return Counter(image.numpy().tobytes() for image in data.images)


@pytest.mark.parametrize("kind", ["images", "table"])
def test_a_tenth_is_held_out(tmp_path, kind):
    if kind == "images":
        name = write_images(tmp_path / "d", *(f"{'ab'[i % 2]}/{i}.png" for i in range(40)))
    else:
        name = write_table(tmp_path / "d", [0, 1] * 20)
    train, held_out = splits(name)
    assert (len(train), len(held_out)) == (36, 4) and train.class_names == held_out.class_names
    assert pixels(train) + pixels(held_out) == pixels(load(name))
    assert (train.split, held_out.split) == (
        "the rest of train",
        "a tenth of train, by a fixed key",
    )
    # Whoever asks for them later, to measure a model, gets the same ones.
    assert load(name, split="test").fingerprint == held_out.fingerprint
    assert len(load(name)) == 40 and len(splits(name, "train[5:]", "train[:5]")[0]) == 35


def test_copies_of_an_image_are_on_one_side(tmp_path):
    write_images(tmp_path, *(f"{i}.png" for i in range(20)))
    for i in range(20):
        (tmp_path / f"copy {i}.png").write_bytes((tmp_path / f"{i}.png").read_bytes())
    train, held_out = splits(tmp_path)
    assert not pixels(train) & pixels(held_out) and len(held_out) == 4


def test_too_few_to_hold_one_out(tmp_path):
    write_images(tmp_path, "1.png")
    with pytest.raises(ValueError, match=r"validation_split: .* one split, train, of too few"):
        splits(tmp_path)


def test_a_row_of_a_part_is_named_by_its_number_in_the_split(tmp_path):
    write_images(tmp_path, *(f"{i}.png" for i in range(10, 30)))
    (tmp_path / "25.png").write_bytes(b"not an image")
    with pytest.raises(ValueError, match=r"row 15 of 'train' \(.*25\.png\) does not decode"):
        splits(tmp_path)


# What is not there, or can't be read


@pytest.mark.parametrize(("split", "why"), [("validation", "Unknown"), ("train[4:4]", "no rows")])
def test_a_missing_split_lists_what_there_is_and_how_to_slice(imagefolder, split, why):
    message = rf"(?s)validation_split: '{re.escape(split)}' .* train \(8 rows\): .*{why}.*\[:90%\]"
    with pytest.raises(ValueError, match=message):
        splits(imagefolder, held_out=split)


@pytest.mark.parametrize("name", ["./nowhere", "/no/such/folder", "missing/dataset", "missing"])
def test_a_dataset_that_cannot_be_found(name):
    with pytest.raises(ValueError, match=f"(?s)dataset_name: .*{name}.* a local folder"):
        load(name)


def test_an_empty_folder_a_file_and_a_configuration_that_is_not_there(tmp_path, imagefolder):
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match=r"dataset_name: .* doesn't contain any data files"):
        load(tmp_path / "empty")
    (tmp_path / "d.parquet").write_bytes(b"")
    with pytest.raises(ValueError, match=r"(?s)dataset_name: .*d\.parquet.*Give .* a local folder"):
        load(tmp_path / "d.parquet")
    for name in ("shapes", imagefolder):
        with pytest.raises(ValueError, match=r"dataset_config_name.*nonsense"):
            load(name, dataset_config_name="nonsense")


@pytest.fixture
def table(tmp_path):
    return write_table(tmp_path / "d", [0] * 4)


def test_a_split_without_rows_and_a_damaged_file_are_named(table):
    write_table(Path(table), [], split="test")
    message = "dataset_name: .* has no rows in the split test; remove the files of that split"
    with pytest.raises(ValueError, match=message):
        load(table)
    Path(table, "test-00000-of-00001.parquet").unlink()
    assert len(load(table)) == 4
    (file,) = Path(table).iterdir()
    file.write_bytes(file.read_bytes()[:500])
    with pytest.raises(ValueError, match=rf"dataset_name: damaged: {file}: Parquet magic bytes"):
        load(table)


@pytest.mark.parametrize("length", [0, 1500])
def test_a_damaged_copy_of_a_file_is_named(table, length, tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    load(table)
    (copy,) = (tmp_path / "cache").rglob("*.arrow")
    copy.write_bytes(copy.read_bytes()[:length])
    with pytest.raises(ValueError, match=rf"dataset_name: .*; delete {copy.parent}"):
        load(table)
