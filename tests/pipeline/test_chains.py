"""Models that draw in few steps."""

import json
from copy import deepcopy

import numpy as np
import pytest
import torch
from diffusers import DiffusionPipeline, EDMDPMSolverMultistepScheduler, EDMEulerScheduler
from gaussian import keyed
from scipy.fft import dctn, idctn
from scipy.linalg import sqrtm

from mtl_diffusion.evaluation.bulk import evaluations_of
from mtl_diffusion.pipeline.chains import check_chains, default_chains, first_latents, jumps
from mtl_diffusion.pipeline.denoiser import Denoiser, build_conditioning, predict
from mtl_diffusion.pipeline.pipeline import TASKS, MultiTaskPipeline
from mtl_diffusion.pipeline.task import Hint

CHAINS = default_chains(80.0)


@pytest.fixture(scope="module")
def few(build_pipe):
    # Not all tasks: the random weights, and so rounding, depend on the size of the vocabulary.
    pipe = build_pipe(tasks=("generate", "inpaint", "edit", "colorize"))
    pipe.unet.register_to_config(_chains=CHAINS)
    pipe = MultiTaskPipeline(pipe.unet, pipe.tokenizer, EDMEulerScheduler())
    pipe.set_progress_bar_config(disable=True)
    return pipe


def test_every_jump_starts_where_the_one_before_ends():
    assert jumps([[8.0], [4.0, 1.0]]) == [(8.0, 0.0), (4.0, 1.0), (1.0, 0.0)]
    assert [len(levels) for levels in CHAINS] == [1, 2, 4]
    starts = [start for start, _ in jumps(CHAINS)]
    assert len({*starts}) == len(starts) == 7 and max(starts) == 80


@pytest.mark.parametrize(
    "chains",
    [
        *([], [[1.0], []], [[0.0]], [[1.0, 2.0]], [[4.0], [4.0, 1.0]], [[4.0], [3.0]], 7),
        [[float("nan")]],
    ],
)
def test_chains_that_are_none_are_refused(chains, few):
    with pytest.raises(ValueError, match="falling"):
        check_chains(chains)
    with pytest.raises(ValueError, match=r"falling"):
        unet = deepcopy(few.unet)
        unet.register_to_config(_chains=None)
        MultiTaskPipeline(unet, few.tokenizer, few.scheduler, chains)


@pytest.mark.parametrize("sigma", [2.0, 80.0])
def test_the_first_latents_have_the_spectrum_of_noisy_images(sigma):
    noise = torch.randn(2, 3, 6, 6, generator=keyed(1)[0])
    expected = dctn(noise.double().numpy(), axes=(2, 3), norm="ortho")
    for i in range(6):
        for k in range(6):
            image = (0.17 * 6 / max((i * i + k * k) ** 0.5, 0.6)) ** 2  # variance of a channel
            covariance = sigma**2 * np.eye(3) + image * (0.1 * np.eye(3) + 0.9)
            expected[:, :, i, k] = expected[:, :, i, k] @ sqrtm(covariance)
    expected = torch.from_numpy(idctn(expected, axes=(2, 3), norm="ortho"))
    found = first_latents(noise, sigma)
    torch.testing.assert_close(found.double(), expected, rtol=1e-4, atol=1e-4)
    assert found.std() > sigma * noise.std()


@pytest.mark.parametrize("levels", CHAINS)
def test_a_sample_is_the_jumps_one_after_the_other(few, levels):
    noise = torch.randn(2, 3, 8, 8, generator=keyed(1)[0])
    task = TASKS["generate"]
    conditioning = build_conditioning(
        task.condition(0 * noise, torch.ones(2, 1, 8, 8), None, noise),
        task,
        torch.tensor([0, 2]),
        few.vocabulary,
    )
    x = first_latents(noise, levels[0])
    for s, then in jumps([levels]):
        with torch.no_grad():
            F = predict(few.unet, few.scheduler, x, torch.full((2, 1, 1, 1), s), conditioning)
        D = 0.25 / (s**2 + 0.25) * x + s * 0.5 / (s**2 + 0.25) ** 0.5 * F
        x = then / s * x + (1 - then / s) * D
    with evaluations_of(few.unet) as seen:
        drawn = few(
            class_label=["cat", "ship"],
            num_inference_steps=len(levels),
            latents=noise,
            output_type="latent",
        ).images
    assert seen == [2 * len(levels)]  # guidance is off: one evaluation a step
    torch.testing.assert_close(drawn, x, rtol=1e-3, atol=1e-4)


def test_the_defaults_are_the_models(few, pipe):
    assert pipe.default_steps("generate") == pipe.default_steps("inpaint") == 18
    assert pipe.default_steps("edit") == 12
    assert few.default_guidance("edit") == 1 and pipe.default_guidance("edit") == 4
    default = few(class_label="cat", generator=keyed(1), output_type="pt").images
    asked = few(
        class_label="cat",
        generator=keyed(1),
        output_type="pt",
        num_inference_steps=4,
        guidance_scale=1.0,
    ).images
    assert torch.equal(default, asked) and few.guidance_scale == 1


def test_a_hole_is_completed_in_two_steps_where_the_model_has_them(few):
    steps = {task: few.default_steps(task) for task in few.tasks}
    assert steps == {"generate": 4, "inpaint": 2, "edit": 4, "colorize": 4}
    image, mask = torch.rand(1, 3, 8, 8, generator=keyed(1)[0]), torch.ones(1, 1, 8, 8)
    with evaluations_of(few.unet) as seen:
        few("inpaint", image=image, mask_image=mask, generator=keyed(1))
    assert seen == [2]
    unet = deepcopy(few.unet)
    unet.register_to_config(_chains=[[8.0], [4.0, 2.0, 1.0]])
    longer = MultiTaskPipeline(unet, few.tokenizer, few.scheduler)
    assert longer.default_steps("inpaint") == 3


@pytest.mark.parametrize(
    "steps, strength, levels",
    [
        (4, 0, 1),
        (4, 0.3, 1),  # starts at 0.21, below 0.24
        (4, 0.35, 2),  # at 0.29, below 1
        (4, 0.8, 3),  # at 2.4, below 4
        (4, 0.9, 4),  # at 4.9
        (4, 1, 4),
        (2, 0.5, 1),  # at 0.62, below 0.8
        (2, 0.6, 2),
        (1, 0.5, 1),
    ],
)
def test_an_edit_starts_at_the_lowest_level_that_has_enough_noise(few, steps, strength, levels):
    """From the source with noise of that level, by the jumps that are left."""
    source = torch.rand(1, 3, 8, 8, generator=keyed(1)[0])
    noise = torch.randn(1, 3, 8, 8, generator=keyed(2)[0])
    seen = []

    def note(pipe, i, timestep, tensors):
        seen.append(pipe.num_timesteps)

    drawn = few(
        task="edit",
        class_label="cat",
        image=source,
        strength=strength,
        num_inference_steps=steps,
        latents=noise,
        output_type="latent",
        callback_on_step_end=note,
    ).images
    assert seen == [levels] * levels
    assert torch.equal(drawn, 2 * source - 1) == (strength == 0)


def test_where_pixels_are_known_a_chain_starts_with_noise_alone(few):
    """Random low frequencies would contradict them."""
    source = torch.rand(1, 3, 8, 8, generator=keyed(1)[0])
    mask = torch.ones(1, 1, 8, 8)
    mask[:, :, :, :2] = 0
    noise = torch.randn(1, 3, 8, 8, generator=keyed(2)[0])
    task = TASKS["inpaint"]
    hint = task.condition(2 * source - 1, mask, None, noise)
    conditioning = build_conditioning(hint, task, torch.tensor([-1]), few.vocabulary)
    x = torch.where(mask > 0, 80 * noise, 2 * source - 1 + 80 * noise)
    with torch.no_grad():
        F = predict(few.unet, few.scheduler, x, torch.full((1, 1, 1, 1), 80.0), conditioning)
    D = 0.25 / (80**2 + 0.25) * x + 80 * 0.5 / (80**2 + 0.25) ** 0.5 * F
    drawn = few(
        task="inpaint",
        image=source,
        mask_image=mask,
        num_inference_steps=1,
        latents=noise,
        output_type="latent",
    ).images
    torch.testing.assert_close(drawn, torch.where(mask > 0, D, 2 * source - 1))


@pytest.mark.parametrize("steps", [1, 2, 4])
def test_known_pixels_are_exact(few, steps):
    source = torch.rand(2, 3, 8, 8, generator=keyed(1)[0])
    mask = torch.zeros(2, 1, 8, 8)
    mask[:, :, 2:5, 3:] = 1
    found = few(
        task="inpaint",
        image=source,
        mask_image=mask,
        num_inference_steps=steps,
        generator=keyed(2),
        output_type="pt",
    ).images
    known = (mask == 0).expand_as(source)
    assert torch.equal(found[known], source[known]) and not torch.equal(found, source)


def test_another_number_of_steps_or_scheduler_is_refused(few):
    with pytest.raises(ValueError, match=r"num_inference_steps is 3; .* in 1, 2, 4 steps"):
        few(num_inference_steps=3)
    other = EDMDPMSolverMultistepScheduler.from_config(few.scheduler.config)
    swapped = MultiTaskPipeline(few.unet, few.tokenizer, other)
    with pytest.raises(ValueError, match="this model of few steps takes EDMEulerScheduler: "):
        swapped()


def test_the_exported_model_draws_the_same_by_its_own_defaults(few, tmp_path):
    few.save_pretrained(tmp_path)
    assert "chains" not in json.loads((tmp_path / "model_index.json").read_text())
    assert json.loads((tmp_path / "unet/config.json").read_text())["_chains"] == CHAINS
    scheduler = json.loads((tmp_path / "scheduler/scheduler_config.json").read_text())
    assert scheduler["_class_name"] == "EDMEulerScheduler"
    loaded = DiffusionPipeline.from_pretrained(tmp_path, trust_remote_code=True)
    loaded.set_progress_bar_config(disable=True)
    assert type(loaded) is not MultiTaskPipeline  # the code of the folder
    for options in ({}, *({"num_inference_steps": n} for n in (1, 2, 4))):
        one, two = (
            p(class_label="dog", generator=keyed(1), output_type="pt", **options).images
            for p in (few, loaded)
        )
        # Only close: loaded weights lie at other addresses, where some CPUs round otherwise.
        torch.testing.assert_close(one, two, rtol=0, atol=1e-5)
    loaded.save_pretrained(tmp_path / "again")
    assert MultiTaskPipeline.from_pretrained(tmp_path / "again").chains == CHAINS


def test_an_export_of_before_has_its_levels_in_its_index(pipe, tmp_path):
    old = MultiTaskPipeline(pipe.unet, pipe.tokenizer, EDMEulerScheduler(), CHAINS)
    assert old.chains == CHAINS and pipe.chains is None  # the unet, which they share, is as it was
    old.save_pretrained(tmp_path)
    assert MultiTaskPipeline.from_pretrained(tmp_path).chains == CHAINS


def test_few_steps_belong_to_the_weights(few, pipe):
    """However a pipeline is put together, it knows what its unet has learned."""
    for other in (
        MultiTaskPipeline(**few.components),
        MultiTaskPipeline(few.unet, few.tokenizer, pipe.scheduler),
    ):
        assert other.chains == CHAINS
    with pytest.raises(ValueError, match="this model of few steps takes EDMEulerScheduler: "):
        other()
    swapped = MultiTaskPipeline(
        **(pipe.components | {"tokenizer": few.tokenizer, "unet": few.unet})
    )
    assert swapped.chains == CHAINS and pipe.chains is None


# --- edits in one evaluation ----------------------------------------------------------------------


@pytest.fixture(scope="module")
def at_once(few):
    unet = deepcopy(few.unet)
    unet.register_to_config(_edits_at_once=True)
    pipe = MultiTaskPipeline(unet, few.tokenizer, few.scheduler)
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.mark.parametrize("strength, told", [(0.4, 0.4), (0.95, 0.95), (1, 0.95), (0, 0)])
def test_an_edit_at_once_is_the_answer_to_noise_with_the_source_shown(at_once, strength, told):
    source = torch.rand(1, 3, 8, 8, generator=keyed(1)[0])
    noise = torch.randn(1, 3, 8, 8, generator=keyed(2)[0])
    mask = torch.ones(1, 1, 8, 8)
    mask[:, :, :, :2] = 0
    edit = {"image": source, "mask_image": mask, "class_label": "dog", "strength": strength}
    with evaluations_of(at_once.unet) as seen:
        drawn = at_once("edit", latents=noise, output_type="latent", **edit).images
    assert seen == [1] and at_once.default_steps("edit") == 1
    hint = Hint(2 * source - 1, mask, torch.tensor([float(told)]))
    given = build_conditioning(hint, TASKS["edit"], torch.tensor([1]), at_once.vocabulary)
    with torch.no_grad():
        D = Denoiser.of(at_once.unet, at_once.scheduler, given)(80 * noise, 80.0)
    painted = (mask > 0) & (strength > 0)
    torch.testing.assert_close(drawn, torch.where(painted, D, 2 * source - 1), atol=1e-4, rtol=1e-3)


def test_an_edit_at_once_takes_one_step(at_once):
    image = torch.rand(1, 3, 8, 8, generator=keyed(1)[0])
    with pytest.raises(
        ValueError, match="num_inference_steps is 4; this model does edit in 1 step"
    ):
        at_once("edit", image=image, class_label="cat", num_inference_steps=4)
    assert len(at_once("generate", num_inference_steps=4).images) == 1
