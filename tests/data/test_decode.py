"""What becomes of an image: its pixels, and when they are decoded again."""

import io
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import ExifTags, Image
from tables import encoded, load, noise, png, write_images, write_table

from mtl_diffusion.config import TrainConfig
from mtl_diffusion.data.decode import Decoder, Encoded
from mtl_diffusion.data.stream import open_streams
from mtl_diffusion.pipeline.format import ImageFormat
from mtl_diffusion.pipeline.rgb import read_rgb


def one(content: bytes, resolution=8) -> torch.Tensor:
    form = ImageFormat.square(resolution)
    return Decoder(form, threads=1)([Encoded(content, None, "row 0")], 1).pixels[0]


def test_an_image_is_read_as_read_rgb_does():
    buffer = io.BytesIO()
    turned, pixels = Image.Exif(), noise(8, 8, 4)
    turned[ExifTags.Base.Orientation] = 6
    Image.fromarray(pixels).save(buffer, "PNG", exif=turned)
    expected = np.asarray(read_rgb(Image.open(buffer))).transpose(2, 0, 1)
    assert np.array_equal(one(buffer.getvalue()), expected)


def test_other_sizes_are_cropped_to_the_centre_and_resized():
    array = noise(16, 24, 3)
    exact = torch.from_numpy(array[:, 4:20].copy()).permute(2, 0, 1)
    assert torch.equal(one(png(array), resolution=16), exact)
    stripes = np.zeros((16, 24, 3), np.uint8)
    stripes[:, ::2] = 255
    half = one(png(stripes))
    assert half.shape == (3, 8, 8)
    assert half[..., 2:-2].float().sub(127.5).abs().max() < 3  # antialiased: stripes become grey


def test_images_keep_their_order_on_several_threads():
    images = [Encoded(png(noise(8, 8, 3, seed=i)), None, f"row {i}") for i in range(7)]
    decoded = Decoder(ImageFormat.square(8), threads=3)(iter(images), 7)
    for i, image in enumerate(decoded.pixels):
        assert np.array_equal(image.permute(1, 2, 0), noise(8, 8, 3, seed=i))


def test_12_bits_in_16_are_refused(tmp_path):
    """Of a split, not of an image: one may be dark."""
    write_images(tmp_path, "3.png")
    for i in range(3):
        (tmp_path / f"{i}.png").write_bytes(png(np.full((8, 8), 4095, np.uint16)))
    with pytest.raises(
        ValueError,
        match=r"16-bit images of 'train' have no value above 4,095.*value_range to \[0, 4095\]",
    ):
        load(tmp_path)
    (tmp_path / "2.png").write_bytes(png(np.full((8, 8), 65535, np.uint16)))
    assert load(tmp_path).images[0].unique().tolist() == [15]


# What is read again


def test_a_table_that_is_replaced_is_read_again(tmp_path):
    """As `cp -p` and `rsync -t` do it: the time of the file stays."""
    names = [write_table(tmp_path / str(i), [0, i]) for i in (0, 1)]
    assert load(names[0]).labels.tolist() == [0, 0]
    (file,) = Path(names[0]).iterdir()
    times = file.stat()
    file.write_bytes(Path(names[1], file.name).read_bytes())
    os.utime(file, ns=(times.st_atime_ns, times.st_mtime_ns))
    assert load(names[0]).labels.tolist() == [0, 1]


@pytest.mark.parametrize("streaming", [False, True])
def test_a_relative_path_is_relative_to_its_table(tmp_path, monkeypatch, streaming):
    """Not to where one stands, where there may be other pictures of the same name."""
    write_images(tmp_path, "d/pics/0.png", "pics/0.png", "elsewhere/pics/0.png")
    monkeypatch.chdir(tmp_path / "elsewhere")
    name = write_table(tmp_path / "d", [0], images=[{"bytes": None, "path": "pics/0.png"}])

    def image() -> torch.Tensor:
        if not streaming:
            return load(name).images[0]
        config = TrainConfig(dataset_name=name, streaming=True, resolution=8)
        (stream,) = open_streams(config, ["train_split"])
        return stream.head(1, 1, Decoder(ImageFormat.square(8), 1)).images[0]

    assert np.array_equal(image().permute(1, 2, 0), noise(8, 8, 3, seed=0))
    (tmp_path / "d/pics/0.png").unlink()
    with pytest.raises(ValueError, match=r"\(.*/d/pics/0\.png\) does not decode"):
        image()


def test_a_relative_path_of_two_tables(tmp_path, monkeypatch):
    write_images(tmp_path, "d/train/0.png", "d/train-more/0.png")
    monkeypatch.chdir(tmp_path / "d/train")
    for folder in ("train", "train-more"):
        write_table(tmp_path / "d" / folder, [0], images=[{"bytes": None, "path": "0.png"}])
    with pytest.raises(ValueError, match=r"row 0 of 'train' names 0\.png, which is both .* and"):
        load(tmp_path / "d")


# Rows that are named

PNG = png(noise(8, 8, 3))


@pytest.mark.parametrize("bad", [None, b"", b"not an image", PNG[:8], PNG[:-40]], ids=repr)
def test_a_row_that_does_not_decode_is_located(tmp_path, bad):
    images = [*encoded(3), bad and {"bytes": bad, "path": None}]
    name = write_table(tmp_path / "d", [0] * 4, images=images)
    message = r"image_column: row 1 of 'train\[2:\]' does not decode .*: .*\. Replace the file"
    with pytest.raises(ValueError, match=message):
        load(name, split="train[2:]")


def test_a_file_that_does_not_decode_is_located(tmp_path):
    write_images(tmp_path, *(f"train/{name}/{i}.png" for name in ("cat", "dog") for i in range(4)))
    broken = tmp_path / "train" / "dog" / "1.png"
    broken.unlink()
    broken.symlink_to(tmp_path / "nowhere")
    with pytest.raises(ValueError, match=r"row 5 of 'train' \(.*1\.png\) does not"):
        load(tmp_path)
