"""A split that is read as it goes: which rows come, in which order, to whom; what is refused."""

import shutil
from collections import Counter
from itertools import islice

import datasets
import pytest
import torch
from tables import IMAGE, encoded, load, write_images, write_parquet

from mtl_diffusion.config import TrainConfig
from mtl_diffusion.data.decode import Decoder
from mtl_diffusion.data.stream import StreamingLoader, open_streams
from mtl_diffusion.pipeline.format import ImageFormat

NAMES = ("a", "b", "c")
FEATURES = {"image": IMAGE, "label": datasets.ClassLabel(names=list(NAMES))}


def write(folder, sizes, features=FEATURES, labels=None):
    """A folder of parquet files of so many rows each; labels go 0, 1, 2, 0, ..."""
    images = iter(encoded(sum(sizes)))
    labels = iter(labels or [i % 3 for i in range(sum(sizes))])
    for number, size in enumerate(sizes):
        table = {"image": [*islice(images, size)], "label": [*islice(labels, size)]}
        write_parquet(folder, table, features, part=number, of=len(sizes))
    return str(folder)


SQUARE = ImageFormat.square(8)


def open_stream(name, field="train_split", **fields):
    config = TrainConfig(dataset_name=name, streaming=True, resolution=8, **fields)
    (stream,) = open_streams(config, [field])
    return stream


def unzipped(rows) -> tuple[torch.Tensor, list[int]]:
    """Images (n, 3, 8, 8) uint8, and labels."""
    images, labels = zip(*rows, strict=True)
    return Decoder(SQUARE, threads=1)(images, len(images)).pixels, [*labels]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Thirty rows in four files of unequal size."""
    return write(tmp_path_factory.mktemp("data") / "parquet", [10, 9, 8, 3])


@pytest.fixture(scope="module")
def stream(folder):
    return open_stream(folder)


def rows_of(stream, seed=0, epoch=0, buffer_size=10, **options):
    return [image.row for image, _ in stream.epoch(seed, epoch, buffer_size, **options)]


# Which rows, in which order


def test_it_has_the_rows_that_memory_would_hold(stream, folder):
    whole = load(folder, resolution=8)
    ours, theirs = (
        Counter((image.numpy().tobytes(), label) for image, label in zip(*pair, strict=True))
        for pair in (unzipped(stream.epoch(0, 0, 5)), (whole.images, whole.labels.tolist()))
    )
    assert ours == theirs
    assert stream.class_names == whole.class_names == NAMES

    def names(changed) -> dict[str, str]:
        return {image.row: changed.class_names[i] for image, i in changed.epoch(0, 0, 4)}

    assert names(stream) == names(stream.relabelled(("x", "c", "b", "a")))


def test_the_order_is_a_function_of_seed_and_epoch(stream):
    first = rows_of(stream, 0, 0, 8)
    assert rows_of(stream, 0, 0, 8) == first and len(set(first)) == 30
    others = [rows_of(stream, 0, 1, 8), rows_of(stream, 1, 0, 8), rows_of(stream, 0, 0, 7)]
    assert all(sorted(other) == sorted(first) and other != first for other in others)


@pytest.mark.parametrize("world", [2, 3, 4])
def test_processes_share_an_epoch_and_no_row(stream, world):
    parts = [rows_of(stream, 3, 5, 8, rank=rank, world=world) for rank in range(world)]
    assert sorted(row for part in parts for row in part) == sorted(rows_of(stream))
    files = [{row.split(" of ")[1] for row in part} for part in parts]
    assert (sum(map(len, files)) == 4) == (4 % world == 0)  # files of their own, or all of them


def test_a_folder_that_is_sorted_by_class_is_mixed(tmp_path):
    write_images(tmp_path, *(f"{name}/{i}.png" for name in "abc" for i in range(40)))
    rows = islice(open_stream(str(tmp_path)).epoch(0, 0, 20), 40)
    early = Counter(label for _, label in rows)
    assert len(early) == 3 and max(early.values()) < 25


def test_arrays_can_be_streamed(tmp_path):
    features = {"tile": datasets.Array3D((3, 8, 8), "uint8"), "label": FEATURES["label"]}
    tiles = torch.arange(2 * 3 * 8 * 8).view(2, 3, 8, 8).byte()
    name = write_parquet(tmp_path / "d", {"tile": list(tiles.numpy()), "label": [0, 2]}, features)
    pixels, labels = unzipped(open_stream(name).epoch(0, 0, 1))
    assert torch.equal(pixels[[labels.index(0), labels.index(2)]], tiles)


def test_the_held_out_images_are_always_the_same_ones(stream):
    twelve, five, all_there_are = (stream.head(n, 8, Decoder(SQUARE, 1)) for n in (12, 5, 100))
    assert len(twelve) == 12 and torch.equal(five.images, twelve.images[:5])
    assert len(all_there_are) == 30
    assert twelve.fingerprint == five.fingerprint == stream.fingerprint


def test_the_fingerprint_tells_data_apart_not_places(folder, stream, tmp_path):
    shutil.copytree(folder, tmp_path / "copy")
    assert open_stream(str(tmp_path / "copy")).fingerprint == stream.fingerprint
    write(tmp_path / "longer", [10, 9, 8, 4])
    names = FEATURES | {"label": datasets.ClassLabel(names=["a", "b", "d"])}
    write(tmp_path / "names", [10, 9, 8, 3], names)
    others = [open_stream(str(tmp_path / name)) for name in ("longer", "names")]
    assert len({stream.fingerprint, *(other.fingerprint for other in others)}) == 3


# What is refused


def test_classes_without_names_and_a_label_outside_of_them(tmp_path):
    (tmp_path / "rows.csv").write_text("image,label\na.png,0\n")
    with pytest.raises(ValueError, match="does not declare its columns"):
        open_stream(str(tmp_path))
    features = FEATURES | {"label": datasets.Value("int64")}
    message = r"label_column: 'label' \(int64\) has no names.*streaming"
    with pytest.raises(ValueError, match=message):
        open_stream(write(tmp_path / "numbers", [3], features))
    stream = open_stream(write(tmp_path / "d", [3, 2], labels=[0, 1, 2, 0, -1]))
    message = r"label_column: row 1 of train-00001-of-00002\.parquet of 'train' has the label"
    with pytest.raises(ValueError, match=message):
        list(stream.epoch(0, 0, 4))


def test_a_split_that_is_not_there_or_is_trained_on(folder):
    with pytest.raises(ValueError, match=r"validation_split: 'test' .* which has train; a stream"):
        open_stream(folder, "validation_split")
    config = TrainConfig(dataset_name=folder, streaming=True, validation_split="train")
    with pytest.raises(ValueError, match=r"validation_split: train is trained on, too; .* another"):
        open_streams(config)


# Batches


def loader(stream, size=8, rank=0, world=1, random_flip=True):
    return StreamingLoader(stream, size, rank, world, 10, 0, random_flip, Decoder(SQUARE, 1))


def test_a_batch_is_what_the_stream_says(stream):
    batch = loader(stream, random_flip=False).batch(0)
    pixels, labels = unzipped(islice(stream.epoch(0, 0, 10), 8))
    assert torch.equal(batch.images, pixels.float() / 127.5 - 1) and batch.labels.tolist() == labels


@pytest.mark.parametrize("size", [7, 64])
def test_epochs_follow_each_other_and_no_row_is_dropped(stream, size):
    batches = loader(stream, size, random_flip=False)
    seen = torch.cat([batches.batch(step).images for step in range(120 // size + 1)])
    epochs = seen[:120].flatten(1).view(-1, 30, seen[0].numel())
    first = sorted(map(tuple, epochs[0].tolist()))
    for epoch in epochs[1:]:
        assert sorted(map(tuple, epoch.tolist())) == first and not torch.equal(epoch, epochs[0])


def test_cutting_a_batch_changes_nothing(stream):
    whole, cut = loader(stream), loader(stream)
    for step in range(6):
        parts = [cut.batch(step, slice(a, b)) for a, b in ((0, 3), (3, 4), (4, 8))]
        assert torch.equal(torch.cat([part.images for part in parts]), whole.batch(step).images)
        assert torch.equal(torch.cat([part.labels for part in parts]), whole.batch(step).labels)


def test_more_processes_than_rows(tmp_path):
    stream = open_stream(write(tmp_path / "d", [1]))
    batches = loader(stream, rank=1, world=2)
    with pytest.raises(ValueError, match="train_split: 'train' has no rows for process 1 of 2"):
        batches.batch(0, slice(4, 8))
