"""The solver and the guidance of a call: what they cost, and what comes out."""

import copy
import math
from array import array
from hashlib import sha256
from itertools import pairwise

import pytest
import torch
from diffusers import EDMDPMSolverMultistepScheduler, EDMEulerScheduler
from diffusers.schedulers import scheduling_edm_euler
from drawing import (
    ARGUMENTS,
    MASK,
    SIZE,
    STEPS,
    as_tensor,
    every_task,
    generator,
    picture,
    randn,
    remade,
    sample,
)
from gaussian import karras

from mtl_diffusion.pipeline.denoiser import build_conditioning, predict
from mtl_diffusion.pipeline.pipeline import TASKS

INF = math.inf


@pytest.fixture(params=[EDMDPMSolverMultistepScheduler, EDMEulerScheduler])
def either(pipe, request):
    """The pipeline with each of the schedulers that it takes."""
    return remade(pipe, request.param())


def guided(low, high):
    return {"guidance_scale": 3.0, "guidance_interval": (low, high)}


@pytest.mark.parametrize(
    "task, arguments, branches",
    [
        # By default.
        ("generate", {}, [1, 1, 1, 2, 1, 1]),  # from 0.28 to 2.9
        ("generate", {"guidance_scale": 1}, [1, 1, 1, 1, 1, 1]),
        ("inpaint", {}, [1, 1, 1, 1, 1, 1]),
        ("edit", {}, [2, 2, 2, 2, 2, 2]),
        ("edit", {"image_guidance_scale": 1.5}, [3, 3, 3, 3, 3, 3]),
        # In an interval: a step outside takes one evaluation.
        ("generate", guided(0, INF), [2, 2, 2, 2, 2, 2]),
        ("generate", guided(0.05, 6), [1, 1, 2, 2, 2, 1]),
        ("generate", guided(7, 20), [1, 1, 1, 1, 1, 1]),
        ("generate", guided(80, 80), [2, 1, 1, 1, 1, 1]),  # the schedule may have it as 79.99998
        ("generate", guided(0.002, 0.002), [1, 1, 1, 1, 1, 2]),
        (
            "edit",
            {"image_guidance_scale": 1.5, "guidance_interval": (0.05, 6), "strength": 1},
            [1, 1, 3, 3, 3, 1],
        ),
    ],
)
def test_the_evaluations_of_each_step(either, batches, task, arguments, branches):
    sample(either, task, num_inference_steps=6, **arguments)
    assert batches == branches


def test_guidance_is_read_in_every_step(pipe, batches):
    def callback(pipe, i, timestep, tensors):
        pipe._guidance_scale = 1.0
        return tensors

    everywhere = {"guidance_scale": 4.0, "guidance_interval": (0, INF)}
    sample(pipe, "generate", **everywhere, callback_on_step_end=callback)
    assert batches == [2, 1, 1] and pipe.guidance_scale == 1.0


def own_noise(latents):
    """An image's, by the first eight bytes of the sha256 of its latents."""
    digest = sha256(array("f", latents.flatten().tolist()).tobytes()).digest()
    random = generator(int.from_bytes(digest[:8], "little"))
    return torch.randn(latents.shape, generator=random)


def solve(pipe, task, known, mask, noise, strength, label, scale, interval):
    """DPM-Solver++(2M), or Euler's method, known pixels held in place, in double precision.

    Guidance is of D in place of F. An edit starts at 3 times the noise of its degradation, on the
    source.
    """
    start = 3 * 0.5 * math.tan(math.pi / 2 * strength**2) if task == "edit" else 80.0
    levels = karras(6, high=start)
    hint = TASKS[task].condition(known, mask, torch.tensor([strength]), own_noise(noise))
    known, noise, hole = known.double(), noise.double(), hint.mask.double()

    def D(x, sigma, label):
        given = build_conditioning(hint, TASKS[task], torch.tensor([label]), pipe.vocabulary)
        level = torch.full((1, 1, 1, 1), sigma)
        F = predict(pipe.unet, pipe.scheduler, x.float(), level, given).double()
        return (0.25 * x + sigma * 0.5 * math.sqrt(sigma**2 + 0.25) * F) / (sigma**2 + 0.25)

    x, last = (known if task == "edit" else known * (1 - hole)) + levels[0] * noise, None
    for i, (sigma, after) in enumerate(pairwise(levels)):
        denoised = D(x, sigma, label)
        if interval[0] <= sigma <= interval[1]:
            nothing = D(x, sigma, -1)
            denoised = nothing + scale * (denoised - nothing)
        ahead = denoised
        if isinstance(pipe.scheduler, EDMDPMSolverMultistepScheduler) and i > 0 and after > 0:
            r = math.log(levels[i - 1] / sigma) / math.log(sigma / after)
            ahead = denoised + (denoised - last) / (2 * r)
        x = after / sigma * x + (1 - after / sigma) * ahead
        x, last = hole * x + (1 - hole) * (known + after * noise), denoised
    return x.float()


@torch.no_grad()
@every_task
def test_the_sampler_is_its_formulas(either, monkeypatch, task):
    warnings = []
    monkeypatch.setattr(scheduling_edm_euler.logger, "warning", warnings.append)
    takes = TASKS[task].required | TASKS[task].optional
    mask = torch.from_numpy(MASK).float().view(1, 1, SIZE, SIZE)
    expected = solve(
        either,
        task,
        known=2 * as_tensor(picture())[None] - 1,
        mask=mask if "mask_image" in takes else torch.ones_like(mask),
        noise=randn(1, 3, SIZE, SIZE),
        strength=0.3 if task == "colorize" else TASKS["edit"].default_strength,
        label=0 if "class_label" in ARGUMENTS[task] else -1,
        scale=3.0,
        interval=(0.05, 6.0),
    )
    found = sample(either, task, "latent", num_inference_steps=6, **guided(0.05, 6))
    torch.testing.assert_close(found, expected, atol=2e-4, rtol=1e-3)
    if "class_label" in ARGUMENTS[task]:
        everywhere = sample(either, task, "latent", num_inference_steps=6, **guided(0, INF))
        assert (everywhere - expected).abs().max() > 0.01
    assert not warnings


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_latents_stay_in_float32(pipe, dtype):
    half = copy.deepcopy(pipe).to(dtype)
    assert half.unet.dtype == dtype
    seen = []

    def callback(pipe, i, timestep, tensors):
        seen.append(tensors["latents"].dtype)

    image = sample(half, "inpaint", callback_on_step_end=callback)
    assert seen == [torch.float32] * STEPS and image.dtype == torch.float32
    assert torch.equal(image[0][:, ~MASK], as_tensor(picture())[:, ~MASK])
    assert (image - sample(pipe, "inpaint")).abs().mean() < 0.1
