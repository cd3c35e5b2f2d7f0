"""What the pipeline does with what it is given. What it refuses is in test_pipeline_errors.py."""

from functools import partial

import diffusers
import numpy as np
import pytest
import torch
from drawing import (
    MASK,
    SIZE,
    STEPS,
    as_array,
    as_tensor,
    generator,
    generators,
    hole,
    picture,
    sample,
)
from packaging.version import Version

from mtl_diffusion.pipeline.pipeline import TASKS

every_task = pytest.mark.parametrize("task", TASKS)


assert_close = partial(torch.testing.assert_close, atol=1e-4, rtol=1e-4)


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


@pytest.mark.parametrize(
    "image",
    [
        as_array(picture()),
        as_array(picture()).astype(">f4"),  # of another byte order
        as_tensor(picture()),
        as_array(picture())[None],
        as_array(picture())[:, ::-1].copy()[:, ::-1],  # strides that torch doesn't take
        [picture()],
    ],
)
def test_images_of_every_kind(pipe, image):
    assert torch.equal(sample(pipe, "edit", image=image), sample(pipe, "edit"))


@pytest.mark.parametrize(
    "mask",
    [
        MASK,
        MASK.astype(np.float32),
        MASK[..., None],
        MASK[::-1].copy()[::-1],
        MASK * 0.2 + 0.4,  # grey is cut at one half
        torch.from_numpy(MASK),
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
    nothing = sample(pipe, "generate", class_label=-1)
    assert torch.equal(sample(pipe, "generate", class_label=[-1]), nothing)
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


@every_task
def test_a_callback_sees_each_step_and_may_change_the_latents(pipe, task):
    seen = []

    def callback(pipe, step, timestep, tensors):
        seen.append((step, float(timestep), list(tensors)))
        return {"latents": torch.zeros_like(tensors["latents"])} if step == STEPS - 1 else {}

    images = sample(pipe, task, callback_on_step_end=callback)
    timesteps = [timestep for _, timestep, _ in seen]
    assert [step for step, *_ in seen] == list(range(STEPS)) == list(range(pipe.num_timesteps))
    assert timesteps == sorted(timesteps, reverse=True)
    assert all(names == ["latents"] for *_, names in seen)
    masked = task in ("inpaint", "edit")
    assert (images[0, :, MASK if masked else np.ones_like(MASK)] == 0.5).all()


def test_several_strengths_are_batches_of_one_call(pipe):
    seen = []

    def note(call, step, timestep, tensors):
        seen.append((step, call.num_timesteps, len(tensors["latents"])))

    options = {"mask_image": None, "num_inference_steps": 2, "callback_on_step_end": note}
    images = sample(pipe, "edit", strength=[0.5, 0.0, 0.5], generator=generators(3), **options)
    assert torch.equal(images[1], as_tensor(picture())) and not torch.equal(images[0], images[2])
    assert seen == [(0, 4, 1), (1, 4, 1), (2, 4, 2), (3, 4, 2)]


def test_an_edit_starts_from_its_source_and_one_of_strength_one_does_not(build_pipe):
    """What is left of the difference of two sources, where the network is shown neither."""
    pipe = build_pipe(tasks=("generate", "inpaint", "edit", "colorize"))

    def difference(strength):
        one, other = (
            sample(
                pipe,
                "edit",
                "latent",
                image=picture(seed),
                mask_image=None,
                strength=strength,
                image_guidance_scale=0,
                guidance_scale=0,
                num_inference_steps=6,
            )
            for seed in (1, 2)
        )
        return (one - other).abs().mean()

    assert difference(0.2) > 3 * difference(0.9) > 0
    assert difference(1.0) == 0


@pytest.mark.parametrize(
    "offload",
    [
        lambda pipe: pipe.enable_model_cpu_offload(device="cpu"),
        pytest.param(
            lambda pipe: pipe.unet.enable_group_offload(
                onload_device=torch.device("cpu"), offload_type="leaf_level"
            ),
            marks=pytest.mark.skipif(
                Version(diffusers.__version__) < Version("0.42"), reason="needs a GPU there"
            ),
        ),
    ],
    ids=["model", "group"],
)
@every_task
def test_offloading(mine, offload, task):
    """Without a GPU there is nowhere to load to: the hooks run, and change nothing."""
    before = sample(mine, task)
    offload(mine)
    assert mine._execution_device.type == "cpu"
    for _ in range(2):
        assert torch.equal(sample(mine, task), before)
