"""Models that draw in few steps."""

import json

import numpy as np
import pytest
import torch
from diffusers import DiffusionPipeline, EDMDPMSolverMultistepScheduler, EDMEulerScheduler
from diffusers.utils.torch_utils import randn_tensor
from drawing import randn, remade, sample
from scipy.fft import dctn, idctn
from scipy.linalg import sqrtm

from mtl_diffusion.evaluation.bulk import evaluations_of
from mtl_diffusion.pipeline.chains import default_chains, first_latents, jumps
from mtl_diffusion.pipeline.denoiser import Denoiser, build_conditioning, predict
from mtl_diffusion.pipeline.noise import own_generators
from mtl_diffusion.pipeline.pipeline import TASKS, MultiTaskPipeline
from mtl_diffusion.pipeline.task import Hint

CHAINS = default_chains(80.0)
SOURCE = torch.rand(1, 3, 8, 8, generator=torch.Generator().manual_seed(0))
NOISE, MASK = randn(1, 3, 8, 8, seed=1), torch.ones(1, 1, 8, 8)
MASK[..., :2] = 0


@pytest.fixture(scope="module")
def few(build_pipe):
    # Not all tasks: the random weights, and so rounding, depend on the size of the vocabulary.
    pipe = build_pipe(tasks=("generate", "inpaint", "edit", "colorize"))
    return remade(pipe, EDMEulerScheduler(), _chains=CHAINS)


@pytest.fixture(scope="module")
def at_once(few):
    return remade(few, _edits_at_once=True)


def test_every_jump_starts_where_the_one_before_ends():
    assert jumps([[8.0], [4.0, 1.0]]) == [(8.0, 0.0), (4.0, 1.0), (1.0, 0.0)]
    assert [len(levels) for levels in CHAINS] == [1, 2, 4]
    starts = [start for start, _ in jumps(CHAINS)]
    assert len({*starts}) == len(starts) == 7 and max(starts) == 80


@pytest.mark.parametrize("sigma", [2.0, 80.0])
def test_the_first_latents_have_the_spectrum_of_noisy_images(sigma):
    noise = randn(2, 3, 6, 6)
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


@torch.no_grad()
@pytest.mark.parametrize("task", ["generate", "inpaint"])
@pytest.mark.parametrize("levels", CHAINS)
def test_a_sample_is_the_jumps_one_after_the_other(few, task, levels):
    """Where pixels are known it starts with noise alone: random low frequencies would not fit."""
    known, mask = 2 * SOURCE - 1, MASK if task == "inpaint" else torch.ones_like(MASK)
    hint = TASKS[task].condition(known, mask, None, NOISE)
    given = build_conditioning(hint, TASKS[task], torch.tensor([2]), few.vocabulary)
    free = levels[0] * NOISE if task == "inpaint" else first_latents(NOISE, levels[0])
    x = torch.where(mask > 0, free, known + levels[0] * NOISE)
    for s, then in jumps([levels]):
        F = predict(few.unet, few.scheduler, x, torch.full((1, 1, 1, 1), s), given)
        D = 0.25 / (s**2 + 0.25) * x + s * 0.5 / (s**2 + 0.25) ** 0.5 * F
        x = then / s * x + (1 - then / s) * D
        x = torch.where(mask > 0, x, known + then * NOISE)
    options = {"class_label": "ship", "latents": NOISE, "num_inference_steps": len(levels)}
    options |= {"image": SOURCE, "mask_image": MASK} if task == "inpaint" else {}
    with evaluations_of(few.unet) as seen:
        drawn = sample(few, task, "latent", **options)
    assert seen == [len(levels)]  # guidance is off: one evaluation a step
    torch.testing.assert_close(drawn, x, rtol=1e-3, atol=1e-4)
    kept = (mask == 0).expand_as(known)
    assert torch.equal(sample(few, task, **options)[kept], SOURCE[kept])


def test_the_defaults_are_the_models(few, pipe):
    defaults = {task: pipe.default_steps(task) for task in few.tasks}
    assert defaults == {"generate": 18, "inpaint": 18, "edit": 12, "colorize": 18}
    assert pipe.default_guidance("edit") == 6
    # A hole is completed in two steps where the model has them.
    defaults = {task: few.default_steps(task) for task in few.tasks}
    assert defaults == {"generate": 4, "inpaint": 2, "edit": 4, "colorize": 4}
    assert remade(few, _chains=[[8.0], [4.0, 2.0, 1.0]]).default_steps("inpaint") == 3
    asked = sample(few, num_inference_steps=4, guidance_scale=1.0)
    assert torch.equal(sample(few, num_inference_steps=None), asked) and few.guidance_scale == 1


@pytest.mark.parametrize(
    "steps, strength, levels",
    [
        (4, 0, 1),
        (4, 0.35, 2),  # at 0.29, below 1
        (4, 0.8, 3),  # at 2.4, below 4
        (4, 0.9, 4),  # at 4.9
        (2, 0.5, 1),  # at 0.62, below 0.8
        (2, 0.6, 2),
    ],
)
def test_an_edit_starts_at_the_lowest_level_that_has_enough_noise(few, steps, strength, levels):
    """From the source with noise of that level, by the jumps that are left."""
    seen = []

    def note(pipe, i, timestep, tensors):
        seen.append(pipe.num_timesteps)

    options = {"image": SOURCE, "mask_image": None, "num_inference_steps": steps}
    options |= {"strength": strength, "callback_on_step_end": note}
    drawn = sample(few, "edit", "latent", **options)
    assert seen == [levels] * levels
    assert torch.equal(drawn, 2 * SOURCE - 1) == (strength == 0)


@torch.no_grad()
@pytest.mark.parametrize(
    "strength, told, scale", [(0.4, 0.4, None), (0.95, 0.95, 1.5), (1, 0.95, 0.7), (0, 0, None)]
)
def test_an_edit_at_once_is_the_answer_to_noise_with_the_source_shown(
    at_once, strength, told, scale
):
    edit = {"image": SOURCE, "mask_image": MASK, "class_label": "dog", "strength": strength}
    edit |= {"guidance_scale": scale}
    with evaluations_of(at_once.unet) as seen:
        drawn = sample(at_once, "edit", "latent", **edit, latents=NOISE, num_inference_steps=1)
    assert seen == [1] and at_once.guidance_scale == (scale or 1.5)
    hint = Hint(2 * SOURCE - 1, MASK, torch.tensor([float(told)]))
    given = build_conditioning(hint, TASKS["edit"], torch.tensor([1]), at_once.vocabulary)
    D = Denoiser.of(at_once.unet, at_once.scheduler, given)(80 * NOISE, 80.0)
    painted = (MASK > 0) & (strength > 0)
    edited = torch.where(painted, D, 2 * SOURCE - 1)
    expected = (
        2 * SOURCE
        - 1
        + weights_of_change(edited, painted, scale or 1.5) * (edited - 2 * SOURCE + 1)
    )
    torch.testing.assert_close(drawn, expected.float(), atol=1e-4, rtol=1e-3)


def weights_of_change(edited, painted, scale=1.5):
    """scale d / (d + 0.3 m), by scipy: a blur of 0.4 of the 8 pixels is a product in the DCT."""
    d = (edited - 2 * SOURCE + 1).double().square().sum(1).numpy()
    decay = np.exp(-0.5 * (np.pi / 8 * np.arange(8) * 0.4) ** 2)
    d = idctn(
        decay[:, None] * decay * dctn(d, axes=(1, 2), norm="ortho"), axes=(1, 2), norm="ortho"
    )
    d = torch.from_numpy(d).clamp_min(0)[:, None]
    return scale * painted * d / (d + 0.3 * d[painted].mean()) if painted.any() else 0 * d


@torch.no_grad()
def test_its_second_step_is_the_last_jump_of_generate(at_once):
    edit = {"image": SOURCE, "mask_image": MASK, "class_label": "dog", "latents": NOISE}
    once = sample(at_once, "edit", "latent", **edit, num_inference_steps=1)
    with evaluations_of(at_once.unet) as seen:
        twice = sample(at_once, "edit", "latent", **edit, num_inference_steps=None)
    assert seen == [2]
    own, blank = own_generators(NOISE), torch.zeros_like(NOISE)
    randn_tensor(NOISE.shape, own)  # of the degradation, which this edit has not
    noise = randn_tensor(NOISE.shape, own)
    hint = Hint(blank, torch.ones_like(MASK))
    given = build_conditioning(hint, TASKS["generate"], torch.tensor([1]), at_once.vocabulary)
    D = Denoiser.of(at_once.unet, at_once.scheduler, given)(once + 0.8 * noise, 0.8)
    drawn = torch.where(MASK > 0, D, 2 * SOURCE - 1)
    weights = weights_of_change(once, MASK > 0).clamp(max=1)
    expected = 2 * SOURCE - 1 + weights * (drawn - 2 * SOURCE + 1)
    torch.testing.assert_close(twice, expected.float(), atol=1e-4, rtol=1e-3)


def test_an_interrupted_edit_is_what_one_evaluation_gives(at_once):
    def interrupt(pipe, i, timestep, tensors):
        pipe._interrupt = True

    edit = {"image": SOURCE, "mask_image": MASK, "class_label": "dog", "latents": NOISE}
    once = sample(at_once, "edit", "latent", **edit, num_inference_steps=1)
    edit |= {"num_inference_steps": 2, "callback_on_step_end": interrupt}
    assert torch.equal(sample(at_once, "edit", "latent", **edit), once)


def test_another_number_of_steps_or_scheduler_is_refused(few, at_once):
    with pytest.raises(ValueError, match=r"num_inference_steps is 3; .* in 1, 2, 4 steps"):
        few(num_inference_steps=3)
    with pytest.raises(ValueError, match="is 4; this model does edit in 1, 2 steps"):
        sample(at_once, "edit", num_inference_steps=4)
    with pytest.raises(ValueError, match="this model of few steps takes EDMEulerScheduler: "):
        remade(few, EDMDPMSolverMultistepScheduler())()


def test_the_exported_model_knows_what_it_has_learned_and_draws_the_same(few, tmp_path):
    few = remade(few, _class_frequencies={"cat": 3, "dog": 1})
    few.save_pretrained(tmp_path)
    assert "chains" not in json.loads((tmp_path / "model_index.json").read_text())
    assert json.loads((tmp_path / "unet/config.json").read_text())["_chains"] == CHAINS
    loaded = DiffusionPipeline.from_pretrained(tmp_path, trust_remote_code=True)
    loaded.set_progress_bar_config(disable=True)
    assert type(loaded) is not MultiTaskPipeline  # the code of the folder
    assert type(loaded.scheduler) is EDMEulerScheduler
    one, two = (sample(pipe, num_inference_steps=None) for pipe in (few, loaded))
    # Only close: loaded weights lie at other addresses, where some CPUs round otherwise.
    torch.testing.assert_close(one, two, rtol=0, atol=1e-5)
    loaded.save_pretrained(tmp_path / "again")
    again = MultiTaskPipeline.from_pretrained(tmp_path / "again")
    assert again.chains == CHAINS and again.class_frequencies == {"cat": 0.75, "dog": 0.25}


def test_an_export_of_before_has_its_levels_in_its_index(pipe, tmp_path):
    old = MultiTaskPipeline(pipe.unet, pipe.tokenizer, EDMEulerScheduler(), CHAINS)
    assert old.chains == CHAINS and pipe.chains is None  # the unet, which they share, is as it was
    old.save_pretrained(tmp_path)
    assert MultiTaskPipeline.from_pretrained(tmp_path).chains == CHAINS
