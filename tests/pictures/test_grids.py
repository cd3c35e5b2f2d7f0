"""Pictures stay small and legible with many classes and long names."""

import time

import numpy as np
import pytest
from PIL import Image

from mtl_diffusion.pictures.grids import LIMIT, ROWS, grid, own_samples, picture, pictures_of


def tile(value, size=8):
    return Image.new("RGB", (size, size), (value, value, value))


def test_tiles_are_where_they_belong_and_enlarged_without_smoothing():
    sheet = np.asarray(grid([[tile(10), None], [tile(200), tile(90)]], cell=16))
    assert sheet.shape == (44, 44, 3)
    assert (sheet[4:20, 4:20] == 10).all() and (sheet[24:40, 24:40] == 90).all()
    assert (sheet[24:40, 4:20] == 200).all() and (sheet[4:20, 24:40] == 255).all()


@pytest.mark.parametrize("compact, pitch", [(False, 68), (True, 50)])
def test_a_hundred_classes_make_ten_rows(build_pipe, compact, pitch):
    """In seconds: what is not shown is not drawn either."""
    hundred = build_pipe(classes=tuple(f"class number {i:02d}" for i in range(100)))
    started, drawn = time.monotonic(), []
    hundred.unet.register_forward_pre_hook(lambda _, args: drawn.append(len(args[0])))
    pictures = pictures_of(hundred, compact=compact, num_inference_steps=2)
    assert set(pictures) == set(hundred.tasks)
    width = pictures["edit"].width
    assert (width - 1) // pitch == 1 + ROWS  # the source, and ten classes
    assert {pictures[task].height for task in ("generate", "inpaint", "edit")} == {
        18 + ROWS * pitch
    }
    assert all(max(picture.size) <= LIMIT for picture in pictures.values())
    assert max(drawn) <= 3 * ROWS * ROWS and time.monotonic() - started < 60


def test_a_model_that_generates_nothing_has_grey_sources(build_pipe):
    pipe = build_pipe(tasks=("inpaint", "colorize"))
    assert picture(own_samples(pipe)[0], pipe.format).getpixel((0, 0)) == (128, 128, 128)
    assert set(pictures_of(pipe, num_inference_steps=2)) == {"inpaint", "colorize"}
