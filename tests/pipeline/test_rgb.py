"""One function makes every image RGB: its colours, its depth, its turn."""

import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image, ImageCms
from tables import noise, png

from mtl_diffusion.pipeline.rgb import read_rgb

RED = (255, 0, 0)


def again(image: Image.Image, kind: str = "PNG", **options) -> Image.Image:
    """The image, written and opened."""
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return Image.open(buffer)


def wide_profile() -> bytes:
    """A profile of RGB whose colours are those of sRGB with red and green exchanged."""
    profile = bytearray(ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes())
    tags = {bytes(profile[i : i + 4]): i for i in range(132, 132 + 12 * profile[131], 12)}
    red, green = tags[b"rXYZ"], tags[b"gXYZ"]
    profile[red : red + 4], profile[green : green + 4] = b"gXYZ", b"rXYZ"
    return bytes(profile)


def test_rgb_stays_as_it_is():
    pixels = noise(8, 8, 3)
    srgb = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    for options in ({}, {"icc_profile": srgb}, {"icc_profile": b"not a profile"}):
        assert np.array_equal(read_rgb(again(Image.fromarray(pixels), **options)), pixels)


@pytest.mark.parametrize(
    ("mode", "kind"),
    [
        ("P", "GIF"),
        ("P", "PNG"),
        ("CMYK", "JPEG"),
        ("YCbCr", "JPEG"),
        ("RGBA", "PNG"),
        (None, "BMP"),
    ],
)
def test_other_modes(mode, kind):
    image = Image.new("RGB", (8, 8), RED)
    rgb = read_rgb(again(image.convert(mode) if mode else image, kind))
    assert rgb.mode == "RGB" and np.abs(np.asarray(rgb).astype(int) - RED).max() < 16


def test_lab():
    image = Image.new("LAB", (2, 2), (136, 208, 195))  # sRGB's red
    assert np.abs(np.asarray(read_rgb(image)).astype(int) - RED).max() < 16


def test_grey_and_bilevel():
    grey = noise(8, 8)
    assert np.array_equal(read_rgb(Image.fromarray(grey)), np.stack([grey] * 3, -1))
    assert read_rgb(Image.new("1", (2, 2), 1)).getpixel((0, 0)) == (255, 255, 255)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(
    ("mode", "clear"), [("RGBA", None), ("LA", None), ("PA", None), ("P", 0), ("P", b"\0\x80")]
)
def test_transparency_is_composited_over_white(mode, clear):
    pixels = noise(8, 8, 4)
    pixels[..., 3] = 255
    pixels[:4, :, 3] = 0
    image = Image.fromarray(pixels)
    if mode == "P":  # one of two colours is transparent
        image = Image.new("P", (8, 8), 1)
        image.paste(0, (0, 0, 8, 4))
        image.putpalette([*RED, 0, 0, 255])
        image = again(image, transparency=clear)
    rgb = np.asarray(read_rgb(image if mode == "P" else image.convert(mode)))
    assert (rgb[:4] == 255).all() and not (rgb[4:] == 255).all()


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "P"])
def test_a_profile_is_converted_to_srgb(mode):
    image = Image.new("RGB", (8, 8), RED).convert(mode)
    rgb = read_rgb(again(image, icc_profile=wide_profile()))
    assert np.abs(np.asarray(rgb).astype(int) - (0, 255, 0)).max() < 4


def test_a_profile_of_another_kind_of_pixels_is_left_out():
    cmyk = bytearray(wide_profile())
    cmyk[16:20] = b"GRAY"
    pixels = noise(8, 8, 3)
    assert np.array_equal(read_rgb(again(Image.fromarray(pixels), icc_profile=bytes(cmyk))), pixels)


def exif(*tags: bytes) -> bytes:
    return b"Exif\0\0II*\0" + struct.pack("<IH", 8, len(tags)) + b"".join(tags) + bytes(4)


TURN = struct.pack("<HHIHH", 0x0112, 3, 1, 6, 0)  # a quarter clockwise
# A unit of resolution that is a text: Pillow reads it, and can't write it.
ODD = struct.pack("<HHI4s", 0x0128, 2, 4, b"abc\0")


@pytest.mark.parametrize(
    ("tags", "turns"),
    [
        (exif(TURN), -1),
        (exif(TURN, ODD), -1),
        (b"Exif\0\0garbage", 0),
        (b"Exif\0\0II*\0\xff\xff\xff\xff", 0),
        (b"\0" * 30, 0),
    ],
)
@pytest.mark.filterwarnings("ignore:Corrupt EXIF data")
def test_the_orientation_is_applied(tags, turns):
    pixels = noise(4, 8, 3)
    rgb = read_rgb(again(Image.fromarray(pixels), exif=tags))
    assert np.array_equal(rgb, np.rot90(pixels, turns))


def test_grey_of_16_bits_keeps_its_range():
    grey = np.linspace(0, 65535, 64).reshape(8, 8).astype(np.uint16)
    for image in (
        Image.fromarray(grey),
        again(Image.fromarray(grey)),
        Image.fromarray(grey.astype(np.int32)),
    ):
        assert np.array_equal(np.asarray(read_rgb(image))[..., 0], grey // 256)


def test_grey_of_16_bits_has_transparency_too():
    grey = np.full((8, 8), 40000, np.uint16)
    grey[:4] = 3000
    data = struct.pack(">H", 3000)
    chunk = struct.pack(">I", 2) + b"tRNS" + data + struct.pack(">I", zlib.crc32(b"tRNS" + data))
    content = png(grey)
    rgb = np.asarray(read_rgb(Image.open(io.BytesIO(content[:33] + chunk + content[33:]))))
    assert (rgb[:4] == 255).all() and (rgb[4:] == 40000 >> 8).all()


@pytest.mark.parametrize("bad", [[0, 70000], [0, -1], [0.5, 1.0]])
def test_numbers_without_a_known_range_are_refused(bad):
    image = Image.fromarray(np.array([bad], np.float32 if bad == [0.5, 1.0] else np.int32))
    with pytest.raises(ValueError, match=r"it has values from|floating point numbers"):
        read_rgb(image)
