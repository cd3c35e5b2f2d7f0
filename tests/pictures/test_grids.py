"""Pictures stay small and legible with many classes and long names."""

import numpy as np
import torch
from PIL import Image

from mtl_diffusion.pictures.grids import (
    LIMIT,
    ROWS,
    grid,
    pictures_of,
    side_by_side,
    surest_samples,
)


def tile(value, size=8):
    return Image.new("RGB", (size, size), (value, value, value))


def test_tiles_are_where_they_belong_and_enlarged_without_smoothing():
    sheet = np.asarray(grid([[tile(10), None], [tile(200), tile(90)]], cell=16))
    assert sheet.shape == (44, 44, 3)
    assert (sheet[4:20, 4:20] == 10).all() and (sheet[24:40, 24:40] == 90).all()
    assert (sheet[24:40, 4:20] == 200).all() and (sheet[4:20, 24:40] == 255).all()


def test_a_hundred_classes_make_ten_rows(build_pipe):
    """In seconds: what is not shown is not drawn either."""
    hundred = build_pipe(classes=tuple(f"class number {i:02d}" for i in range(100)))
    drawn = []
    hundred.unet.register_forward_pre_hook(lambda _, args: drawn.append(len(args[0])))
    pictures = pictures_of(hundred, num_inference_steps=2)
    assert set(pictures) == set(hundred.tasks)
    assert (pictures["edit"].width - 1) // 50 == 1 + ROWS  # the source, and ten classes
    assert {picture.height for picture in pictures.values()} == {18 + ROWS * 50}
    assert max(side_by_side([*pictures.values()] * 2).size) == LIMIT
    assert max(drawn) <= 3 * ROWS * ROWS


def test_a_model_that_generates_nothing_has_grey_sources(build_pipe):
    pipe = build_pipe(tasks=("inpaint", "colorize"))
    pictures = pictures_of(pipe, num_inference_steps=2)
    assert set(pictures) == {"inpaint", "colorize"}
    assert pictures["colorize"].getpixel((100, 50)) == (128, 128, 128)


def test_the_source_is_the_sample_that_a_classifier_is_surest_of(build_pipe):
    pipe, seen = build_pipe(classes=("cat", "dog")), []

    class Brightest:  # it takes the brighter images for the first class, the darker for the second
        class_names = pipe.class_names[::-1]

        def __call__(self, images):
            seen.append(images)
            bright = images.mean((1, 2, 3))
            return torch.stack([bright, -bright], 1)

    sources = surest_samples(pipe, Brightest(), num_inference_steps=2)
    assert len(sources) == ROWS and [len(images) for images in seen] == [16, 16]
    darkest = seen[0][seen[0].mean((1, 2, 3)).argmin()]
    brightest = seen[1][seen[1].mean((1, 2, 3)).argmax()]
    for source, expected in zip(sources, [darkest, brightest] * 5, strict=True):
        torch.testing.assert_close(2 * source - 1, expected)
