"""Guidance between two noise levels only: what it costs, and what comes out."""

import math
from itertools import pairwise

import pytest
import torch
from diffusers import EDMDPMSolverMultistepScheduler, EDMEulerScheduler
from gaussian import karras

from mtl_diffusion.evaluation.bulk import evaluations_of
from mtl_diffusion.pipeline.denoiser import build_conditioning, predict
from mtl_diffusion.pipeline.pipeline import TASKS

SIZE, STEPS = 8, 6
SCHEDULERS = {"dpm": EDMDPMSolverMultistepScheduler, "euler": EDMEulerScheduler}


@pytest.fixture(params=SCHEDULERS)
def either(pipe, request):
    """The pipeline with each of the schedulers that it takes."""
    own = type(pipe)(pipe.unet, pipe.tokenizer, SCHEDULERS[request.param]())
    own.set_progress_bar_config(disable=True)
    return own


def sample(pipe, task="generate", **arguments):
    generator = torch.Generator().manual_seed(0)
    source = {"image": torch.rand((3, SIZE, SIZE), generator=generator)} if task == "edit" else {}
    defaults = {"class_label": "dog", "num_inference_steps": STEPS, "guidance_scale": 3.0}
    return pipe(
        task=task, generator=generator, output_type="latent", **source, **(defaults | arguments)
    ).images


def branches(pipe, *arguments, **named):
    """Evaluations for one image, step by step."""
    counts = []
    with evaluations_of(pipe.unet) as seen:

        def note(*_):
            counts.append(seen[0] - sum(counts))

        sample(pipe, *arguments, callback_on_step_end=note, **named)
    return counts


@pytest.mark.parametrize(
    "interval, counts",
    [
        (None, [1, 1, 1, 2, 1, 1]),  # of generate 0.28 to 2.9
        ((0, math.inf), [2, 2, 2, 2, 2, 2]),
        ((0.05, 6), [1, 1, 2, 2, 2, 1]),
        ((0, 10), [1, 1, 2, 2, 2, 2]),
        ((10, math.inf), [2, 2, 1, 1, 1, 1]),
        ((7, 20), [1, 1, 1, 1, 1, 1]),
        ((80, 80), [2, 1, 1, 1, 1, 1]),  # the schedule may have it as 79.99998
        ((0.002, 0.002), [1, 1, 1, 1, 1, 2]),
        ((0, 0), [1, 1, 1, 1, 1, 1]),  # at noise level 0 nothing is evaluated
    ],
)
def test_a_step_outside_takes_one_evaluation(either, interval, counts):
    assert branches(either, guidance_interval=interval) == counts


@pytest.mark.parametrize("task, interval", [("generate", (0.28, 2.9)), ("edit", (0, math.inf))])
def test_the_default_is_the_tasks_own(either, task, interval):
    assert either.default_guidance_interval(task) == interval
    given = sample(either, task, guidance_interval=interval)
    assert torch.equal(given, sample(either, task))


def test_image_guidance_keeps_to_the_interval_too(either):
    options = {"guidance_interval": (0.05, 6), "image_guidance_scale": 1.5, "strength": 1}
    found = branches(either, "edit", **options)
    assert found == [1, 1, 3, 3, 3, 1]


@torch.no_grad()
def test_the_solver_with_an_interval_is_its_formulas(pipe, either):
    """DPM-Solver++(2M), or Euler's method, in double precision; guidance of D in place of F."""
    low, high, scale = 0.05, 6.0, 3.0
    second_order = isinstance(either.scheduler, EDMDPMSolverMultistepScheduler)
    noise = torch.randn((1, 3, SIZE, SIZE), generator=torch.Generator().manual_seed(1))
    blank = torch.zeros_like(noise)
    hint = TASKS["generate"].condition(blank, blank[:, :1], torch.tensor([math.nan]), blank)

    def D(x, sigma, label):
        conditioning = build_conditioning(
            hint, TASKS["generate"], torch.tensor([label]), pipe.vocabulary
        )
        level = torch.full((1, 1, 1, 1), sigma)
        F = predict(pipe.unet, pipe.scheduler, x.float(), level, conditioning).double()
        return (0.25 * x + sigma * 0.5 * math.sqrt(sigma**2 + 0.25) * F) / (sigma**2 + 0.25)

    levels = karras(STEPS)
    x, before = levels[0] * noise.double(), None
    for i, (sigma, after) in enumerate(pairwise(levels)):
        denoised = D(x, sigma, 1)
        if low <= sigma <= high:
            nothing = D(x, sigma, -1)
            denoised = nothing + scale * (denoised - nothing)
        ahead = denoised
        if second_order and before is not None and after > 0:
            r = math.log(levels[i - 1] / sigma) / math.log(sigma / after)
            ahead = denoised + (denoised - before) / (2 * r)
        x = after / sigma * x + (1 - after / sigma) * ahead
        before = denoised
    found = sample(either, latents=noise, guidance_interval=(low, high), guidance_scale=scale)
    torch.testing.assert_close(found, x.float(), atol=2e-4, rtol=1e-3)
    everywhere = sample(
        either, latents=noise, guidance_interval=(0, math.inf), guidance_scale=scale
    )
    assert (everywhere - x.float()).abs().max() > 0.01
