"""One function makes every image RGB: its colours, its depth, its turn."""

import io
import struct

import numpy as np
import pytest
from PIL import Image, ImageCms
from tables import noise

from mtl_diffusion.pipeline.format import ImageFormat
from mtl_diffusion.pipeline.inputs import read_images, read_masks
from mtl_diffusion.pipeline.rgb import read_rgb

RED, GREEN, SQUARE = (255, 0, 0), (0, 255, 0), ImageFormat.square(8)
PIXELS, GREY, DEEP = noise(8, 8, 3), noise(8, 8), np.linspace(0, 65535, 64).reshape(8, 8)
SRGB = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()


def again(image: Image.Image, kind: str = "PNG", **options) -> Image.Image:
    """The image, written and opened."""
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return Image.open(buffer)


def red(mode: str = "RGB", kind: str = "PNG", **options) -> Image.Image:
    return again(Image.new("RGB", (8, 8), RED).convert(mode), kind, **options)


def exchanged_profile() -> bytes:
    """A profile of RGB whose colours are those of sRGB with red and green exchanged."""
    profile = bytearray(SRGB)
    tags = {bytes(profile[i : i + 4]): i for i in range(132, 132 + 12 * profile[131], 12)}
    red, green = tags[b"rXYZ"], tags[b"gXYZ"]
    profile[red : red + 4], profile[green : green + 4] = b"gXYZ", b"rXYZ"
    return bytes(profile)


def exif(*tags: bytes) -> bytes:
    return b"Exif\0\0II*\0" + struct.pack("<IH", 8, len(tags)) + b"".join(tags) + bytes(4)


EXCHANGED = exchanged_profile()
OF_GREY = EXCHANGED[:16] + b"GRAY" + EXCHANGED[20:]
TURN = struct.pack("<HHIHH", 0x0112, 3, 1, 6, 0)  # a quarter clockwise
# A unit of resolution that is a text: Pillow reads it, and can't write it.
ODD = struct.pack("<HHI4s", 0x0128, 2, 4, b"abc\0")
IMAGE = Image.fromarray(PIXELS)
DEEP_GREY = np.stack([DEEP.astype(np.uint16) // 256] * 3, -1)
# An image, the pixels that are read of it, and how much they may differ.
READ = {
    "RGB": (again(IMAGE), PIXELS, 0),
    "sRGB": (again(IMAGE, icc_profile=SRGB), PIXELS, 0),
    "no profile": (again(IMAGE, icc_profile=b"not a profile"), PIXELS, 0),
    "a profile of grey": (again(IMAGE, icc_profile=OF_GREY), PIXELS, 0),
    "exchanged RGB": (red(icc_profile=EXCHANGED), GREEN, 3),
    "exchanged RGBA": (red("RGBA", icc_profile=EXCHANGED), GREEN, 3),
    "P": (red("P"), RED, 15),
    "CMYK": (red("CMYK", "JPEG"), RED, 15),
    "RGBA": (red("RGBA"), RED, 15),
    "LAB": (Image.new("LAB", (8, 8), (136, 208, 195)), RED, 15),
    "grey": (Image.fromarray(GREY), np.stack([GREY] * 3, -1), 0),
    "1": (Image.new("1", (8, 8), 1), (255, 255, 255), 0),
    "turned": (again(IMAGE, exif=exif(TURN)), np.rot90(PIXELS, -1), 0),
    "turned with an odd tag": (again(IMAGE, exif=exif(TURN, ODD)), np.rot90(PIXELS, -1), 0),
    "garbage": (again(IMAGE, exif=b"Exif\0\0garbage"), PIXELS, 0),
    "garbage in tags": (again(IMAGE, exif=b"Exif\0\0II*\0\xff\xff\xff\xff"), PIXELS, 0),
    # 16 bits keep their range.
    "I;16": (Image.fromarray(DEEP.astype(np.uint16)), DEEP_GREY, 0),
    "I": (Image.fromarray(DEEP.astype(np.int32)), DEEP_GREY, 0),
}


@pytest.mark.parametrize("name", READ)
@pytest.mark.filterwarnings("ignore:Corrupt EXIF data")
def test_an_image_is_read_in_srgb_and_upright_by_training_and_by_a_call(name):
    image, expected, tolerance = READ[name]
    rgb = read_rgb(image)
    assert rgb.mode == "RGB"
    assert np.abs(np.asarray(rgb).astype(int) - expected).max() <= tolerance
    called = 255 * read_images(image, SQUARE)[0][0].permute(1, 2, 0)
    assert np.array_equal(called.round().numpy(), rgb)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(
    "mode, clear", [("RGBA", None), ("LA", None), ("PA", None), ("P", 0), ("P", b"\0\x80")]
)
def test_transparency_is_composited_over_white(mode, clear):
    pixels = noise(8, 8, 4)
    pixels[..., 3] = 255
    pixels[:4, :, 3] = 0
    image = Image.fromarray(pixels).convert(mode)
    if mode == "P":  # one of two colours is transparent
        image = Image.new("P", (8, 8), 1)
        image.paste(0, (0, 0, 8, 4))
        image.putpalette([*RED, 0, 0, 255])
        image = again(image, transparency=clear)
    rgb = np.asarray(read_rgb(image))
    assert (rgb[:4] == 255).all() and not (rgb[4:] == 255).all()


@pytest.mark.parametrize("bad", [[0, 70000], [0, -1], [0.5, 1.0]])
def test_numbers_without_a_known_range_are_refused(bad):
    image = Image.fromarray(np.array([bad], np.float32 if bad == [0.5, 1.0] else np.int32))
    with pytest.raises(ValueError, match=r"it has values from|floating point numbers"):
        read_rgb(image)


@pytest.mark.parametrize("mode", ["L", "RGB", "RGBA", "LA", "CMYK", "LAB", "I;16", "I"])
def test_masks_of_a_call_may_have_any_mode_in_which_grey_keeps_its_range(mode):
    if mode.startswith("I"):
        image = Image.fromarray(DEEP.astype(np.uint16 if mode == "I;16" else np.int32))
    else:
        image = Image.fromarray((DEEP / 257).astype(np.uint8)).convert("RGB").convert(mode)
    assert np.array_equal(read_masks(image, SQUARE)[0, 0].numpy(), DEEP > 32767)
