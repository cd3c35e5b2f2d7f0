"""What becomes of an image: its pixels, and when they are decoded again."""

import io
import os
import struct
import zlib
from pathlib import Path

import datasets
import numpy as np
import pytest
import torch
from PIL import Image
from tables import IMAGE, NAMED, encoded, load, noise, png, write_images, write_parquet

from mtl_diffusion.data import decode as decode_module
from mtl_diffusion.data.decode import Decoder, Encoded


def one(content: bytes, resolution=8) -> torch.Tensor:
    (image,), _ = Decoder(resolution, threads=1)([Encoded(content, None, "row 0")])
    return image


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def deep_png(pixels: np.ndarray, colour: int) -> bytes:
    """A PNG of 16 bits; colour 0: grey, 2: RGB."""
    height, width = pixels.shape[:2]
    header = struct.pack(">IIBBBBB", width, height, 16, colour, 0, 0, 0)
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in pixels)
    parts = chunk(b"IHDR", header), chunk(b"IDAT", zlib.compress(rows)), chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def with_chunk(content: bytes, extra: bytes) -> bytes:
    return content[:33] + extra + content[33:]  # after the header


def test_transparency_is_composited_over_white():
    array = noise(8, 8, 4)
    array[..., 3] = 255
    array[:4, :, 3] = 0
    image = one(png(array))
    assert (image[:, :4] == 255).all()
    assert torch.equal(image[:, 4:], torch.from_numpy(array[4:, :, :3]).permute(2, 0, 1))


def test_greyscale_becomes_rgb():
    array = noise(8, 8)
    assert torch.equal(one(png(array)), torch.from_numpy(array).expand(3, 8, 8))


def test_palette_and_cmyk_become_rgb():
    red = Image.new("RGB", (8, 8), "red")
    for mode, kind in {"P": "GIF", "CMYK": "JPEG"}.items():
        buffer = io.BytesIO()
        red.convert(mode).save(buffer, kind)
        image = one(buffer.getvalue())
        assert (image[0] > 240).all() and (image[1:] < 15).all()


def test_other_sizes_are_cropped_to_the_centre_and_resized():
    array = noise(16, 24, 3)
    exact = torch.from_numpy(array[:, 4:20].copy()).permute(2, 0, 1)
    assert torch.equal(one(png(array), resolution=16), exact)
    stripes = np.zeros((16, 24, 3), np.uint8)
    stripes[:, ::2] = 255
    half = one(png(stripes))
    assert half.shape == (3, 8, 8)
    assert half[..., 2:-2].float().sub(127.5).abs().max() < 3  # antialiased: stripes become grey


# Damage outside the pixels


@pytest.mark.parametrize("damage", [None, "another tag"])
def test_exif_orientation_is_applied(damage):
    array, buffer = noise(8, 8, 3), io.BytesIO()
    turn = struct.pack("<HHIHH", 0x0112, 3, 1, 6, 0)  # a quarter clockwise
    # A unit of resolution that is a text: Pillow reads it, and can't write it.
    other = struct.pack("<HHI4s", 0x0128, 2, 4, b"abc\0") if damage else b""
    count = 2 if damage else 1
    tags = b"II*\0" + struct.pack("<IH", 8, count) + turn + other + struct.pack("<I", 0)
    Image.fromarray(array).save(buffer, "PNG", exif=b"Exif\0\0" + tags)
    turned = torch.from_numpy(np.rot90(array, -1).copy()).permute(2, 0, 1)
    assert torch.equal(one(buffer.getvalue()), turned)


@pytest.mark.parametrize("exif", [b"Exif\0\0garbage", b"Exif\0\0II*\0\xff\xff\xff\xff", b"\0" * 30])
def test_exif_that_is_no_exif(exif):
    buffer = io.BytesIO()
    Image.fromarray(noise(8, 8, 3)).save(buffer, "PNG", exif=exif)
    assert torch.equal(one(buffer.getvalue()), torch.from_numpy(noise(8, 8, 3)).permute(2, 0, 1))


@pytest.mark.parametrize("place", ["before", "after"])
@pytest.mark.parametrize(
    "extra",
    [
        chunk(b"zTXt", b"comment\0\0" + zlib.compress(b"x" * (3 << 20))),
        chunk(b"iCCP", b"profile\0\0not compressed"),
    ],
    ids=["a long text", "a damaged profile"],
)
def test_what_is_wrong_beside_the_pixels_is_no_matter(extra, place):
    content = png(noise(8, 8, 3))
    at = 33 if place == "before" else len(content) - 12
    content = content[:at] + extra + content[at:]
    assert torch.equal(one(content), torch.from_numpy(noise(8, 8, 3)).permute(2, 0, 1))


def test_what_is_wrong_with_the_pixels_is_said():
    text = chunk(b"zTXt", b"c\0\0" + zlib.compress(b"x" * (3 << 20)))
    content = with_chunk(png(noise(8, 8, 3)), text)
    for bad in (content[:-40], b"", b"\x89PNG\r\n\x1a\n", b"text"):
        with pytest.raises(ValueError, match="image_column: row 0 does not decode as an image: "):
            one(bad)


# 16 bits


def test_16_bit_greyscale_keeps_its_range():
    array = np.linspace(0, 65535, 64).reshape(8, 8).astype(np.uint16)
    assert torch.equal(one(deep_png(array, 0))[0], torch.from_numpy(array // 256).byte())


def test_16_bit_greyscale_has_transparency_too():
    array = np.full((8, 8), 40000, np.uint16)
    array[:4] = 3000
    content = with_chunk(deep_png(array, 0), chunk(b"tRNS", struct.pack(">H", 3000)))
    assert one(content)[0].unique().tolist() == [40000 >> 8, 255]
    assert (one(content)[:, :4] == 255).all()


@pytest.mark.parametrize("colour", [0, 2])
def test_12_bits_in_16_are_refused(tmp_path, colour):
    """Of a split, not of an image: one may be dark."""
    shape = (8, 8) if colour == 0 else (8, 8, 3)
    dark = deep_png(np.full(shape, 4095), colour)
    write_images(tmp_path, "3.png")
    for i in range(3):
        (tmp_path / f"{i}.png").write_bytes(dark)
    with pytest.raises(
        ValueError, match=r"16-bit images of 'train' have no value above 4,095.* by 16"
    ):
        load(tmp_path)
    (tmp_path / "2.png").write_bytes(deep_png(np.full(shape, 65535), colour))
    assert load(tmp_path).images[0].unique().tolist() == [15]


@pytest.mark.parametrize("bad", [70000, -1])
def test_32_bit_values_that_16_cannot_hold_are_refused(bad):
    buffer = io.BytesIO()
    Image.fromarray(np.array([[0, bad]], np.int32)).save(buffer, "TIFF")
    with pytest.raises(ValueError, match="row 0 does not decode as an image: it has values from"):
        one(buffer.getvalue())


# What is read again


def replace(path: Path, content: bytes) -> None:
    """As `cp -p` and `rsync -t` do: the time of the file stays."""
    times = path.stat()
    path.write_bytes(content)
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))


def test_the_decoding_is_kept_across_runs(tmp_path, monkeypatch):
    write_images(tmp_path, "1.png", "2.png")
    first = load(tmp_path)
    monkeypatch.setattr(decode_module, "decode", None)
    assert load(tmp_path).fingerprint == first.fingerprint


def test_a_picture_that_is_replaced_is_read_again(tmp_path):
    write_images(tmp_path, "1.png", "2.png")
    first = load(tmp_path)
    replace(tmp_path / "2.png", png(noise(8, 8, 3, seed=5)))
    second = load(tmp_path)
    assert np.array_equal(second.images[1].permute(1, 2, 0), noise(8, 8, 3, seed=5))
    assert second.fingerprint != first.fingerprint


def test_a_picture_behind_a_table_that_is_replaced_is_read_again(tmp_path):
    write_images(tmp_path / "pictures", "1.png")
    columns = {"image": [{"bytes": None, "path": str(tmp_path / "pictures/1.png")}], "label": [0]}
    name = write_parquet(tmp_path / "d", columns, {"image": IMAGE, "label": NAMED})
    first = load(name)
    replace(tmp_path / "pictures/1.png", png(noise(8, 8, 3, seed=5)))
    assert np.array_equal(load(name).images[0].permute(1, 2, 0), noise(8, 8, 3, seed=5))
    assert load(name).fingerprint != first.fingerprint


def test_a_table_that_is_replaced_is_read_again(tmp_path):
    features = {"image": IMAGE, "label": NAMED}
    names = [
        write_parquet(tmp_path / str(i), {"image": encoded(2), "label": [0, i]}, features)
        for i in (0, 1)
    ]
    assert load(names[0]).labels.tolist() == [0, 0]
    (file,) = Path(names[0]).iterdir()
    replace(file, Path(names[1], file.name).read_bytes())
    assert load(names[0]).labels.tolist() == [0, 1]


def test_a_damaged_cache_is_decoded_anew(tmp_path, monkeypatch):
    write_images(tmp_path / "d", "1.png", "2.png")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    first = load(tmp_path / "d")
    (file,) = (tmp_path / "cache").rglob("*.npy")
    for content in (file.read_bytes()[:-100], b""):
        file.write_bytes(content)
        assert load(tmp_path / "d").fingerprint == first.fingerprint


def test_without_room_for_the_cache_a_run_goes_on(tmp_path, monkeypatch, caplog):
    write_images(tmp_path / "d", "1.png", "2.png")
    (tmp_path / "file").write_text("in the folder's place")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "file")
    assert len(load(tmp_path / "d")) == 2
    assert "are not kept for the next run" in caplog.text


# Rows that are named


def test_a_truncated_image_is_located(tmp_path):
    write_images(tmp_path, *(f"train/{name}/{i}.png" for name in ("cat", "dog") for i in range(4)))
    broken = tmp_path / "train" / "dog" / "1.png"
    broken.write_bytes(broken.read_bytes()[:60])
    with pytest.raises(ValueError, match=r"image_column: row 5 of 'train' \(.*1\.png\) does not"):
        load(tmp_path)
    broken.unlink()
    broken.symlink_to(tmp_path / "nowhere")
    with pytest.raises(ValueError, match=r"row 5 of 'train' \(.*1\.png\) does not"):
        load(tmp_path)


@pytest.mark.parametrize("bad", [None, {"bytes": b"not an image", "path": None}])
def test_a_row_without_an_image_is_located(tmp_path, bad):
    columns = {"image": [*encoded(3), bad], "label": [0] * 4}
    name = write_parquet(tmp_path / "d", columns, {"image": IMAGE, "label": NAMED})
    with pytest.raises(ValueError, match=r"image_column: row 1 of 'train\[2:\]' does not decode"):
        load(name, split="train[2:]")
