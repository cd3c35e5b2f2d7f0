"""What the pipeline does with what it is given. What it refuses is in test_pipeline_errors.py."""

import copy
import math
from array import array
from functools import partial
from hashlib import sha256
from itertools import pairwise

import numpy as np
import pytest
import torch
from diffusers import EDMDPMSolverMultistepScheduler, EDMEulerScheduler, ImagePipelineOutput
from diffusers.schedulers import scheduling_edm_euler
from PIL import Image

from mtl_diffusion.pipeline.denoiser import build_conditioning, predict
from mtl_diffusion.pipeline.pipeline import TASKS

SIZE, STEPS = 8, 3
every_task = pytest.mark.parametrize("task", TASKS)


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def generators(n):
    return [generator(seed) for seed in range(n)]


def picture(seed=0):
    array = np.random.default_rng(seed).integers(0, 256, (SIZE, SIZE, 3), dtype=np.uint8)
    return Image.fromarray(array)


def hole(seed=0):
    array = np.random.default_rng(seed).integers(0, 2, (SIZE, SIZE), dtype=np.uint8)
    return Image.fromarray(array * 255)


def as_array(image):
    return np.asarray(image, dtype=np.float32) / 255


def as_tensor(image):
    return torch.from_numpy(as_array(image)).permute(2, 0, 1)


ARGUMENTS = {
    "generate": {"class_label": "cat"},
    "inpaint": {"image": picture(), "mask_image": hole(), "class_label": "cat"},
    "edit": {"image": picture(), "mask_image": hole(), "class_label": "cat"},
    "colorize": {"image": picture(), "strength": 0.3},
}


def sample(pipe, task, output_type="pt", **arguments):
    """A sample of a task with its `ARGUMENTS`, but for those that are given."""
    defaults = {"num_inference_steps": STEPS, "generator": generator()} | ARGUMENTS[task]
    return pipe(task=task, output_type=output_type, **(defaults | arguments)).images


assert_close = partial(torch.testing.assert_close, atol=1e-4, rtol=1e-4)


# What comes out


@every_task
def test_output_types_show_the_same_image(pipe, task):
    pt, array, pil, latent = (
        sample(pipe, task, output_type=kind) for kind in ("pt", "np", "pil", "latent")
    )
    assert pt.shape == latent.shape == (1, 3, SIZE, SIZE) and pt.dtype == torch.float32
    assert pt.min() >= 0 and pt.max() <= 1 and pt.std() > 0.05
    assert array.shape == (1, SIZE, SIZE, 3)
    assert np.array_equal(array[0], pt[0].permute(1, 2, 0).numpy())
    assert [image.size for image in pil] == [(SIZE, SIZE)]
    assert np.array_equal(np.asarray(pil[0]), (array[0] * 255).round().astype(np.uint8))
    assert_close((latent / 2 + 0.5).clamp(0, 1), pt)


@every_task
def test_an_image_is_a_function_of_its_generator(pipe, task):
    assert torch.equal(sample(pipe, task), sample(pipe, task))
    assert not torch.equal(sample(pipe, task), sample(pipe, task, generator=generator(1)))


def test_return_dict(pipe):
    assert isinstance(pipe(num_inference_steps=1), ImagePipelineOutput)
    result = pipe(num_inference_steps=1, return_dict=False)
    assert isinstance(result, tuple) and len(result) == 1 and len(result[0]) == 1


def test_steps(pipe):
    for steps in (1, 2, np.int64(4)):
        assert sample(pipe, "generate", num_inference_steps=steps).isfinite().all()
        assert pipe.num_timesteps == steps


# What goes in


@pytest.mark.parametrize(
    "image",
    [
        as_array(picture()),
        as_array(picture()).astype(np.float64),
        as_array(picture()).astype(">f4"),  # of another byte order
        as_tensor(picture()),
        as_array(picture())[None],
        as_array(picture())[:, ::-1].copy()[:, ::-1],  # strides that torch doesn't take
        [picture()],
        [as_tensor(picture())[None]],
    ],
)
def test_images_of_every_kind(pipe, image):
    assert torch.equal(sample(pipe, "edit", image=image), sample(pipe, "edit"))


MASK = np.asarray(hole()) > 0


@pytest.mark.parametrize(
    "mask",
    [
        MASK,
        MASK.astype(np.float32),
        MASK[..., None],
        MASK[None],
        MASK[::-1].copy()[::-1],
        MASK * 0.2 + 0.4,  # grey is cut at one half
        torch.from_numpy(MASK),
        torch.from_numpy(MASK)[None].float(),
        torch.from_numpy(MASK)[None, None],
        hole().convert("1"),
        hole().convert("RGB"),
        [hole()],
        MASK.astype(">f8"),  # of another byte order
    ],
)
def test_masks_of_every_kind(pipe, mask):
    assert torch.equal(sample(pipe, "inpaint", mask_image=mask), sample(pipe, "inpaint"))


@pytest.mark.parametrize("value, words", [(0, "black: nothing is repaint"), (1, "white: nothing")])
def test_a_mask_without_black_or_white_warns(pipe, value, words):
    masks = [np.full((SIZE, SIZE), bool(value)), MASK]
    with pytest.warns(UserWarning, match=f"mask_image: 1 of 2 all {words}"):
        sample(pipe, "inpaint", mask_image=masks)


def test_classes_by_name_number_or_none(pipe):
    by_name = sample(pipe, "generate", class_label="dog")
    for label in (1, np.int64(1), ["dog"], [1], torch.tensor([1]), torch.tensor(1), np.array([1])):
        assert torch.equal(sample(pipe, "generate", class_label=label), by_name)
    nothing = sample(pipe, "generate", class_label=None)
    assert torch.equal(sample(pipe, "generate", class_label=[None]), nothing)
    others = [sample(pipe, "generate", class_label=name) for name in pipe.class_names]
    assert all(not torch.equal(other, nothing) for other in others)
    assert torch.equal(others[1], by_name) and not torch.equal(others[0], by_name)


@every_task
def test_a_batch_gives_what_its_samples_give_alone(pipe, task):
    own = {
        "class_label": ["cat", "ship", "dog"],
        "image": [picture(seed) for seed in range(3)],
        "mask_image": [hole(seed) for seed in range(3)],
        "strength": [0.2, 0.9, 0.5],
    }
    takes = TASKS[task].required | TASKS[task].optional
    own = {name: value for name, value in own.items() if name in takes}
    batch = sample(pipe, task, generator=generators(3), guidance_scale=2.0, **own)
    for i in range(3):
        one = {name: value[i] for name, value in own.items()}
        alone = sample(pipe, task, generator=generator(i), guidance_scale=2.0, **one)
        assert_close(batch[i : i + 1], alone)


def test_what_is_given_once_is_given_to_all(pipe):
    both = sample(pipe, "edit", class_label=["cat", "dog"], generator=generators(2))
    assert_close(both[1:], sample(pipe, "edit", class_label="dog", generator=generator(1)))


def test_images_per_prompt_stand_together(pipe):
    twice = sample(
        pipe,
        "generate",
        class_label=["cat", "dog"],
        num_images_per_prompt=2,
        generator=generators(4),
    )
    spelt_out = sample(
        pipe, "generate", class_label=["cat", "cat", "dog", "dog"], generator=generators(4)
    )
    assert torch.equal(twice, spelt_out)


@every_task
def test_latents_instead_of_their_drawing(pipe, task):
    latents = torch.randn((1, 3, SIZE, SIZE), generator=generator())
    assert torch.equal(sample(pipe, task, latents=latents), sample(pipe, task))
    assert not torch.equal(sample(pipe, task, latents=-latents), sample(pipe, task))


# What is known stays as it was


@pytest.mark.parametrize("task", ["inpaint", "edit"])
def test_known_pixels_come_out_as_they_went_in(pipe, task):
    source, known = np.asarray(picture()), ~MASK
    assert np.array_equal(np.asarray(sample(pipe, task, "pil")[0])[known], source[known])
    fine = np.random.default_rng(1).random((SIZE, SIZE, 3), dtype=np.float32)  # not of 255
    array = sample(pipe, task, "np", image=fine)[0]
    assert np.array_equal(array[known], fine[known]) and (array[MASK] != fine[MASK]).any()
    tensor = torch.from_numpy(fine).permute(2, 0, 1)
    assert torch.equal(sample(pipe, task, image=tensor)[0][:, known], tensor[:, known])


@pytest.mark.parametrize(
    "task, arguments",
    [
        ("inpaint", {"mask_image": np.zeros((SIZE, SIZE), bool)}),
        ("edit", {"mask_image": np.zeros((SIZE, SIZE), bool)}),
        ("edit", {"mask_image": None, "strength": 0}),
        ("edit", {"strength": [0.0]}),
    ],
)
def test_where_nothing_is_to_be_painted_the_source_comes_back(pipe, task, arguments):
    image = sample(pipe, task, "pil", **arguments)[0]
    assert image.tobytes() == picture().tobytes()
    fine = torch.rand(3, SIZE, SIZE, generator=generator())
    assert torch.equal(sample(pipe, task, image=fine, **arguments)[0], fine)


def test_each_sample_has_its_own_strength(pipe):
    images = sample(pipe, "edit", mask_image=None, strength=[0.0, 0.5])
    source = as_tensor(picture())
    assert torch.equal(images[0], source) and not torch.equal(images[1], source)


# Callbacks, as diffusers has them


@pytest.mark.parametrize("task", ["inpaint", "edit"])
def test_known_pixels_are_in_place_before_every_callback(pipe, task):
    noise = torch.randn((1, 3, SIZE, SIZE), generator=generator())
    known = torch.from_numpy(~MASK).expand(1, 3, SIZE, SIZE)
    clean, seen = 2 * as_tensor(picture())[None] - 1, []

    def callback(pipe, i, timestep, tensors):
        sigma = pipe.scheduler.sigmas[i + 1]
        torch.testing.assert_close(timestep, pipe.scheduler.sigmas[i].log() / 4)
        assert torch.equal(tensors["latents"][known], (clean + sigma * noise)[known])
        seen.append((i, float(sigma)))

    sample(pipe, task, latents=noise, callback_on_step_end=callback)
    assert [i for i, _ in seen] == list(range(STEPS)) and seen[-1][1] == 0


def test_a_callback_can_change_the_latents(pipe):
    def callback(pipe, i, timestep, tensors):
        return {"latents": torch.full_like(tensors["latents"], 0.5)}

    images = sample(pipe, "generate", callback_on_step_end=callback)
    assert (images == 0.75).all()


def test_a_callback_gets_what_it_asks_for(pipe):
    def callback(pipe, i, timestep, tensors):
        assert tensors == {}
        return {}

    images = sample(
        pipe, "generate", callback_on_step_end=callback, callback_on_step_end_tensor_inputs=[]
    )
    assert torch.equal(images, sample(pipe, "generate"))


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

    sample(pipe, "generate", guidance_scale=4.0, callback_on_step_end=callback)
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
    ],
)
def test_defaults_of_guidance(pipe, batches, task, arguments, branches):
    sample(pipe, task, **arguments)
    assert batches == [branches] * STEPS


def test_guidance_moves_the_image(pipe):
    one, two = (sample(pipe, "edit", guidance_scale=scale) for scale in (1.0, 4.0))
    three = sample(pipe, "edit", guidance_scale=4.0, image_guidance_scale=2.0)
    assert not torch.equal(one, two) and not torch.equal(two, three)


# The sampler


def seed_of(latents):
    """Of an image's own noise: the first eight bytes of the sha256 of its latents."""
    values = array("f", latents.flatten().tolist())
    return int.from_bytes(sha256(values.tobytes()).digest()[:8], "little")


def with_scheduler(pipe, scheduler):
    return type(pipe)(pipe.unet, pipe.tokenizer, scheduler)


def euler(pipe, task, known, mask, noise, own_noise, strength, label, steps):
    """Algorithm 1 of Karras et al. 2022 without its second order, known pixels held in place."""
    rho, low, high = 7, 0.002, 80.0
    ramp = [i / (steps - 1) for i in range(steps)]
    sigmas = [(high ** (1 / rho) + r * (low ** (1 / rho) - high ** (1 / rho))) ** rho for r in ramp]
    sigmas = [*sigmas, 0.0]
    hint = TASKS[task].condition(known, mask, strength, own_noise)
    told = build_conditioning(hint, TASKS[task], label, pipe.vocabulary)
    known, noise, hole = known.double(), noise.double(), hint.mask.double()
    x = known * (1 - hole) + sigmas[0] * noise
    for sigma, after in pairwise(sigmas):
        F = predict(
            pipe.unet, pipe.scheduler, x.float(), torch.full((len(x), 1, 1, 1), sigma), told
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
        label=torch.tensor([-1 if task == "colorize" else 0]),
        steps=6,
    )
    found = sample(first_order, task, "latent", num_inference_steps=6, guidance_scale=1.0)
    torch.testing.assert_close(found, expected, atol=2e-4, rtol=1e-3)
    assert not warnings


@torch.no_grad()
def test_the_second_order_is_nearer_to_the_solution(pipe):
    first = with_scheduler(pipe, EDMDPMSolverMultistepScheduler(solver_order=1))
    first.set_progress_bar_config(disable=True)
    exact = sample(first, "generate", "latent", num_inference_steps=150)
    errors = [
        (sample(p, "generate", "latent", num_inference_steps=20) - exact).square().mean().sqrt()
        for p in (first, pipe)
    ]
    assert errors[1] < errors[0] / 2


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


def test_what_a_pipeline_knows(build_pipe):
    small = build_pipe(tasks=("inpaint", "generate"), classes=("a",))
    assert small.tasks == ("generate", "inpaint")
    assert small.class_names == ("a",) and small.size == SIZE
