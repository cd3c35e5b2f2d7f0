"""The generate task as a denoiser: the same answers, and the same images, as the pipeline gives."""

import math

import pytest
import torch
from diffusers import EDMDPMSolverMultistepScheduler, EDMEulerScheduler
from gaussian import SHAPE, Gaussian, correlated, karras

from mtl_diffusion.evaluation.denoise import generate_denoiser, noise_levels, solve
from mtl_diffusion.pipeline.pipeline import MultiTaskPipeline

SIZE = 8


def images(n, seed=0):
    random = torch.Generator().manual_seed(seed)
    return torch.rand(n, 3, SIZE, SIZE, generator=random) * 2 - 1


@pytest.fixture(scope="module")
def smooth_pipe(build_pipe):
    """An untrained network whose flow many steps of any solver can follow: its F is small."""
    pipe = build_pipe()
    with torch.no_grad():
        pipe.unet.conv_out.weight *= 0.1
    return pipe


@pytest.mark.parametrize("guidance_scale", [1.0, 2.5])
@pytest.mark.parametrize(
    ("kind", "steps", "tolerance"),
    [(EDMDPMSolverMultistepScheduler, 100, 5e-3), (EDMEulerScheduler, 300, 3e-2)],
)
def test_many_steps_give_what_the_pipeline_gives(
    smooth_pipe, guidance_scale, kind, steps, tolerance
):
    pipe = MultiTaskPipeline(
        smooth_pipe.unet, smooth_pipe.tokenizer, kind.from_config(smooth_pipe.scheduler.config)
    )
    pipe.set_progress_bar_config(disable=True)
    label = torch.tensor([0, 2])
    noise = torch.randn(2, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(1))
    theirs = pipe(
        task="generate",
        class_label=label.tolist(),
        guidance_scale=guidance_scale,
        guidance_interval=(0, math.inf),
        num_inference_steps=steps,
        latents=noise,
        output_type="latent",
    ).images
    sigmas = noise_levels(pipe.scheduler, 100)

    def ours(label):
        return solve(generate_denoiser(pipe, label, guidance_scale), sigmas[0] * noise, sigmas)

    torch.testing.assert_close(ours(label), theirs, atol=tolerance, rtol=0)
    assert (ours(label.flip(0)) - theirs).abs().max() > 2 * tolerance  # the class counts for more


def test_a_class_and_none_are_told_apart_and_no_class_is_not_guided(pipe):
    x, sigma = images(1), 0.7
    cat, dog, none = (generate_denoiser(pipe, torch.tensor([i]))(x, sigma) for i in (0, 1, -1))
    assert not torch.equal(cat, dog) and not torch.equal(cat, none)
    guided = generate_denoiser(pipe, torch.tensor([0]), 3.0)(x, sigma)
    torch.testing.assert_close(guided, none + 3 * (cat - none))
    unguided = generate_denoiser(pipe, torch.tensor([-1]), 3.0)
    assert torch.equal(unguided(x, sigma), none)


def test_noise_levels_are_the_schedulers_and_leave_it_alone(pipe):
    before = pipe.scheduler.sigmas.clone()
    sigmas = noise_levels(pipe.scheduler, 7)
    assert torch.equal(pipe.scheduler.sigmas, before)
    assert sigmas == pytest.approx(karras(7), rel=1e-4)
    ends_at_sigma_min = EDMEulerScheduler(final_sigmas_type="sigma_min")
    assert noise_levels(ends_at_sigma_min, 7) == pytest.approx(sigmas, rel=1e-4)
    even = [80 * (0.002 / 80) ** (i / 6) for i in range(7)]
    found = noise_levels(pipe.scheduler, 7, "exponential")
    assert found == pytest.approx([*even, 0], rel=1e-4)


@pytest.mark.parametrize("up", [False, True])
def test_the_solver_is_of_second_order(up):
    D = Gaussian(0.2, correlated(0.5))
    high = 5.0
    x = torch.randn(4, *SHAPE, generator=torch.Generator().manual_seed(0)).double()
    ends = (0.1, high) if up else (high, 0.1)
    exact = D.flowed(x.flatten(1), *ends)
    errors = []
    for steps in (32, 64):
        grid = torch.linspace(ends[0] ** (1 / 7), ends[1] ** (1 / 7), steps + 1).double() ** 7
        found = solve(D, x, grid.tolist()).flatten(1)
        errors.append((found - exact).abs().max() / exact.abs().max())
    assert errors[1] < 1e-2
    assert 3.3 < errors[0] / errors[1] < 4.7


def test_a_pipeline_that_cannot_generate_is_refused(build_pipe):
    with pytest.raises(ValueError, match="has not learned generate; it knows inpaint"):
        generate_denoiser(build_pipe(tasks=("inpaint",)), torch.tensor([0]))
