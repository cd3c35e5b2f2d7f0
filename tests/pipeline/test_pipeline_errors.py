"""Every bad call ends in a ValueError that names the argument and says what is wrong with it."""

import numpy as np
import pytest
import torch
from PIL import Image

CALLS = {
    "generate": {},
    "inpaint": {"image": torch.rand(3, 8, 8), "mask_image": torch.ones(8, 8)},
    "edit": {"image": torch.rand(3, 8, 8), "class_label": "cat"},
}
NAN, PIL, TENSOR = float("nan"), Image.new("RGB", (8, 8)), torch.rand(3, 8, 8)
NAN_IMAGE = torch.full((3, 8, 8), NAN)

# Task, argument, value, and what the error says after the argument's name.
BAD = [
    ("generate", "task", "colorize", "is 'colorize'; it must be one that this model knows"),
    ("generate", "class_label", "bird", r"is 'bird'; .* this model knows \(cat, dog, ship\)"),
    ("generate", "class_label", 3, "is 3; .* number from 0"),
    ("edit", "class_label", ["cat", None], "has None in it; task 'edit' needs a class"),
    ("edit", "image", PIL.resize((9, 8)), "is 9x8 pixels; this model takes 8x8"),
    ("edit", "image", PIL.convert("F"), "is a PIL image of mode F .* its pixels are floating"),
    ("edit", "image", np.zeros((8, 8, 3), np.uint8), "has the type uint8.*divide 0..255"),
    ("edit", "image", 255 * TENSOR, r"has values from .* \[0, 1\]"),
    ("edit", "image", NAN_IMAGE, "has values from nan to nan"),
    ("edit", "image", TENSOR.permute(1, 2, 0), r"is a tensor of shape \(8, 8, 3\)"),
    ("edit", "image", TENSOR[None][:0], r"is tensor\(.*; it must be .* of one or more"),
    ("edit", "image", "cat.png", "is 'cat.png'; it must be a PIL image"),
    ("inpaint", "mask_image", torch.ones(3, 8, 8), r"is a tensor .*; it must be \(1, H, W\)"),
    ("inpaint", "mask_image", np.ones((8, 8, 3)), r"is an array .*; it must be \(H, W, 1\)"),
    ("inpaint", "mask_image", Image.new("RGBA", (8, 8)), "is transparent in places"),
    # Masks whose white is not white.
    ("inpaint", "mask_image", Image.new("L", (8, 8), 1), r"has values up to 1, .*\(255\)"),
    ("inpaint", "mask_image", torch.full((8, 8), 0.3), r"has values up to 0\.3, .*\(1\)"),
    ("edit", "strength", 1.5, r"is 1\.5; it must be a number from 0 to 1"),
    ("edit", "strength", [0.5, "1"], "is '1'"),
    ("generate", "num_inference_steps", 0, "is 0; it must be a whole number from 1"),
    ("generate", "guidance_scale", -1, "is -1; it must be a number from 0 upwards"),
    ("generate", "guidance_interval", 1.0, r"is 1\.0; it must be two numbers"),
    ("generate", "guidance_interval", (3, 1), r"is \(3, 1\); .*lower one first"),
    ("generate", "generator", [torch.Generator()] * 2, r"is \[.*; it must be .* each of 1 images"),
    ("generate", "generator", 42, "is 42; it must be a torch.Generator, or a list"),
    ("generate", "latents", torch.ones(2, 3, 8, 8), r"are \(2, 3, 8, 8\).*\(1, 3, 8, 8\)"),
    ("generate", "latents", NAN_IMAGE[None], "are .* finite"),
    ("generate", "latents", np.zeros((1, 3, 8, 8)), "are ndarray; .* tensor"),
    ("generate", "output_type", "jpg", "is 'jpg'; it must be one of pil, np, pt"),
    ("generate", "callback_on_step_end_tensor_inputs", ["x"], r"is \['x'\]; .*'latents'"),
]
# Arguments that don't go with the task, or with one another, and the error.
UNFIT = [
    ("inpaint", {"image": None}, "task 'inpaint' needs image;"),
    ("edit", {"class_label": None}, "task 'edit' needs class_label"),
    ("generate", {"image": PIL}, "task 'generate' takes no image; only class_label"),
    ("generate", {"strength": 0.5, "mask_image": PIL}, "takes no mask_image, strength"),
    ("edit", {"class_label": ["cat"] * 2, "strength": [0.1] * 3}, "class_label 2, strength 3"),
]


@pytest.fixture(scope="module")
def three_tasks(build_pipe):
    return build_pipe(tasks=tuple(CALLS))


@pytest.mark.parametrize("task", CALLS)
def test_the_calls_are_good_without_their_changes(three_tasks, task):
    assert three_tasks(task, num_inference_steps=1, **CALLS[task]).images


@pytest.mark.parametrize(
    "task, changes, message",
    [*((task, {name: value}, rf"^{name} {words}") for task, name, value, words in BAD), *UNFIT],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_bad_call(three_tasks, task, changes, message):
    with pytest.raises(ValueError, match=message):
        three_tasks(**{"task": task, "num_inference_steps": 1} | CALLS[task] | changes)


@pytest.mark.parametrize(
    "name, remedy",
    [("source_class", "mtl_diffusion.editing.whole.whole_edit"), ("prompt", "omit it")],
)
def test_an_argument_that_is_gone_or_unknown_is_refused(pipe, name, remedy):
    with pytest.raises(TypeError, match=f"there is no argument {name}; {remedy}"):
        pipe("generate", **{name: "cat"})


def test_an_image_whose_file_is_closed_says_so(pipe, tmp_path):
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    with Image.open(tmp_path / "a.png") as image:
        pass
    with pytest.raises(ValueError, match=r"^image is a PIL image .* that can't be read: .*closed"):
        pipe(**{"task": "edit"} | CALLS["edit"] | {"image": image})
