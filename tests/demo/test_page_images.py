"""An upload is read as training reads the images of a dataset, or refused in words of the page."""

import io

import numpy as np
import pytest
from PIL import ExifTags, Image

from mtl_diffusion.demo.reading import MOST_PIXELS, read_file
from mtl_diffusion.pipeline.rgb import read_rgb


def encoded(image, kind="PNG", **options):
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return io.BytesIO(buffer.getvalue())


def test_a_picture_is_read():
    exif, pixels = Image.Exif(), np.random.default_rng(0).integers(0, 256, (6, 4, 4), np.uint8)
    exif[ExifTags.Base.Orientation] = 6
    file = encoded(Image.fromarray(pixels), exif=exif)
    assert np.array_equal(np.asarray(read_file(file)), np.asarray(read_rgb(Image.open(file))))


@pytest.mark.parametrize(
    "file, words",
    [
        (lambda: io.BytesIO(b"<svg></svg>"), "can't be read as a picture"),
        (lambda: io.BytesIO(encoded(Image.effect_noise((9, 9), 50)).getvalue()[:80]), "damaged"),
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
