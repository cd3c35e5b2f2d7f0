"""What the pipeline does with what it is given. What it refuses is in test_pipeline_errors.py."""

from functools import partial

import numpy as np
import pytest
import torch
from drawing import (
    MASK,
    SIZE,
    STEPS,
    as_tensor,
    every_task,
    generator,
    generators,
    hole,
    picture,
    remade,
    sample,
)
from PIL import Image

from mtl_diffusion.pipeline.pipeline import TASKS

assert_close = partial(torch.testing.assert_close, atol=1e-4, rtol=1e-4)
NOTHING = np.zeros((SIZE, SIZE), bool)


@every_task
def test_output_types_show_the_same_image(pipe, task):
    pt, array, pil, latent = (
        sample(pipe, task, output_type=kind) for kind in ("pt", "np", "pil", "latent")
    )
    assert pt.shape == latent.shape == (1, 3, SIZE, SIZE) and pt.dtype == torch.float32
    assert pt.min() >= 0 and pt.max() <= 1 and pt.std() > 0.05
    assert np.array_equal(array, pt.permute(0, 2, 3, 1).numpy())
    assert np.array_equal(np.stack(pil), (array * 255).round().astype(np.uint8))
    assert_close((latent / 2 + 0.5).clamp(0, 1), pt)


PIXELS, HOLES = np.stack([np.asarray(picture(i)) for i in (0, 1)]) / 255, np.stack([MASK, ~MASK])
TENSORS = torch.from_numpy(PIXELS).movedim(-1, 1)
# The same arguments of two samples in other forms.
FORMS = [
    ("image", [picture(0).convert("RGBA"), picture(1)]),
    ("image", PIXELS),
    ("image", [*PIXELS.astype(">f4")]),
    ("image", PIXELS[:, ::-1].copy()[:, ::-1]),  # of strides that torch doesn't take
    ("image", TENSORS.float()),
    ("image", [TENSORS[:1], TENSORS[1]]),
    ("mask_image", [Image.fromarray(255 * HOLES[0].astype(np.uint8)), Image.fromarray(HOLES[1])]),
    ("mask_image", [*HOLES]),
    ("mask_image", HOLES[..., None].astype(">f4")),
    ("mask_image", torch.from_numpy(HOLES[:, None] * 0.2 + 0.4)),  # grey is cut at one half
    ("class_label", [0, 2]),
    ("class_label", torch.tensor([0, 2])),
    ("class_label", ["cat", np.int64(2)]),
    ("strength", [np.float32(0.5), 0.75]),
    ("num_inference_steps", np.int64(STEPS)),
    ("guidance_interval", [0.1, np.inf]),
]


@pytest.mark.parametrize("name, value", FORMS)
def test_an_argument_may_have_several_forms(pipe, name, value):
    plain = {
        "image": [picture(0), picture(1)],
        "mask_image": torch.from_numpy(HOLES[:, None]),
        "class_label": ["cat", "ship"],
        "strength": [0.5, 0.75],
        "guidance_interval": (0.1, np.inf),
        "generator": generators(2),
    }
    expected = sample(pipe, "edit", "pt", **plain)
    found = sample(pipe, "edit", "pt", **plain | {"generator": generators(2), name: value})
    assert_close(found, expected)


@every_task
@pytest.mark.parametrize("algorithm", ["dpmsolver++", "sde-dpmsolver++"])
def test_an_image_depends_on_its_arguments_its_seed_and_its_place_alone(pipe, task, algorithm):
    """In a batch it is what it is alone, also where the solver adds noise."""
    scheduler = type(pipe.scheduler).from_config(pipe.scheduler.config, algorithm_type=algorithm)
    pipe = remade(pipe, scheduler)
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
    three, two = (sample(pipe, task, num_images_per_prompt=n) for n in (3, 2))
    assert_close(three[:2], two)
    assert not torch.equal(three[0], three[1])


def test_images_per_prompt_stand_together(pipe):
    twice = {"class_label": ["cat", "dog"], "num_images_per_prompt": 2}
    spelt_out = {"class_label": ["cat", "cat", "dog", "dog"]}
    one, other = (sample(pipe, **given, generator=generators(4)) for given in (twice, spelt_out))
    assert torch.equal(one, other)


@every_task
def test_latents_in_place_of_their_drawing(pipe, task):
    """All other noise follows from them, and not from a generator."""
    drawn, random = sample(pipe, task, num_images_per_prompt=2), generator()
    latents = torch.cat([torch.randn((1, 3, SIZE, SIZE), generator=random) for _ in range(2)])
    for other in (None, generator(9)):
        options = {"latents": latents, "num_images_per_prompt": 2, "generator": other}
        assert torch.equal(sample(pipe, task, **options), drawn)
    assert_close(sample(pipe, task, latents=latents[1:].double()), drawn[1:])


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
        ("inpaint", {"mask_image": NOTHING}),
        ("edit", {"mask_image": NOTHING}),
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
    steps, timesteps, names = zip(*seen, strict=True)
    assert list(steps) == list(range(STEPS)) == list(range(pipe.num_timesteps))
    assert list(timesteps) == sorted(timesteps, reverse=True)
    assert list(names) == [["latents"]] * STEPS
    painted = MASK if task in ("inpaint", "edit") else ~NOTHING
    assert (images[0, :, painted] == 0.5).all()


def test_several_strengths_are_batches_of_one_call(pipe):
    seen = []

    def note(call, step, timestep, tensors):
        seen.append((step, call.num_timesteps, len(tensors["latents"])))

    options = {"mask_image": None, "num_inference_steps": 2, "callback_on_step_end": note}
    images = sample(pipe, "edit", strength=[0.5, 0.0, 0.5], generator=generators(3), **options)
    assert torch.equal(images[1], as_tensor(picture())) and not torch.equal(images[0], images[2])
    assert seen == [(0, 4, 1), (1, 4, 1), (2, 4, 2), (3, 4, 2)]


def test_an_edit_of_strength_one_has_nothing_of_its_source(pipe):
    """Here the network is shown neither of two sources, and with a lower strength it is."""
    one, other, weaker = (
        sample(pipe, "edit", image=picture(i), mask_image=None, strength=strength)
        for i, strength in ((1, 1.0), (2, 1.0), (2, 0.9))
    )
    assert torch.equal(one, other) and not torch.equal(other, weaker)


def test_model_offloading(mine):
    """Without a GPU there is nowhere to load to: the hooks run, and change nothing."""
    before = sample(mine, "edit")
    mine.enable_model_cpu_offload(device="cpu")
    assert mine._execution_device.type == "cpu"
    for _ in range(2):
        assert torch.equal(sample(mine, "edit"), before)
