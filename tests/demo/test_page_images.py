"""An upload is read as training reads the images of a dataset."""

import io

import numpy as np
import pytest
from PIL import Image, ImageCms

from mtl_diffusion.demo.reading import MOST_PIXELS, read_file, read_rgb

COLOURS = np.random.default_rng(0).integers(0, 256, (6, 4, 3), dtype=np.uint8)
SRGB = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
# Red is green in it, and green is red.
SWAPPED = SRGB.replace(b"rXYZ", b"-XYZ").replace(b"gXYZ", b"rXYZ").replace(b"-XYZ", b"gXYZ")


def encoded(image, kind="PNG", **options):
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return io.BytesIO(buffer.getvalue())


def rgb():
    return Image.fromarray(COLOURS)


def turned():
    exif = Image.Exif()
    exif[274] = 6
    return encoded(rgb().transpose(Image.Transpose.ROTATE_90), exif=exif)


def half_clear():
    image = rgb().convert("RGBA")
    image.paste((0, 0, 0, 0), (0, 0, 2, 6))
    return encoded(image)


def deep(values, **options):
    return encoded(Image.fromarray(np.asarray(values, np.uint16)), **options)


SHADES = [[0, 255, 256, 65535]]
CASES = {
    "as it is": (lambda: encoded(rgb()), COLOURS),
    "turned": (turned, COLOURS),
    "clear is white": (half_clear, np.where(np.arange(4)[:, None] < 2, 255, COLOURS)),
    "grey of 16 bits": (lambda: deep(SHADES), [[[0] * 3, [0] * 3, [1] * 3, [255] * 3]]),
    "clear of 16 bits": (lambda: deep([[0, 7]], transparency=7), [[[0] * 3, [255] * 3]]),
    "the profile of sRGB": (lambda: encoded(rgb(), icc_profile=SRGB), COLOURS),
    "no profile": (lambda: encoded(rgb(), icc_profile=b"none"), COLOURS),
    "palette": (lambda: encoded(rgb().convert("P")), np.asarray(rgb().convert("P").convert("RGB"))),
}


@pytest.mark.parametrize("case", CASES)
def test_a_picture_is_read(case):
    write, expected = CASES[case]
    assert np.array_equal(np.asarray(read_file(write())), expected)


def test_colours_are_converted_to_srgb():
    red, green = (
        Image.new("RGB", (4, 4), "red"),
        read_file(encoded(Image.new("RGB", (4, 4), "red"), icc_profile=SWAPPED)),
    )
    assert np.abs(np.subtract(green.getpixel((0, 0)), (0, 255, 0))).max() < 8
    assert read_rgb(red).getpixel((0, 0)) == (255, 0, 0)


def test_training_reads_it_so():
    """The page ships alone to a Space, so it has this function of its own."""
    training = pytest.importorskip("mtl_diffusion.tools.rgb").read_rgb
    files = [write for write, _ in CASES.values()]
    files.append(lambda: encoded(rgb(), icc_profile=SWAPPED))
    for write in files:
        image = Image.open(write())
        image.load()
        assert np.array_equal(np.asarray(training(image)), np.asarray(read_file(write())))


@pytest.mark.parametrize(
    "file, words",
    [
        (lambda: io.BytesIO(b"<svg></svg>"), "can't be read as a picture"),
        (lambda: io.BytesIO(encoded(rgb()).getvalue()[:60]), "damaged"),
        (
            lambda: encoded(Image.new("1", (8000, 8000))),
            "8000x8000 pixels, of which at most 50 mil",
        ),
        (lambda: encoded(Image.new("1", (14000, 14000))), "damaged or too large"),
        (lambda: encoded(Image.new("F", (2, 2)), "TIFF"), "floating point"),
    ],
)
def test_what_is_no_picture_is_refused(file, words):
    assert 14000**2 > 2 * Image.MAX_IMAGE_PIXELS > MOST_PIXELS
    with pytest.raises(ValueError, match=words):
        read_file(file())
