"""What a folder is taken for: which files are read, of which splits and classes."""

import json
import os

import datasets
import numpy as np
import pytest
from tables import load, write_images, write_table

from mtl_diffusion.data.folder import read_folder


def labels(folder, **arguments) -> list[str]:
    data = load(folder, **arguments)
    return [data.class_names[label] for label in data.labels.tolist()]


@pytest.mark.parametrize("top", ["", "train/", "photos/", "photos/train/", "train/photos/"])
def test_a_folder_of_classes(tmp_path, top):
    write_images(tmp_path, *(f"{top}{name}/{i}.png" for name in ("dog", "cat") for i in range(2)))
    data = load(tmp_path)
    assert data.class_names == ("cat", "dog") and data.labels.tolist() == [0, 0, 1, 1]


def test_the_order_is_that_of_datasets(tmp_path):
    names = [f"{split}/{c}/{i}.png" for split in ("train", "val") for c in "ba" for i in (10, 9)]
    write_images(tmp_path, *names)
    for split in ("train", "validation"):
        theirs = datasets.load_dataset("imagefolder", data_dir=str(tmp_path), split=split)
        ours = load(tmp_path, split=split)
        assert ours.labels.tolist() == theirs["label"][:]
        for image, row in zip(ours.images, theirs, strict=True):
            assert np.array_equal(image.permute(1, 2, 0), np.asarray(row["image"]))


def test_a_name_with_brackets_is_no_pattern(tmp_path):
    write_images(tmp_path, "run1/a/1.png", "run1/b/1.png", "run[12]/x/1[2].png", "run[12]/y/*.png")
    assert load(tmp_path / "run[12]").class_names == ("x", "y")
    assert len(load(write_table(tmp_path / "rows[1]", [0] * 4))) == 4


def test_links_are_followed(tmp_path):
    write_images(tmp_path, "elsewhere/1.png", "data/cat/1.png", "far.png")
    (tmp_path / "data" / "dog").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "data" / "cat" / "2.png").symlink_to(tmp_path / "far.png")
    assert labels(tmp_path / "data") == ["cat", "cat", "dog"]
    (tmp_path / "data" / "cat" / "back").symlink_to(tmp_path / "data")
    with pytest.raises(ValueError, match=r"dataset_name: .*back is a link that leads back to"):
        load(tmp_path / "data")


def test_words_in_names_of_files_are_no_splits(tmp_path):
    names = [f"{i}.png" for i in range(8)] + ["test tube.png", "train-1.png", "eval.png"]
    write_images(tmp_path, *names)
    data = load(tmp_path)
    assert len(data) == len(names) and data.class_names == ()


@pytest.mark.parametrize(
    "names, classes",
    [
        ("caf\u00e9/1.png cafe\u0301/2.png", ["caf\u00e9"] * 2),  # Unicode has two forms of it
        ("train/bus/1.png train/train/1.png", ["bus", "train"]),
        ("cat/indoors/1.png cat/2.png", ["cat", "cat"]),
        ("cat/indoors/1.png dog/indoors/1.png", ["cat", "dog"]),
    ],
)
def test_the_class_is_the_name_of_the_folder(tmp_path, names, classes):
    write_images(tmp_path, *names.split())
    assert labels(tmp_path) == classes


@pytest.mark.parametrize(
    ("names", "fault"),
    [
        ("cat/1.png cat/2.png dog/1.png stray.png", r"cat \(2\), dog \(1\), .* stray\.png; move"),
        ("train/cat/1.png train/dog/1.png cat/2.png", "train, .* names of splits beside cat; move"),
        ("bus/1.png train/1.png", "beside bus; .* classes, move all of them into a folder called"),
        ("train/1.png test/1.png samples/1.png", "test, train, .* splits beside samples; move"),
        ("train/c/1.png test/c/1.png logo.png", r"test, train, .* splits beside logo\.png; move"),
        ("val/cat/1.png valid/cat/1.png", "val, valid, .* names of splits, some of them twice"),
        ("train.zip notes.txt", r"has archives and no images: unpack .*train\.zip there"),
        ("train.parquet 1.parquet", r"1\.parquet is of no split, and lies beside .*train\.parquet"),
        ("metadata.csv test/1.png", r"metadata\.csv is of no split, and lies beside .*/test; move"),
        ("metadata.csv metadata.jsonl", "are tables of different kinds; keep one"),
    ],
)
def test_contradictory_layouts_are_refused(tmp_path, names, fault):
    write_images(tmp_path, *names.split())
    with pytest.raises(ValueError, match=f"dataset_name: {tmp_path}.*{fault}"):
        load(tmp_path)


def test_splits_by_their_usual_names(tmp_path):
    write_images(tmp_path, "Training/cat/1.png", "val/cat/1.png", "testing/cat/1.png")
    assert list(read_folder(tmp_path).splits) == ["train", "validation", "test"]


def test_what_is_no_image_is_named(tmp_path):
    write_images(tmp_path, "1.png", "2.png", ".hidden.png", "__MACOSX/1.png")
    for name in ("1.txt", "2.txt", "labels.csv", "README.md", ".DS_Store", "rows.zip"):
        (tmp_path / name).write_text("a caption")
    data = load(tmp_path)
    assert len(data) == 2
    assert data.where == f"the images of {tmp_path}, without 1 .csv, 2 .txt, 1 .zip"


def test_names_that_are_not_utf_8_are_named(tmp_path):
    write_images(tmp_path, "1.png")
    os.rename(tmp_path / "1.png", os.fsencode(tmp_path) + b"/caf\xe9.png")
    with pytest.raises(ValueError, match=r"dataset_name: .* b'.*caf\\xe9\.png' is not UTF-8"):
        load(tmp_path)


# Tables, which may name images


def test_tables_beside_images(tmp_path):
    """A table is the dataset: the images are what it names, or nothing to it."""
    write_images(tmp_path, "logo.png", "pics/0.png")
    for split in ("train", "test"):
        name = write_table(tmp_path, [0] * 4, split=split)
    assert len(load(name)) == len(load(name, split="test")) == 4


def test_metadata_names_the_classes(tmp_path):
    """Namibia has the code NA, and null is a word: neither is nothing. Folders are no classes."""
    write_images(tmp_path, "1.png", "sub/2.png", "3.png")
    (tmp_path / "metadata.csv").write_text("file_name,label\n3.png,null\n1.png,NA\nsub/2.png,DE\n")
    assert labels(tmp_path) == ["null", "NA", "DE"]
    with pytest.raises(ValueError, match=r"no column 'species'; the columns are file_name .*label"):
        load(tmp_path, label_column="species")
    (tmp_path / "metadata.csv").write_text("file_name,text\nsub/2.png,a cat\n")
    assert load(tmp_path).class_names == ()


def test_metadata_of_each_split(tmp_path):
    for split, label in (("train", 7), ("test", 9)):
        write_images(tmp_path, f"{split}/in/1.png", f"{split}/in/2.png")
        rows = [{"file_name": f"{i}.png", "label": label, "text": "x"} for i in (1, 2)]
        text = "\n".join(map(json.dumps, rows))
        (tmp_path / split / "in/metadata.jsonl").write_text(text)
    assert labels(tmp_path) == ["7", "7"] and labels(tmp_path, split="test") == ["9", "9"]


@pytest.mark.parametrize(
    ("rows", "fault"),
    [
        ("file_name,label\n1.png,a\n3.png,b\n", r"row 1 of 'train' \(.*/3\.png\) does not decode"),
        ("name,label\n1.png,a\n", r"no columns of type Image; the columns are name .*label"),
        ("", "could not be read: No columns"),
        ("file_name,label\n1.png,a\n2.png,\n", "label_column: row 1 of 'train' has the label ''"),
    ],
)
def test_metadata_that_does_not_fit_the_images(tmp_path, rows, fault):
    write_images(tmp_path, "1.png", "2.png")
    (tmp_path / "metadata.csv").write_text(rows)
    with pytest.raises(ValueError, match=fault):
        load(tmp_path)
