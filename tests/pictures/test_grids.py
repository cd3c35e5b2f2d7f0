"""Pictures stay small and legible with many classes and long names."""

import time

import numpy as np
import pytest
from PIL import Image

from mtl_diffusion.pictures.grids import (
    LIMIT,
    ROWS,
    grid,
    own_samples,
    picture,
    pictures_of,
    side_by_side,
)


def tile(value, size=8):
    return Image.new("RGB", (size, size), (value, value, value))


def test_tiles_are_where_they_belong_and_enlarged_without_smoothing():
    sheet = np.asarray(grid([[tile(10), None], [tile(200), tile(90)]], cell=16))
    assert sheet.shape == (44, 44, 3)
    assert (sheet[4:20, 4:20] == 10).all() and (sheet[24:40, 24:40] == 90).all()
    assert (sheet[24:40, 4:20] == 200).all() and (sheet[4:20, 24:40] == 255).all()


@pytest.fixture(scope="module")
def hundred(build_pipe):
    return build_pipe(classes=tuple(f"class number {i:02d}" for i in range(100)))


def test_a_hundred_classes_make_ten_rows(hundred):
    """In seconds: what is not shown is not drawn either."""
    started = time.monotonic()
    drawn = []
    hook = hundred.unet.register_forward_pre_hook(
        lambda _, args: drawn.append(len(args[0])), with_kwargs=False
    )
    sources = own_samples(hundred, 12)
    pictures = pictures_of(hundred, sources, samples=2, edits=12, num_inference_steps=2)
    hook.remove()
    assert set(pictures) == set(hundred.tasks)
    assert pictures["generate"].height == 4 + ROWS * 68
    assert pictures["edit"].size == (4 + (1 + ROWS) * 68, 18 + ROWS * 68)
    assert all(max(picture.size) <= LIMIT for picture in pictures.values())
    assert max(side_by_side(list(pictures.values())).size) <= LIMIT
    assert max(drawn) <= 3 * ROWS * ROWS and time.monotonic() - started < 60


def test_a_model_that_generates_nothing_has_grey_sources(build_pipe):
    pipe = build_pipe(tasks=("inpaint", "colorize"))
    (first, *_) = own_samples(pipe, 4)
    assert picture(first, pipe.format).getpixel((0, 0)) == (128, 128, 128)
    assert set(pictures_of(pipe, [first] * 4, 1, 1)) == {"inpaint", "colorize"}
