"""The contract of a task, held by every task there is, and what each task promises besides."""

import numpy as np
import pytest
import torch
from drawing import generator, randn
from PIL import Image

from mtl_diffusion.pipeline.pipeline import TASKS
from mtl_diffusion.pipeline.task import Task

SIZE = 8
every_task = pytest.mark.parametrize("task", TASKS.values(), ids=TASKS)


def draw(task, n=50, class_dropout=0.1, seed=0):
    return task.draw(n, (SIZE, SIZE), class_dropout, generator(seed))


def images(n, seed=1):
    return torch.rand((n, 3, SIZE, SIZE), generator=generator(seed)) * 2 - 1


def noise(n, seed=2):
    return randn(n, 3, SIZE, SIZE, seed=seed)


def check_choice(choice, n):
    assert choice.mask.shape == (n, 1, SIZE, SIZE)
    assert ((choice.mask == 0) | (choice.mask == 1)).all()
    assert (choice.mask.sum((1, 2, 3)) > 0).all()
    for dropped in (choice.drop_class, choice.drop_image):
        assert dropped is None or (dropped.shape == (n,) and dropped.dtype == torch.bool)
    if (strength := choice.strength) is not None:
        assert strength.shape == (n,) and ((strength >= 0) & (strength <= 1)).all()


@every_task
@pytest.mark.parametrize("n", [0, 1, 50])
def test_draw_and_condition_keep_the_contract(task, n):
    choice = draw(task, n)
    check_choice(choice, n)
    takes_strength = "strength" in task.required | task.optional
    assert (choice.strength is not None) == takes_strength
    hint = task.condition(images(n), choice.mask, choice.strength, noise(n))
    assert hint.image.shape == (n, 3, SIZE, SIZE) and hint.image.isfinite().all()
    assert hint.mask.shape == (n, 1, SIZE, SIZE)
    assert ((hint.mask == 0) | (hint.mask == 1)).all()
    assert hint.strength is choice.strength


@every_task
def test_known_pixels_are_shown_as_they_are(task):
    choice, source = draw(task), images(50)
    hint = task.condition(source, choice.mask, choice.strength, noise(50))
    known = hint.mask.expand_as(source) == 0
    assert torch.equal(hint.image[known], source[known])
    if "mask_image" in task.required | task.optional:
        assert known.any()


def test_generate_shows_nothing():
    choice = draw(TASKS["generate"])
    hint = TASKS["generate"].condition(images(50), choice.mask, choice.strength, noise(50))
    assert (hint.image == 0).all() and (hint.mask == 1).all()


def test_inpaint_shows_nothing_of_the_hole():
    mask = draw(TASKS["inpaint"]).mask
    hints = [TASKS["inpaint"].condition(images(50, s), mask, None, noise(50)) for s in (1, 2)]
    hole = mask.expand(-1, 3, -1, -1) == 1
    assert all((hint.image[hole] == 0).all() for hint in hints)
    assert torch.equal(hints[0].mask, mask) and (mask == 0).any((1, 2, 3)).all()


def test_edit_of_strength_one_shows_nothing_of_the_source_in_the_mask():
    mask = torch.zeros(1, 1, SIZE, SIZE)
    mask[..., :4] = 1
    one, two = (
        TASKS["edit"].condition(images(1, s), mask, torch.ones(1), noise(1)) for s in (1, 2)
    )
    assert torch.equal(one.image[..., :4], two.image[..., :4])
    assert not torch.equal(one.image[..., 4:], two.image[..., 4:])


def test_edit_drops_what_guidance_needs():
    n, p = 40000, 0.2
    choice = draw(TASKS["edit"], n, class_dropout=p)
    rates = {
        (True, False): p / 2,  # F(I, 0)
        (True, True): p / 2,  # F(0, 0)
        (False, True): p / 2,
        (False, False): 1 - 1.5 * p,
    }
    for (drops_class, drops_image), rate in rates.items():
        found = (choice.drop_class == drops_class) & (choice.drop_image == drops_image)
        assert abs(found.float().mean() - rate) < 5 * (rate * (1 - rate) / n) ** 0.5
    everywhere = (choice.mask == 1).all(1).all(1).all(1).float().mean()
    assert abs(everywhere - 0.75) < 5 * (0.75 * 0.25 / n) ** 0.5
    assert abs(choice.strength.mean() - 0.5) < 0.01 and choice.strength.std() > 0.27


def test_colorize_shows_the_luma_of_pillow():
    array = np.random.default_rng(0).integers(0, 256, (SIZE, SIZE, 3), dtype=np.uint8)
    source = torch.from_numpy(array).permute(2, 0, 1)[None].float() / 127.5 - 1
    ones, sharp = torch.ones(1, 1, SIZE, SIZE), torch.zeros(1)
    hint = TASKS["colorize"].condition(source, ones, sharp, noise(1))
    grey = np.asarray(Image.fromarray(array).convert("L"), dtype=np.float32)
    assert torch.equal(hint.image[:, 0], hint.image[:, 1])
    assert torch.equal(hint.image[:, 0], hint.image[:, 2])
    shown = (hint.image[0, 0].numpy() + 1) * 127.5
    assert np.abs(shown - grey).max() <= 0.51  # Pillow rounds
    assert (hint.mask == 1).all()


def show_small(image):
    """What upscale shows the network of (1, 3, H, W) in [-1, 1]."""
    return TASKS["upscale"].condition(image, torch.ones_like(image[:, :1]), None, noise(1))


def test_upscale_shows_the_means_of_pillow():
    array = np.random.default_rng(0).integers(0, 256, (SIZE, SIZE, 3), dtype=np.uint8)
    source = torch.from_numpy(array).permute(2, 0, 1)[None].float() / 127.5 - 1
    hint = show_small(source)
    small = np.asarray(Image.fromarray(array).reduce(4), dtype=np.float32)
    shown = (hint.image[0].permute(1, 2, 0).numpy() + 1) * 127.5
    assert np.abs(shown - small.repeat(4, 0).repeat(4, 1)).max() <= 0.51  # Pillow rounds
    assert (hint.mask == 1).all()


def test_upscale_shows_a_small_image_that_was_enlarged_by_repeating_pixels():
    small = torch.rand((1, 3, SIZE // 4, SIZE // 4), generator=generator(1)) * 2 - 1
    enlarged = small.repeat_interleave(4, 2).repeat_interleave(4, 3)
    torch.testing.assert_close(show_small(enlarged).image, enlarged)


def define(**attributes):
    return type("Bad", (Task,), attributes)


@pytest.mark.parametrize(
    "attributes, message",
    [
        ({}, "Bad.name must be a lower-case identifier, not None"),
        ({"name": "Edit"}, "lower-case identifier, not 'Edit'"),
        ({"name": "x", "required": frozenset({"prompt"})}, r"takes \['prompt'\]"),
        (
            {"name": "x", "required": frozenset({"image"}), "optional": frozenset({"image"})},
            r"\['image'\] both as required and as optional",
        ),
        ({"name": "x", "optional": frozenset({"strength"})}, "give a default_strength"),
    ],
)
def test_a_class_that_breaks_the_contract_cannot_be_defined(attributes, message):
    with pytest.raises(TypeError, match=message):
        define(**attributes)
