import io
from itertools import pairwise
from pathlib import Path

import datasets
import numpy as np
import pytest
import torch
from PIL import Image

from mtl_diffusion.data.images import ImageDataset, load_images
from mtl_diffusion.data.loader import Loader

CIFAR10 = Path(__file__).parents[2] / "../shared/cifar10"


def noise(*shape, seed=0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def png(array, mode=None) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(array).convert(mode or "RGB").save(buffer, "PNG")
    return buffer.getvalue()


def write_parquet(folder, columns, features, split="train") -> str:
    """A folder that `load_dataset` takes; feature types travel in the file, as on the Hub."""
    folder.mkdir(exist_ok=True)
    table = datasets.Dataset.from_dict(columns, features=datasets.Features(features))
    table.to_parquet(folder / f"{split}-00000-of-00001.parquet")
    return str(folder)


def encoded(count=4, side=8) -> list[dict]:
    return [{"bytes": png(noise(side, side, 3, seed=i)), "path": None} for i in range(count)]


def load(name, **kwargs) -> ImageDataset:
    return load_images(str(name), resolution=kwargs.pop("resolution", 8), **kwargs)


@pytest.fixture
def imagefolder(tmp_path):
    """Two classes of four images, one folder a class."""
    for number, name in enumerate(("cat", "dog")):
        folder = tmp_path / "photos" / "train" / name
        folder.mkdir(parents=True)
        for i in range(4):
            (folder / f"{i}.png").write_bytes(png(noise(8, 8, 3, seed=10 * number + i)))
    return tmp_path / "photos"


# Loading


def test_imagefolder_loads_bit_exactly(imagefolder):
    data = load(imagefolder)
    assert data.class_names == ("cat", "dog") and len(data) == 8 and data.resolution == 8
    assert data.labels.tolist() == [0] * 4 + [1] * 4
    expected = torch.from_numpy(noise(8, 8, 3, seed=12)).permute(2, 0, 1)
    assert torch.equal(data.images[6], expected)


def test_the_decoding_is_kept_across_runs(imagefolder, monkeypatch):
    first = load(imagefolder)
    monkeypatch.setattr("mtl_diffusion.data.images._decode", None)
    assert load(imagefolder).fingerprint == first.fingerprint


def test_slices_partition_a_split(imagefolder):
    whole, head, tail = (load(imagefolder, split=f"train{s}") for s in ("", "[:75%]", "[75%:]"))
    assert torch.equal(torch.cat([head.images, tail.images]), whole.images)
    assert len({whole.fingerprint, head.fingerprint, tail.fingerprint}) == 3
    assert head.class_names == tail.class_names == whole.class_names


def test_embedded_shapes():
    data = load("shapes", split="test[:10]", resolution=16)
    assert data.images.shape == (10, 3, 16, 16) and data.class_names[4] == "ring"


def test_a_folder_called_shapes_is_reached_by_its_path(imagefolder, monkeypatch):
    imagefolder.rename(imagefolder.parent / "shapes")
    monkeypatch.chdir(imagefolder.parent)
    assert load("./shapes").class_names == ("cat", "dog")


def test_fingerprint_tells_data_apart_not_files(imagefolder, tmp_path):
    data = load(imagefolder)
    assert ImageDataset.of(data.images, data.labels, data.class_names) == data
    images = data.images.clone()
    images[0, 0, 0, 0] ^= 1
    others = [
        ImageDataset.of(images, data.labels, data.class_names),
        ImageDataset.of(data.images, 1 - data.labels, data.class_names),
        ImageDataset.of(data.images, data.labels, ("cat", "cow")),
    ]
    assert len({other.fingerprint for other in [data, *others]}) == 4


def test_fingerprint_is_pinned():
    data = ImageDataset.of(torch.zeros(2, 3, 4, 4, dtype=torch.uint8), torch.arange(2), ("a", "b"))
    assert data.fingerprint == "2a13debedd3047e1"


# What becomes of an image


def one(tmp_path, content: bytes, resolution=8) -> torch.Tensor:
    name = write_parquet(
        tmp_path / "one",
        {"image": [{"bytes": content, "path": None}], "label": [0]},
        {"image": datasets.Image(), "label": datasets.ClassLabel(names=["a"])},
    )
    return load(name, resolution=resolution).images[0]


def test_transparency_is_composited_over_white(tmp_path):
    array = noise(8, 8, 4)
    array[..., 3] = 255
    array[:4, :, 3] = 0
    image = one(tmp_path, png(array, "RGBA"))
    assert (image[:, :4] == 255).all()
    assert torch.equal(image[:, 4:], torch.from_numpy(array[4:, :, :3]).permute(2, 0, 1))


def test_greyscale_becomes_rgb(tmp_path):
    array = noise(8, 8)
    assert torch.equal(one(tmp_path, png(array, "L")), torch.from_numpy(array).expand(3, 8, 8))


def test_16_bit_greyscale_keeps_its_range(tmp_path):
    array = np.linspace(0, 65535, 64).reshape(8, 8).astype(np.uint16)
    buffer = io.BytesIO()
    Image.fromarray(array).save(buffer, "PNG")
    assert torch.equal(one(tmp_path, buffer.getvalue())[0], torch.from_numpy(array // 256).byte())


def test_palette_and_cmyk_become_rgb(tmp_path):
    red = Image.new("RGB", (8, 8), "red")
    for mode, kind in {"P": "GIF", "CMYK": "JPEG"}.items():
        buffer = io.BytesIO()
        red.convert(mode).save(buffer, kind)
        (tmp_path / mode).mkdir()
        image = one(tmp_path / mode, buffer.getvalue())
        assert (image[0] > 240).all() and (image[1:] < 15).all()


def test_exif_orientation_is_applied(tmp_path):
    array, buffer, exif = noise(8, 8, 3), io.BytesIO(), Image.Exif()
    exif[0x0112] = 6  # turn a quarter clockwise to view
    Image.fromarray(array).save(buffer, "PNG", exif=exif)
    turned = torch.from_numpy(np.rot90(array, -1).copy()).permute(2, 0, 1)
    assert torch.equal(one(tmp_path, buffer.getvalue()), turned)


def test_other_sizes_are_cropped_to_the_centre_and_resized(tmp_path):
    array = noise(16, 24, 3)
    exact = torch.from_numpy(array[:, 4:20].copy()).permute(2, 0, 1)
    assert torch.equal(one(tmp_path, png(array), resolution=16), exact)
    (tmp_path / "half").mkdir()
    stripes = np.zeros((16, 24, 3), np.uint8)
    stripes[:, ::2] = 255
    half = one(tmp_path / "half", png(stripes))
    assert half.shape == (3, 8, 8)
    assert half[..., 2:-2].float().sub(127.5).abs().max() < 3  # antialiased: stripes become grey


# Columns and labels


IMAGE = datasets.Image()
NAMED = datasets.ClassLabel(names=["a", "b"])


@pytest.mark.parametrize(
    "feature, values, names, labels",
    [
        (NAMED, [0, 1, 1, 0], ("a", "b"), [0, 1, 1, 0]),
        (datasets.Value("int64"), [0, 2, 0, 2], ("0", "1", "2"), [0, 2, 0, 2]),
        (datasets.Value("string"), ["y", "x", "y", "x"], ("x", "y"), [1, 0, 1, 0]),
    ],
)
def test_labels_of_every_type(tmp_path, feature, values, names, labels):
    columns = {"picture": encoded(), "label": values}
    data = load(write_parquet(tmp_path / "d", columns, {"picture": IMAGE, "label": feature}))
    assert data.class_names == names and data.labels.tolist() == labels


def test_splits_agree_on_names_that_only_one_of_them_has(tmp_path):
    features = {"image": IMAGE, "label": datasets.Value("string")}
    write_parquet(tmp_path / "d", {"image": encoded(), "label": list("abcd")}, features)
    write_parquet(tmp_path / "d", {"image": encoded(), "label": list("cccc")}, features, "test")
    test = load(tmp_path / "d", split="test")
    assert test.class_names == tuple("abcd") and test.labels.tolist() == [2] * 4


def test_columns_are_found_by_type_or_named(tmp_path):
    columns = {"image": encoded(), "mask": encoded(), "fine": [0] * 4, "coarse": [1] * 4}
    features = {"image": IMAGE, "mask": IMAGE, "fine": NAMED, "coarse": NAMED}
    name = write_parquet(tmp_path / "d", columns, features)
    with pytest.raises(ValueError, match=r"image_column: found 2 .*image \(Image\), mask"):
        load(name)
    with pytest.raises(ValueError, match="label_column: found 2 columns of labels"):
        load(name, image_column="image")
    with pytest.raises(ValueError, match="image_column: there is no column 'img'"):
        load(name, image_column="img")
    with pytest.raises(ValueError, match="image_column: 'fine' is not a column of type Image"):
        load(name, image_column="fine")
    assert load(name, image_column="image", label_column="coarse").labels.tolist() == [1] * 4


def test_no_labels(tmp_path):
    name = write_parquet(tmp_path / "d", {"image": encoded()}, {"image": IMAGE})
    with pytest.raises(ValueError, match="label_column: found no column of labels"):
        load(name)


@pytest.mark.parametrize(
    "feature, bad",
    [
        (NAMED, -1),
        (NAMED, None),
        (datasets.Value("int64"), -1),
        (datasets.Value("int64"), None),
        (datasets.Value("string"), None),
    ],
)
def test_a_label_outside_its_names_is_located(tmp_path, feature, bad):
    good = "x" if feature == datasets.Value("string") else 0
    columns = {"image": encoded(), "label": [good, good, bad, good]}
    name = write_parquet(tmp_path / "d", columns, {"image": IMAGE, "label": feature})
    with pytest.raises(ValueError, match=f"label_column: row 2 of 'train' has the label {bad}"):
        load(name)


# Images and splits that are not there


def test_a_truncated_image_is_located(imagefolder):
    broken = imagefolder / "train" / "dog" / "1.png"
    broken.write_bytes(broken.read_bytes()[:60])
    with pytest.raises(ValueError, match=r"image_column: row 5 of 'train' \(.*1\.png\) does not"):
        load(imagefolder)


@pytest.mark.parametrize("bad", [None, {"bytes": b"not an image", "path": None}])
def test_a_row_without_an_image_is_located(tmp_path, bad):
    columns = {"image": [*encoded(3), bad], "label": [0] * 4}
    name = write_parquet(tmp_path / "d", columns, {"image": IMAGE, "label": NAMED})
    with pytest.raises(ValueError, match=r"image_column: row 1 of 'train\[2:\]' does not decode"):
        load(name, split="train[2:]")


def test_a_missing_split_lists_what_there_is_and_how_to_slice(imagefolder):
    message = r"(?s)validation_split: 'validation' .* train \(8 rows\).*train\[:90%\]"
    with pytest.raises(ValueError, match=message):
        load(imagefolder, split="validation", split_field="validation_split")


@pytest.mark.parametrize("split", ["train[4:4]", "test"])
def test_an_empty_split(tmp_path, split):
    features = {"image": IMAGE, "label": NAMED}
    write_parquet(tmp_path / "d", {"image": encoded(), "label": [0] * 4}, features)
    write_parquet(tmp_path / "d", {"image": [], "label": []}, features, "test")
    with pytest.raises(ValueError, match=r"train_split: .* has no rows; it has train \(4 rows\)"):
        load(tmp_path / "d", split=split)
    assert len(load(tmp_path / "d")) == 4


@pytest.mark.parametrize("name", ["./nowhere", "/no/such/folder", "nobody/nothing", "nothing"])
def test_a_dataset_that_cannot_be_found(name):
    with pytest.raises(ValueError, match=f"dataset_name: .*{name}"):
        load(name)


def test_a_configuration_that_is_not_there(imagefolder):
    for name in ("shapes", imagefolder):
        with pytest.raises(ValueError, match=r"dataset_config_name.*nonsense"):
            load(name, dataset_config_name="nonsense")


# Batches


@pytest.fixture(scope="module")
def numbered():
    """Ten images of which every pixel is the row's number, but for a bright left half."""
    images = torch.arange(10, dtype=torch.uint8)[:, None, None, None].repeat(1, 3, 4, 4)
    images[..., :2] += 100
    return ImageDataset.of(images, torch.arange(10), tuple("abcdefghij"))


def test_values(numbered):
    batch = Loader(numbered, 10, seed=0, random_flip=False).batch(0)
    assert batch.images.dtype == torch.float32 and batch.labels.dtype == torch.int64
    expected = numbered.images[batch.labels].float() / 127.5 - 1
    assert torch.equal(batch.images, expected)
    ends = ImageDataset.of(
        torch.tensor([0, 255]).byte().view(2, 1, 1, 1).repeat(1, 3, 4, 4),
        torch.arange(2),
        ("a", "b"),
    )
    assert Loader(ends, 2, 0, False).batch(0).images.unique().tolist() == [-1, 1]


@pytest.mark.parametrize("size", [1, 3, 4, 7, 10])
def test_each_epoch_has_every_row_once(numbered, size):
    loader = Loader(numbered, size, seed=1, random_flip=False)
    order = torch.cat([loader.batch(step).labels for step in range(30)])
    epochs = order[: len(order) // 10 * 10].view(-1, 10)
    assert (epochs.sort(1).values == torch.arange(10)).all()
    assert len({tuple(epoch.tolist()) for epoch in epochs}) == len(epochs)


def test_cutting_the_global_batch_changes_nothing(numbered):
    loader = Loader(numbered, 8, seed=2, random_flip=True)
    for step in (0, 1, 6):  # step 1 crosses from one epoch into the next
        whole = loader.batch(step)
        for cuts in ([0, 4, 8], [0, 1, 3, 8]):
            parts = [loader.batch(step, slice(a, b)) for a, b in pairwise(cuts)]
            assert torch.equal(torch.cat([part.images for part in parts]), whole.images)
            assert torch.equal(torch.cat([part.labels for part in parts]), whole.labels)
        strided = loader.batch(step, slice(1, None, 2))
        assert torch.equal(strided.images, whole.images[1::2])


def test_a_batch_is_a_function_of_seed_and_step(numbered):
    forward, backward = (Loader(numbered, 4, seed=3, random_flip=True) for _ in range(2))
    later = {step: backward.batch(step) for step in reversed(range(12))}
    for step in range(12):
        assert torch.equal(forward.batch(step).images, later[step].images)
    other = Loader(numbered, 4, seed=4, random_flip=True)
    assert any(not torch.equal(other.batch(s).labels, later[s].labels) for s in range(12))


def test_flips_mirror_half_of_the_samples(numbered):
    plain = Loader(numbered, 10, seed=5, random_flip=False)
    mirrored = Loader(numbered, 10, seed=5, random_flip=True)
    flipped = 0
    for step in range(50):
        before, after = plain.batch(step).images, mirrored.batch(step).images
        flip = (after == before.flip(-1)).all((1, 2, 3))
        assert (flip | (after == before).all((1, 2, 3))).all()
        flipped += int(flip.sum())
    assert 200 < flipped < 300


@pytest.mark.parametrize("size", [0, 11])
def test_a_batch_no_larger_than_the_dataset(numbered, size):
    with pytest.raises(ValueError, match=f"total_batch_size: {size} .* 10 rows"):
        Loader(numbered, size, seed=0, random_flip=False)


# The real thing


@pytest.mark.skipif(not CIFAR10.is_dir(), reason="CIFAR-10 is not here")
def test_cifar10():
    data = load_images(str(CIFAR10.resolve()), split="test", resolution=32)
    assert data.images.shape == (10000, 3, 32, 32)
    assert data.class_names[3] == "cat" and data.labels.bincount().tolist() == [1000] * 10
    source = datasets.load_dataset(str(CIFAR10.resolve()), split="test")
    for row in (0, 5000, 9999):
        assert np.array_equal(data.images[row].permute(1, 2, 0), np.asarray(source[row]["img"]))
    pixels = data.images.double() / 255
    torch.testing.assert_close(  # the figures that are published for the test split
        torch.stack([pixels.mean((0, 2, 3)), pixels.std((0, 2, 3))]).float(),
        torch.tensor([[0.4942, 0.4851, 0.4504], [0.2467, 0.2429, 0.2616]]),
        atol=1e-4,
        rtol=0,
    )
