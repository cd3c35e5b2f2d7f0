"""Every bad call ends in a ValueError that names the argument and says what is wrong with it."""

import numpy as np
import pytest
import torch
from PIL import ExifTags, Image

from mtl_diffusion.data.decode import Encoded, decode
from mtl_diffusion.pipeline.format import ImageFormat
from mtl_diffusion.pipeline.inputs import read_images, read_masks

GENERATE = {"task": "generate"}
INPAINT = {
    "task": "inpaint",
    "image": torch.rand(3, 8, 8),
    "mask_image": torch.ones(8, 8),
}
EDIT = {"task": "edit", "image": torch.rand(3, 8, 8), "class_label": "cat"}
NAN, SQUARE = float("nan"), ImageFormat.square(8)

pil = Image.new("RGB", (8, 8))
nan_image = torch.full((3, 8, 8), NAN)

BAD = [
    # the task, and what goes with it
    (GENERATE, {"task": "draw"}, r"task is 'draw'; this model knows generate, .*edit$"),
    (GENERATE, {"task": "colorize"}, "task is 'colorize'.*this model has not learned it"),
    (INPAINT, {"image": None}, "task 'inpaint' needs image;"),
    (EDIT, {"class_label": None}, "task 'edit' needs class_label"),
    (EDIT, {"class_label": ["cat", None]}, "class_label has None in it"),
    (GENERATE, {"image": pil}, "task 'generate' takes no image; it takes class_label"),
    (GENERATE, {"image_guidance_scale": 1.0}, "takes no image_guidance_scale"),
    (GENERATE, {"strength": 0.5, "mask_image": pil}, "takes no mask_image, strength"),
    # class_label
    (GENERATE, {"class_label": "bird"}, "class_label is 'bird'; this model knows cat, dog, ship"),
    (GENERATE, {"class_label": 3}, "class_label is 3; .*from 0 to 2"),
    (GENERATE, {"class_label": True}, "class_label is True"),
    (GENERATE, {"class_label": []}, "class_label is an empty list"),
    # image
    (EDIT, {"image": pil.resize((9, 8))}, "image is 9x8 pixels; this model takes 8x8"),
    (EDIT, {"image": pil.convert("F")}, "image is a PIL image of mode F: its pixels are floating"),
    (EDIT, {"image": np.zeros((8, 8, 3), np.uint8)}, "image has the type uint8.*divide by 255"),
    (EDIT, {"image": 255 * torch.rand(3, 8, 8)}, r"image has values from .* \[0, 1\]"),
    (EDIT, {"image": nan_image}, "image has NaN"),
    (EDIT, {"image": torch.rand(8, 8, 3)}, r"image is a tensor of shape \(8, 8, 3\)"),
    (EDIT, {"image": []}, "image is an empty list"),
    (EDIT, {"image": torch.rand(0, 3, 8, 8)}, "image is an empty batch"),
    (EDIT, {"image": "cat.png"}, "image is a str; it must be a PIL image"),
    # mask_image
    (INPAINT, {"mask_image": Image.new("L", (8, 9))}, "mask_image is 8x9 pixels"),
    (INPAINT, {"mask_image": torch.ones(3, 8, 8)}, r"mask_image has shape \(3, 8, 8\); .*several"),
    (INPAINT, {"mask_image": np.ones((8, 8, 3))}, r"mask_image has shape \(8, 8, 3\); .*color"),
    (INPAINT, {"mask_image": torch.ones(8)}, r"mask_image has shape \(8,\); it must be \(H, W\)"),
    (INPAINT, {"mask_image": np.ones((8, 8), np.uint8)}, "mask_image has the type uint8"),
    (INPAINT, {"mask_image": 255 * torch.ones(8, 8)}, "mask_image has values from 255 to 255"),
    (INPAINT, {"mask_image": True}, "mask_image is a bool"),
    # masks whose white is not white
    *(
        (INPAINT, {"mask_image": mask}, rf"mask_image has values up to {most}, so nothing .*{cure}")
        for mask, most, cure in (
            (Image.new("L", (8, 8), 1), 1, "white is 255: make white what is to be rep"),
            (Image.new("RGB", (8, 8), "red"), 76, "white is 255: make white"),
            (Image.new("I", (8, 8), 300), 300, "white is 65535: make white"),
            (torch.full((8, 8), 0.3), r"0\.3", "white is 1: give mask_image > 0 if"),
        )
    ),
    *(
        (INPAINT, {"mask_image": Image.new(mode, (8, 8))}, "mask_image is transparent in places")
        for mode in ("RGBA", "LA")
    ),
    # tensors and numbers without an ordinary value
    (INPAINT, {"mask_image": torch.eye(8).to_sparse()}, "mask_image is a tensor that is sparse"),
    (EDIT, {"image": torch.rand(3, 8, 8, device="meta")}, "image is a tensor that is without val"),
    *(
        (EDIT, {name: value}, rf"^{name} is ")
        for name, value in (("strength", 10**400), ("class_label", -(10**5000)))
    ),
    (GENERATE, {"num_inference_steps": 10**5000}, "num_inference_steps is a int that cannot be"),
    (GENERATE, {"num_images_per_prompt": 10**9}, "num_images_per_prompt is 10+; .* to 10,000"),
    # strength
    (EDIT, {"strength": 1.5}, r"strength is 1\.5; it must be a number from 0 to 1"),
    (EDIT, {"strength": "0.5"}, "strength is '0.5'"),
    (EDIT, {"strength": [0.5, 2]}, "strength is 2"),
    # lengths
    (EDIT, {"class_label": ["cat"] * 2, "strength": [0.1] * 3}, "class_label 2, strength 3"),
    (INPAINT, {"image": [pil] * 2, "mask_image": torch.ones(3, 1, 8, 8)}, "image 2, mask_image 3"),
    # numbers
    (GENERATE, {"num_inference_steps": 0}, "num_inference_steps is 0"),
    (GENERATE, {"num_inference_steps": True}, "num_inference_steps is True"),
    (GENERATE, {"guidance_scale": -1}, "guidance_scale is -1; it must be a number from 0 upwards"),
    (GENERATE, {"guidance_scale": NAN}, "guidance_scale is nan"),
    (GENERATE, {"guidance_interval": 1.0}, r"guidance_interval is 1\.0; it must be two numbers"),
    (GENERATE, {"guidance_interval": (3, 1)}, r"guidance_interval is \(3, 1\); .*lower one first"),
    (GENERATE, {"guidance_interval": (0, NAN)}, r"guidance_interval is \(0, nan\)"),
    # randomness
    (
        GENERATE,
        {"generator": [torch.Generator()], "class_label": [0, 1]},
        "generator has 1 entries for 2 images",
    ),
    (GENERATE, {"generator": 42}, "generator is 42; it must be a torch.Generator or a list"),
    (GENERATE, {"latents": torch.randn(2, 3, 8, 8)}, r"latents are \(2, 3, 8, 8\).*\(1, 3, 8, 8\)"),
    (GENERATE, {"latents": nan_image[None]}, "latents are .* finite"),
    (GENERATE, {"latents": np.zeros((1, 3, 8, 8))}, "latents are ndarray; .* tensor"),
    # output
    (GENERATE, {"output_type": "jpg"}, "output_type is 'jpg'; it must be one of pil, np, pt"),
    (
        GENERATE,
        {"callback_on_step_end_tensor_inputs": ["latents", "prompt_embeds"]},
        r"callback_on_step_end_tensor_inputs is \['latents', 'prompt_embeds'\]; .* have latents",
    ),
    (GENERATE, {"callback_on_step_end": 3}, "callback_on_step_end is 3; it must be a function"),
    (GENERATE, {"callback_on_step_end": lambda *_: 3}, "callback_on_step_end returned neither"),
    (GENERATE, {"callback_on_step_end": lambda *_: {"latents": torch.zeros(2)}}, "have the shape"),
    # arrays of what is no number
    (EDIT, {"image": np.full((8, 8, 3), "x")}, "image is a ndarray of <U1"),
    (EDIT, {"image": np.zeros((8, 8, 3), complex)}, "image has the type complex128"),
]


@pytest.fixture(scope="module")
def three_tasks(build_pipe):
    return build_pipe(tasks=("generate", "inpaint", "edit"))


@pytest.mark.parametrize(
    "call, changes, message", BAD, ids=lambda value: value if isinstance(value, str) else ""
)
def test_a_bad_call(three_tasks, call, changes, message):
    good = {"num_inference_steps": 1} | call
    with pytest.raises(ValueError, match=message):
        three_tasks(**(good | changes))


@pytest.mark.parametrize("call", [GENERATE, INPAINT, EDIT], ids=lambda call: call["task"])
def test_the_calls_are_good_without_their_changes(three_tasks, call):
    assert three_tasks(num_inference_steps=1, **call).images


@pytest.mark.parametrize(
    "name, message",
    [
        ("source_class", "no argument source_class; mtl_diffusion.editing.whole.whole_edit"),
        ("num_inversion_steps", "no argument num_inversion_steps; mtl_diffusion.editing.whole"),
        ("prompt", "there is no argument prompt; leave it out"),
    ],
)
def test_an_argument_of_before_is_refused_with_what_takes_its_place(pipe, name, message):
    with pytest.raises(TypeError, match=message):
        pipe("generate", **{name: "cat"})


MODES = ["L", "RGB", "RGBA", "LA", "P", "CMYK", "LAB", "I;16", "I"]


@pytest.mark.parametrize("mode", MODES)
def test_images_and_masks_of_any_mode(mode):
    """White is white, and grey keeps its range."""
    grey = np.linspace(0, 65535, 64).reshape(8, 8)
    if mode.startswith("I"):
        image = Image.fromarray(grey.astype(np.uint16 if mode == "I;16" else np.int32))
    else:
        image = Image.fromarray((grey / 257).astype(np.uint8)).convert("RGB").convert(mode)
    tolerance = 0.2 if mode == "P" else 0.02  # few colours
    read = read_images(image, SQUARE)[0][0].permute(1, 2, 0).numpy()
    assert np.abs(read - grey[..., None] / 65535).max() < tolerance
    if mode != "P":
        assert np.array_equal(read_masks(image, SQUARE)[0, 0].numpy(), grey > 32767)


def test_an_image_is_read_as_training_reads_it(tmp_path):
    """Upright, in sRGB, and white where it is transparent."""
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    pixels = np.random.default_rng(0).integers(0, 256, (8, 8, 4), np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.png", exif=exif)
    decoded, *_ = decode(Encoded(None, str(tmp_path / "a.png"), "a.png"), SQUARE)
    files = (Image.open(tmp_path / "a.png"), Image.fromarray(decoded), pixels[..., :3] / 255)
    read, expected, raw = (read_images(file, SQUARE)[0] for file in files)
    assert torch.equal(read, expected) and not torch.equal(expected, raw)


def test_an_image_whose_file_is_closed_says_so(pipe, tmp_path):
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    with Image.open(tmp_path / "a.png") as image:
        pass
    with pytest.raises(ValueError, match=r"^image is a PIL image whose file is closed .* load\(\)"):
        pipe(**EDIT | {"image": image})
