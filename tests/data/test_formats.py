"""Images of other channels, depths and shapes are read as they are stored."""

import io

import datasets
import numpy as np
import pytest
import torch
from PIL import Image
from tables import load

from mtl_diffusion.config import TrainConfig
from mtl_diffusion.data.decode import Decoder, Encoded
from mtl_diffusion.data.images import FRAME, MASK, load_splits
from mtl_diffusion.data.line import data_line
from mtl_diffusion.data.loader import Loader
from mtl_diffusion.pipeline.format import ImageFormat

RANDOM = np.random.default_rng(0)


def numbers(*shape, dtype="uint8"):
    return RANDOM.integers(0, np.iinfo(dtype).max, shape, dtype=dtype, endpoint=True)


def file_of(array: np.ndarray, kind: str, **options) -> bytes:
    """The file of an array: .npy, PNG, or a TIFF by tifffile with its options."""
    file = io.BytesIO()
    if kind == "npy":
        np.save(file, array)
    elif kind == "tiff":
        pytest.importorskip("tifffile").imwrite(file, array, **options)
    elif array.dtype == np.uint16 and array.ndim == 3:
        return pytest.importorskip("imagecodecs").png_encode(array)
    else:
        Image.fromarray(array).save(file, "PNG")
    return file.getvalue()


def read(content: bytes, form: ImageFormat) -> torch.Tensor:
    return Decoder(form, threads=1)([Encoded(content, None, "row 0")], 1).pixels[0]


@pytest.mark.parametrize("kind", ["npy", "tiff", "png"])
@pytest.mark.parametrize(
    ("mode", "dtype", "channels"),
    [
        ("L", "uint8", ()),
        ("RGBA", "uint8", (4,)),
        ("L", "uint16", ()),
        ("RGB", "uint16", (3,)),
        (5, "uint8", (5,)),
        (5, "uint16", (5,)),
        (2, "float32", (2,)),
    ],
)
def test_numbers_come_as_they_are_stored(mode, dtype, channels, kind):
    if kind == "png" and (isinstance(mode, int) or dtype == "float32"):
        pytest.skip("no PNG has these")
    if dtype == "float32":
        array = RANDOM.uniform(0, 30000, (8, 12, *channels)).astype(dtype)
    else:
        array = numbers(8, 12, *channels, dtype=dtype)
    form = ImageFormat(8, 12, mode, dtype, (0.0, 30000.0) if dtype == "float32" else None)
    found = read(file_of(array, kind), form)
    assert found.dtype == getattr(torch, dtype)
    assert np.array_equal(found.permute(1, 2, 0).numpy(), array.reshape(8, 12, -1))
    # The channels may be the first axis, but not in a TIFF of 8 bits that Pillow has a mode for.
    if channels and kind != "png" and (mode, kind) != ("RGBA", "tiff"):
        planes = {"photometric": "minisblack", "planarconfig": "separate"}
        first = file_of(np.moveaxis(array, -1, 0), kind, **planes)
        assert torch.equal(read(first, form), found)


def test_what_is_not_of_the_format_is_refused_with_what_to_set():
    twelve = file_of(np.full((8, 8), 4095, np.uint16), "npy")
    for content, form, message in (
        (twelve, ImageFormat(8, 8, "L"), "image_dtype to uint16"),
        (twelve, ImageFormat(8, 8, "L", "float32", (0.0, 1.0)), "and float32 holds 0 to 1"),
        (
            twelve,
            ImageFormat(8, 8, "RGB", "uint16"),
            r"\(8, 8\); image_mode RGB needs .* set",
        ),
        (file_of(np.full((8, 8), np.nan), "npy"), ImageFormat(8, 8, "L", "uint16"), "float32"),
    ):
        with pytest.raises(ValueError, match=rf"row 0 does not decode .*: .*{message}"):
            read(content, form)


@pytest.mark.parametrize("fit", ["crop", "pad", "stretch"])
@pytest.mark.parametrize("size", [(8, 16), (16, 8), (24, 8), (8, 8)], ids=str)
def test_other_shapes_are_cropped_padded_or_stretched(tmp_path, fit, size):
    """The left half of the images is black, and the right half is white."""
    height, width = size
    array = np.zeros((height, width), np.uint8)
    array[:, width // 2 :] = 255
    Image.fromarray(array).save(tmp_path / "1.png")
    data = load(tmp_path, form=ImageFormat(8, 8, "L", fit=fit))
    pixels, fitted = data.images[0, 0], size != (8, 8)
    assert data.facts["fitted"].tolist() == [fitted]
    frame = data.layers.get(FRAME)
    if fit != "pad":
        assert frame is None and pixels[:, 0].max() <= 1 and pixels[:, -1].min() >= 254
        assert ((pixels.int() + pixels.flip(-1).int() - 255).abs() <= 1).all()  # halves stay halves
        return
    shape = [max(1, round(side * 8 / max(size))) for side in size]
    assert frame.sum() == shape[0] * shape[1] and (pixels[frame[0, 0] == 0] == 128).all()
    assert data.arrays[0].shape[1:] == tuple(shape)
    batch = Loader(data, 1, seed=3, random_flip=True).batch(0)
    inside = batch.layers[FRAME] > 0
    assert (batch.images[~inside].abs() < 0.01).all() and (batch.images[inside].abs() > 0.9).any()


def test_the_data_line_says_what_was_done_and_what_keeps_more(tmp_path):
    grey, clear = tmp_path / "grey", tmp_path / "clear"
    for folder, mode in ((grey, "L"), (clear, "RGBA")):
        folder.mkdir()
        for i in range(3):
            Image.new(mode, (16, 8 + i * 2), i).save(folder / f"{i}.png")
    grey, clear = (load(folder, resolution=8) for folder in (grey, clear))
    lines = [data_line(data, data, TrainConfig()) for data in (grey, clear)]
    assert "3 training images cropped to the shape of 8x8 (image_fit)" in lines[0]
    assert "3 training images are grey and read as RGB of 8 bits: set image_mode to L" in lines[0]
    assert "are with transparency and read as RGB of 8 bits: set image_mode to RGBA" in lines[1]
    assert "image_mode" not in data_line(grey, grey, TrainConfig(image_mode="L"))


def test_colours_under_clear_alpha_are_black_for_the_network():
    pixels = torch.randint(256, (1, 4, 8, 8)).byte()
    pixels[:, 3, :4] = 0
    seen = ImageFormat(8, 8, "RGBA").from_stored(pixels)
    assert (seen[:, :3, :4] == -1).all()
    assert torch.equal(seen[:, :, 4:], pixels[:, :, 4:].float() / 127.5 - 1)


@pytest.mark.parametrize(
    "form",
    [
        ImageFormat(8, 8),
        ImageFormat(8, 8, 5, "uint16"),
        ImageFormat(8, 8, "L", "uint16", (0.0, 4095.0)),
        ImageFormat(8, 8, "L", "float32", (-1000.0, 3000.0)),
    ],
    ids=lambda form: form.words,
)
def test_scaling_loses_nothing(form):
    low, high = form.stored_range
    every = torch.linspace(low, high, 65536).to(getattr(torch, form.dtype))
    images = every.view(1, 1, 256, 256)
    exact = {"atol": 0, "rtol": 0} if form.dtype != "float32" else {"atol": 1e-3, "rtol": 0}
    for undone in (
        form.to_stored(form.from_stored(images)),
        form.array_as_stored(form.stored_as_array(images)),
    ):
        torch.testing.assert_close(undone.float(), images.float(), **exact)


# Masks


def write_masks(folder, size=(8, 8)):
    """Eight grey images, and masks that are white in as many columns as the image's grey says."""
    rows = ["image,mask"]
    for i in range(8):
        mask = np.zeros(size[::-1], np.uint8)
        mask[:, : i % 5] = 255
        Image.new("L", (8, 8), i).save(folder / f"{i}.png")
        Image.fromarray(mask).save(folder / f"mask{i}.png")
        rows.append(f"{i}.png,mask{i}.png")
    (folder / "train.csv").write_text("\n".join(rows))
    return TrainConfig(dataset_name=str(folder), image_column="image", mask_column="mask")


def test_masks_stay_with_their_images_and_are_drawn_for_others_as_often(tmp_path):
    data, _ = load_splits(write_masks(tmp_path), ImageFormat(8, 8, "L"))
    painted = data.layers[MASK].sum((1, 2, 3)) // 8
    assert torch.equal(painted, data.images[:, 0, 0, 0].long() % 5)
    loader, own = Loader(data, 7, seed=0, random_flip=True), []
    for step in range(60):
        whole = loader.batch(step)
        cut = [loader.batch(step, rows) for rows in (slice(0, 3), slice(3, 7))]
        assert torch.equal(torch.cat([part.layers[MASK] for part in cut]), whole.layers[MASK])
        grey = ((whole.images[:, 0, 0, 0] + 1) * 127.5).round() % 5
        own.append(whole.layers[MASK].sum((1, 2, 3)) // 8 == grey)
    share = torch.cat(own).float().mean()  # half, and the others that have as many columns
    assert 0.5 < share < 0.75


def test_masks_of_another_size_are_refused(tmp_path):
    config = write_masks(tmp_path, size=(16, 16))
    with pytest.raises(ValueError, match=r"mask_column: row .* mask of 16x16 pixels, .* has 8x8"):
        load_splits(config, ImageFormat(8, 8, "L"))


def test_arrays_of_labels_are_conditions_in_the_colours_of_voc(tmp_path):
    labels = RANDOM.choice([0, 1, 15], (20, 16, 16))
    labels[0, :8] = 255
    types = {"image": datasets.Image(), "map": datasets.Array2D((16, 16), "int64")}
    images = [Image.fromarray(numbers(8, 8, 3)) for _ in labels]
    rows = {"image": images, "map": list(labels)}
    datasets.Dataset.from_dict(rows, datasets.Features(types)).to_parquet(
        tmp_path / "train.parquet"
    )
    fields = {"resolution": 8, "image_column": "image", "condition_columns": {"from_map": "map"}}
    config = TrainConfig(dataset_name=str(tmp_path), **fields)
    form = ImageFormat.square(8)
    known = {(0, 0, 0), (128, 0, 0), (192, 128, 128), (224, 224, 192)}  # labels 0, 1, 15 and 255
    shown = torch.cat([part.conditions["from_map"] for part in load_splits(config, form)])
    assert set(map(tuple, shown.permute(0, 2, 3, 1).reshape(-1, 3).tolist())) == known

    with pytest.raises(ValueError, match=r"labels from -1 to 0; the palette has .* 0 to 255"):
        Decoder(form, 1, nearest=None)([Encoded.of(np.array([[-1, 0]]), "row 0")], 1)
