"""The solver and the guidance of a call."""

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
    generator,
    picture,
    sample,
)
from gaussian import karras

from mtl_diffusion.pipeline.denoiser import build_conditioning, predict
from mtl_diffusion.pipeline.pipeline import TASKS

every_task = pytest.mark.parametrize("task", TASKS)


@pytest.fixture
def batches(pipe):
    """The batch size of each call of the UNet."""
    sizes = []
    handle = pipe.unet.register_forward_pre_hook(lambda _, args: sizes.append(len(args[0])))
    yield sizes
    handle.remove()


def test_guidance_is_read_in_every_step(pipe, batches):
    def callback(pipe, i, timestep, tensors):
        pipe._guidance_scale = 1.0
        return tensors

    everywhere = {"guidance_scale": 4.0, "guidance_interval": (0, math.inf)}
    sample(pipe, "generate", **everywhere, callback_on_step_end=callback)
    assert batches == [2, 1, 1] and pipe.guidance_scale == 1.0


@pytest.mark.parametrize(
    "task, arguments, branches",
    [
        ("generate", {}, 2),
        ("generate", {"guidance_scale": 1}, 1),
        ("inpaint", {}, 1),
        ("edit", {}, 2),
        ("edit", {"image_guidance_scale": 1.5}, 3),
        ("colorize", {}, 1),
        ("upscale", {}, 1),
    ],
)
def test_defaults_of_guidance(pipe, batches, task, arguments, branches):
    sample(pipe, task, guidance_interval=(0, math.inf), **arguments)
    assert batches == [branches] * STEPS


def seed_of(latents):
    """Of an image's own noise: the first eight bytes of the sha256 of its latents."""
    values = array("f", latents.flatten().tolist())
    return int.from_bytes(sha256(values.tobytes()).digest()[:8], "little")


def with_scheduler(pipe, scheduler):
    return type(pipe)(pipe.unet, pipe.tokenizer, scheduler)


def euler(pipe, task, known, mask, noise, own_noise, strength, label, steps):
    """Algorithm 1 of Karras et al. 2022 without its second order, known pixels held in place.

    An edit starts at 3 times the noise of its degradation, on the source.
    """
    start = 3 * 0.5 * math.tan(math.pi / 2 * strength.item() ** 2) if task == "edit" else 80.0
    sigmas = karras(steps, high=start)
    hint = TASKS[task].condition(known, mask, strength, own_noise)
    conditioning = build_conditioning(hint, TASKS[task], label, pipe.vocabulary)
    known, noise, hole = known.double(), noise.double(), hint.mask.double()
    x = (known if task == "edit" else known * (1 - hole)) + sigmas[0] * noise
    for sigma, after in pairwise(sigmas):
        F = predict(
            pipe.unet, pipe.scheduler, x.float(), torch.full((len(x), 1, 1, 1), sigma), conditioning
        )
        D = (0.25 * x + sigma * 0.5 * math.sqrt(sigma**2 + 0.25) * F) / (sigma**2 + 0.25)
        x = x + (after - sigma) * (x - D) / sigma
        x = hole * x + (1 - hole) * (known + after * noise)
    return x.float()


@torch.no_grad()
@pytest.mark.parametrize("kind", ["dpm", "euler"])
@every_task
def test_the_sampler_is_eulers_method_where_its_order_is_one(pipe, monkeypatch, task, kind):
    warnings = []
    monkeypatch.setattr(scheduling_edm_euler.logger, "warning", warnings.append)
    first_order = with_scheduler(
        pipe,
        EDMDPMSolverMultistepScheduler(solver_order=1) if kind == "dpm" else EDMEulerScheduler(),
    )
    first_order.set_progress_bar_config(disable=True)
    takes = TASKS[task].required | TASKS[task].optional
    mask = torch.from_numpy(MASK).float().view(1, 1, SIZE, SIZE)
    noise = torch.randn((1, 3, SIZE, SIZE), generator=generator())
    expected = euler(
        pipe,
        task,
        known=2 * as_tensor(picture())[None] - 1,
        mask=mask if "mask_image" in takes else torch.ones_like(mask),
        noise=noise,
        own_noise=torch.randn((1, 3, SIZE, SIZE), generator=generator(seed_of(noise))),
        strength=torch.tensor([0.3 if task == "colorize" else TASKS["edit"].default_strength]),
        label=torch.tensor([0 if "class_label" in ARGUMENTS[task] else -1]),
        steps=6,
    )
    found = sample(first_order, task, "latent", num_inference_steps=6, guidance_scale=1.0)
    torch.testing.assert_close(found, expected, atol=2e-4, rtol=1e-3)
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
    known = ~torch.from_numpy(MASK)
    assert torch.equal(image[0][:, known], as_tensor(picture())[:, known])
    assert (image - sample(pipe, "inpaint")).abs().mean() < 0.1
