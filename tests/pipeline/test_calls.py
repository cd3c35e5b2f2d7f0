"""Calls that overlap, call back, are stopped, or fail on the way."""

import copy
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from diffusers import EDMDPMSolverMultistepScheduler, EDMEulerScheduler
from drawing import MASK, SIZE, STEPS, as_tensor, generator, picture, remade
from drawing import sample as draw

from mtl_diffusion.pipeline.pipeline import TASKS


@pytest.mark.parametrize("kind", [EDMDPMSolverMultistepScheduler, EDMEulerScheduler])
def test_calls_in_threads_do_not_meet(pipe, kind):
    pipe = remade(pipe, kind.from_config(pipe.scheduler.config))
    jobs = [
        (task, i, {"num_inference_steps": 2 + i % 4, "guidance_scale": 1.0 + i % 3})
        for i, task in enumerate([*TASKS] * 3)
    ]

    def run(job):
        task, seed, options = job
        return draw(pipe, task, generator=generator(seed), **options)

    alone = [run(job) for job in jobs]
    with ThreadPoolExecutor(4) as pool:
        assert all(map(torch.equal, pool.map(run, jobs), alone))


def test_a_callback_may_call_the_pipeline(pipe):
    inner, outer = draw(pipe, "edit", guidance_scale=5.0), draw(pipe)

    def callback(running, step, timestep, tensors):
        for any_pipe in (running, pipe):
            assert torch.equal(draw(any_pipe, "edit", guidance_scale=5.0), inner)
        assert running.guidance_scale == 2.0 and running.num_timesteps == STEPS
        return {}

    assert torch.equal(draw(pipe, callback_on_step_end=callback), outer)
    assert pipe.guidance_scale == 2.0


@pytest.mark.parametrize("which", ["running", "shared"])
def test_a_callback_can_stop_its_call(pipe, which):
    seen = []

    def callback(running, step, timestep, tensors):
        seen.append((step, tensors["latents"]))
        if step == 1:
            (running if which == "running" else pipe)._interrupt = True
            assert running.interrupt

    latents = draw(pipe, "inpaint", output_type="latent", callback_on_step_end=callback)
    assert [step for step, _ in seen] == [0, 1] and torch.equal(latents, seen[-1][1])
    image = draw(pipe, "inpaint", callback_on_step_end=callback)[0]
    assert torch.equal(image[:, ~MASK], as_tensor(picture())[:, ~MASK])
    seen.clear()
    draw(pipe, callback_on_step_end=lambda *_: seen.append(0))  # the next call is not stopped
    assert len(seen) == STEPS and not pipe.interrupt


def test_one_call_is_stopped_and_not_the_one_around_it(pipe):
    expected = draw(pipe)

    def stop(inner, *_):
        inner._interrupt = True

    def callback(running, *_):
        draw(pipe, callback_on_step_end=stop)
        assert not running.interrupt

    assert torch.equal(draw(pipe, callback_on_step_end=callback), expected)


def broken(pipe):
    pipe = copy.deepcopy(pipe)
    torch.nn.init.constant_(pipe.unet.conv_in.bias, float("nan"))
    return pipe


def overflowing(pipe):
    pipe = copy.deepcopy(pipe)
    torch.nn.init.constant_(pipe.unet.conv_out.weight, 6e4)
    return pipe.to(torch.float16)


HUGE = {"latents": torch.full((1, 3, SIZE, SIZE), 1e38)}


@pytest.mark.parametrize(
    "change, options, words",
    [
        (broken, {}, "after step 1 of 3. .* weights that are not finite"),
        (None, {"guidance_scale": 1e30}, r"after step \d of 3. .*\(guidance_scale is 1e\+30, "),
        (None, HUGE, "after step 1 of 3. .* latents that are far from standard normal"),
        (overflowing, {}, r"after step 1 of 3. .* unet is in torch\.float16"),
    ],
)
def test_latents_that_are_not_finite_are_an_error(pipe, change, options, words):
    pipe = change(pipe) if change else pipe
    for output_type in ("pil", "latent"):
        with pytest.raises(ValueError, match=words):
            draw(pipe, output_type=output_type, **options)
