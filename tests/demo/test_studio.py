"""What the page asks a pipeline for, and how it reads an upload, without a page."""

import io

import numpy as np
import pytest
from PIL import ExifTags, Image, ImageDraw

from mtl_diffusion.demo.studio import Studio, hole, read_file
from mtl_diffusion.pipeline.rgb import read_rgb

SETTINGS = ("dog", 3, 2)  # the class, the seed and the steps


def noise(width, height):
    pixels = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def layer(*boxes, size=(384, 384)):
    painted = Image.new("RGBA", size, (0, 0, 0, 0))
    for box in boxes:
        ImageDraw.Draw(painted).rectangle(box, fill=(255, 0, 255, 255))
    return painted


@pytest.fixture(scope="module")
def studio(pipe):
    return Studio(pipe)


def same(one, other):
    return one.size == other.size and one.tobytes() == other.tobytes()


def test_a_picture_and_its_mask_are_cropped_to_their_middle(studio):
    wide = Image.new("RGB", (300, 100), "red")
    wide.paste("blue", (100, 0, 200, 100))
    assert same(studio.fit(wide), Image.new("RGB", (8, 8), "blue"))
    left = hole([layer((100, 0, 149, 99), size=wide.size)], (8, 8))  # of the middle
    assert (np.asarray(left) == ([255] * 4 + [0] * 4)).all()


def test_what_was_enlarged_comes_back_pixel_by_pixel(studio):
    small = noise(8, 8)
    assert studio.enlarged(small).size == (384, 384)
    assert same(studio.fit(studio.enlarged(small)), small)
    assert same(studio.fit(small), small)
    # One pixel aside, and it is a photograph like any other: averaged, not picked.
    changed = studio.enlarged(small)
    changed.putpixel((5, 5), (1, 2, 3))
    assert not same(studio.fit(changed), small)


def test_inpainting_keeps_what_is_not_painted_over(studio):
    image, painted = noise(8, 8), [layer((0, 0, 191, 383))]
    given = {"image": studio.enlarged(image), "layers": painted}
    results = studio.draw("inpaint", 2, *SETTINGS, **given)
    assert [caption for _, caption in results] == ["given", "seed 3", "seed 4"]
    assert results[0][0].getpixel((0, 0)) == (128, 128, 128)
    for result, _ in results:
        assert same(result.crop((4, 0, 8, 8)), image.crop((4, 0, 8, 8)))
        assert not same(result, image)
    assert not same(results[1][0], results[2][0])


def test_an_edit_is_shown_at_several_strengths_from_one_noise(studio):
    image = noise(8, 8)
    (source, caption), *results = studio.draw("edit", 0.1, *SETTINGS, image=image)
    assert same(source, image) and caption == "source"
    captions = [caption for _, caption in results]
    assert captions == ["strength 0", "strength 0.1", "strength 0.2", "strength 0.3"]
    assert same(results[0][0], image)  # nothing is hidden at 0
    alone = studio.draw("edit", 0.3, *SETTINGS, image=image)
    assert same(dict(map(reversed, alone))["strength 0.2"], results[2][0])


def test_image_i_is_drawn_from_seed_plus_i(studio):
    first = studio.draw("generate", 2, *SETTINGS)
    ((second, caption),) = studio.draw("generate", 1, "dog", 4, 2)
    assert caption == first[1][1] == "seed 4"
    assert same(first[1][0], second) and not same(first[0][0], second)


def encoded(image, kind="PNG", **options):
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return io.BytesIO(buffer.getvalue())


def test_an_upload_is_read_as_training_reads_the_images_of_a_dataset():
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    file = encoded(noise(4, 6), exif=exif)
    assert same(read_file(file), read_rgb(Image.open(file)))


@pytest.mark.parametrize(
    "task, settings, given, words",
    [
        ("edit", SETTINGS, {}, "no picture yet: upload a"),
        ("inpaint", SETTINGS, {"image": noise(8, 8), "layers": [layer()]}, "paint over what is"),
        ("edit", (None, 0, 2), {"image": noise(8, 8)}, "Choose the class"),
        ("generate", ("dog", None, 2), {}, "seed is None; give a whole number from 0"),
        ("generate", ("dog", -1, 2), {}, "seed is -1; give a whole number from 0"),
    ],
)
def test_what_is_missing_is_said(studio, task, settings, given, words):
    with pytest.raises(ValueError, match=words):
        studio.draw(task, 1, *settings, **given)


@pytest.mark.parametrize(
    "file, words",
    [
        (io.BytesIO(b"<svg></svg>"), "can't be read: it is no picture"),
        (io.BytesIO(encoded(noise(9, 9)).getvalue()[:80]), "can't be read: it is no picture"),
        (encoded(Image.new("1", (14000, 14000))), "can't be read: .* too large"),
        (encoded(Image.new("F", (2, 2)), "TIFF"), "floating point"),
    ],
)
def test_an_upload_that_cannot_be_read(file, words):
    with pytest.raises(ValueError, match=words):
        read_file(file)
