"""The contract of a task, held by every task there is, and what each task promises besides."""

import numpy as np
import pytest
import torch
from drawing import SIZE, as_tensor, every_task, generator, picture, randn
from PIL import Image

from mtl_diffusion.pipeline.pipeline import TASKS
from mtl_diffusion.pipeline.task import Task

ONES = torch.ones(1, 1, SIZE, SIZE)
SOURCE = 2 * as_tensor(picture())[None] - 1


def draw(task, n=50, class_dropout=0.1):
    return TASKS[task].draw(n, (SIZE, SIZE), class_dropout, generator())


def images(n, seed=1):
    return torch.rand((n, 3, SIZE, SIZE), generator=generator(seed)) * 2 - 1


def condition(task, image, mask, strength=None):
    return TASKS[task].condition(image, mask, strength, randn(*image.shape, seed=2))


def is_binary(mask, n):
    return mask.shape == (n, 1, SIZE, SIZE) and ((mask == 0) | (mask == 1)).all()


@every_task
@pytest.mark.parametrize("n", [0, 1, 50])
def test_draw_and_condition_keep_the_contract(task, n):
    choice, takes = draw(task, n), TASKS[task].required | TASKS[task].optional
    assert is_binary(choice.mask, n) and (choice.mask.sum((1, 2, 3)) > 0).all()
    for dropped in (choice.drop_class, choice.drop_image):
        assert dropped is None or (dropped.shape == (n,) and dropped.dtype == torch.bool)
    strength = choice.strength
    assert (strength is not None) == ("strength" in takes)
    if strength is not None:
        assert strength.shape == (n,) and ((strength >= 0) & (strength <= 1)).all()
    source = images(n)
    hint = condition(task, source, choice.mask, strength)
    assert hint.image.shape == (n, 3, SIZE, SIZE) and hint.image.isfinite().all()
    assert is_binary(hint.mask, n) and hint.strength is strength
    # Known pixels are shown as they are.
    known = hint.mask.expand_as(source) == 0
    assert torch.equal(hint.image[known], source[known])
    if "mask_image" in takes and n == 50:
        assert known.any()


def test_generate_shows_nothing_and_inpaint_nothing_of_the_hole():
    hint = condition("generate", images(50), draw("generate").mask)
    assert (hint.image == 0).all() and (hint.mask == 1).all()
    mask = draw("inpaint").mask
    hint = condition("inpaint", images(50), mask)
    assert (hint.image[mask.expand(-1, 3, -1, -1) == 1] == 0).all()
    assert torch.equal(hint.mask, mask) and (mask == 0).any((1, 2, 3)).all()


def test_edit_drops_what_guidance_needs():
    n, p = 10000, 0.2
    choice = draw("edit", n, class_dropout=p)
    rates = {
        (True, False): p / 2,  # F(I, 0)
        (True, True): p / 2,  # F(0, 0)
        (False, True): p / 2,
        (False, False): 1 - 1.5 * p,
    }
    for (drops_class, drops_image), rate in rates.items():
        found = (choice.drop_class == drops_class) & (choice.drop_image == drops_image)
        assert abs(found.float().mean() - rate) < 5 * (rate * (1 - rate) / n) ** 0.5
    everywhere = (choice.mask == 1).flatten(1).all(1).float().mean()
    assert abs(everywhere - 0.75) < 5 * (0.75 * 0.25 / n) ** 0.5
    assert abs(choice.strength.mean() - 0.5) < 0.01 and choice.strength.std() > 0.27


def check_shown(hint, expected):
    """expected: (H, W, 3) in 0..255, rounded by Pillow."""
    shown = (hint.image[0].permute(1, 2, 0).numpy() + 1) * 127.5
    assert np.abs(shown - expected).max() <= 0.51 and (hint.mask == 1).all()


def test_colorize_shows_the_luma_of_pillow():
    grey = np.asarray(picture().convert("L").convert("RGB"), dtype=np.float32)
    check_shown(condition("colorize", SOURCE, ONES, torch.zeros(1)), grey)


def test_upscale_shows_the_means_of_pillow():
    small = np.asarray(picture().reduce(4), dtype=np.float32)
    check_shown(condition("upscale", SOURCE, ONES), small.repeat(4, 0).repeat(4, 1))
    # Of a small image that was enlarged by repeating pixels they are that image.
    enlarged = picture().reduce(4).resize((SIZE, SIZE), Image.Resampling.NEAREST)
    source = 2 * as_tensor(enlarged)[None] - 1
    torch.testing.assert_close(condition("upscale", source, ONES).image, source)


@pytest.mark.parametrize(
    "attributes, message",
    [
        ({}, "Bad.name must be a lower-case identifier, not None"),
        ({"name": "Edit"}, "lower-case identifier, not 'Edit'"),
        ({"name": "x", "required": frozenset({"prompt"})}, r"takes \['prompt'\]"),
        ({"name": "x", "optional": frozenset({"strength"})}, "give a default_strength"),
    ],
)
def test_a_class_that_breaks_the_contract_cannot_be_defined(attributes, message):
    with pytest.raises(TypeError, match=message):
        type("Bad", (Task,), attributes)
