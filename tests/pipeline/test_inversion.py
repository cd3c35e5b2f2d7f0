"""The inversion of the source of an edit."""

import math

import pytest
import torch
from diffusers import EDMEulerScheduler
from drawing import SIZE, as_tensor, generator, hole, picture, sample
from tqdm import tqdm

from mtl_diffusion.pipeline.chains import default_chains
from mtl_diffusion.pipeline.denoiser import build_conditioning, predict
from mtl_diffusion.pipeline.inversion import LOWEST, invert
from mtl_diffusion.pipeline.pipeline import TASKS, MultiTaskPipeline

KNOWN = torch.stack([2 * as_tensor(picture(seed)) - 1 for seed in range(3)])
NOISE = torch.randn(3, 3, SIZE, SIZE, generator=generator(5))


def conditioning(pipe, label=0):
    ones = torch.ones(3, 1, SIZE, SIZE)
    hint = TASKS["edit"].condition(KNOWN, ones, torch.full((3,), 0.5), NOISE)
    return build_conditioning(hint, TASKS["edit"], torch.full((3,), label), pipe.vocabulary)


@torch.no_grad()
@pytest.mark.parametrize("label", [-1, 0])
def test_it_is_the_flow_of_the_model(pipe, label):
    """Beside Heun's method in 400 even steps of ln sigma, in double precision."""
    given, end = conditioning(pipe, label), 0.9

    def slope(x, sigma):
        level = torch.full((3, 1, 1, 1), sigma)
        F = predict(pipe.unet, pipe.scheduler, x.float(), level, given)
        return (x - pipe.scheduler.precondition_outputs(x.float(), F, level)) / sigma

    x, ratio = KNOWN.double(), (end / LOWEST) ** (1 / 400)
    for k in range(400):
        low, high = LOWEST * ratio**k, LOWEST * ratio ** (k + 1)
        first = slope(x, low)
        ahead = x + (high - low) * first
        x = x + (high - low) * (first + slope(ahead, high)) / 2
    expected = ((x - KNOWN) / end).float()
    errors = [
        (invert(pipe, KNOWN, NOISE, given, [end] * 3, steps) - expected).abs().mean()
        for steps in (8, 16, 64)
    ]
    assert errors[2] < 0.01 * expected.abs().mean() and errors[2] < errors[1] < errors[0]


def test_its_progress_is_shown(pipe, monkeypatch):
    bars = []

    def bar(self, iterable=None, total=None):
        bars.append(tqdm(total=total, disable=False, leave=False))
        return bars[-1]

    monkeypatch.setattr(MultiTaskPipeline, "progress_bar", bar)
    pipe("edit", image=picture(0), class_label=1, num_inference_steps=3, num_inversion_steps=5)
    assert [(shown.total, shown.n) for shown in bars] == [(5, 5), (3, 3)]


@torch.no_grad()
def test_each_image_has_its_own_start_and_some_have_none(pipe):
    given = conditioning(pipe)
    found = invert(pipe, KNOWN, NOISE, given, [0.3, math.inf, 2.0], 4)
    assert torch.equal(found[1], NOISE[1])  # from noise alone
    for row, start in ((0, 0.3), (2, 2.0)):
        one = slice(row, row + 1)
        alone = invert(pipe, KNOWN[one], NOISE[one], given[one], [start], 4)
        torch.testing.assert_close(found[one], alone, atol=1e-5, rtol=1e-4)
    assert torch.equal(invert(pipe, KNOWN, NOISE, given, [0.0] * 3, 4), NOISE)


def test_what_the_class_does_not_change_comes_back(pipe):
    """At guidance 0 it changes nothing."""

    def distance(**options):
        edited = sample(pipe, "edit", "latent", mask_image=None, guidance_scale=0, **options)
        return (edited - KNOWN[:1]).abs().mean()

    many = {"strength": 0.5, "num_inference_steps": 64}
    there_and_back = distance(num_inversion_steps=64, **many)
    assert there_and_back < 0.02 < 0.2 * distance(num_inversion_steps=0, **many)


def test_the_seed_does_not_start_an_edit_but_one_of_strength_one(pipe):
    """The degraded source, which the network sees, still has noise of the seed."""

    def spread(**options):
        one, other = (
            sample(pipe, "edit", "latent", mask_image=None, generator=generator(seed), **options)
            for seed in (0, 1)
        )
        return (one - other).abs().mean()

    assert spread(strength=0.5) < 0.5 * spread(strength=0.5, num_inversion_steps=0)
    assert torch.equal(
        *(sample(pipe, "edit", strength=1.0, num_inversion_steps=steps) for steps in (0, 4))
    )


def test_known_pixels_are_exact(pipe):
    edited = sample(pipe, "edit", mask_image=hole(), strength=0.6)
    kept = as_tensor(hole().convert("RGB")) == 0
    assert torch.equal(edited[0][kept], as_tensor(picture())[kept])


def test_a_model_of_few_steps_has_none(build_pipe):
    few = build_pipe()
    few = MultiTaskPipeline(few.unet, few.tokenizer, EDMEulerScheduler(), default_chains(80.0))
    few.set_progress_bar_config(disable=True)
    edit = {"image": picture(), "class_label": 0, "strength": 0.5, "generator": generator()}
    default, none = (
        few(task="edit", output_type="pt", **{**edit, "generator": generator()}, **options).images
        for options in ({}, {"num_inversion_steps": 0})
    )
    assert torch.equal(default, none)
    with pytest.raises(ValueError, match="num_inversion_steps is 3; a model of few steps"):
        few(task="edit", num_inversion_steps=3, **edit)
