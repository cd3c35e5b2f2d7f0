"""Models of other channels, depths and shapes: trained for a few steps, exported, and drawn."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import DiffusionPipeline
from PIL import Image

from mtl_diffusion.config.command_line import check
from mtl_diffusion.loop import train
from mtl_diffusion.pipeline.format import ImageFormat
from mtl_diffusion.pipeline.pipeline import MultiTaskPipeline

RANDOM = np.random.default_rng(0)
# How each kind of data is given, and the format of the model that learns it.
KINDS = {
    "grey": ({"image_mode": "L"}, (8, 8), "uint8", "png"),
    "alpha": ({"image_mode": "RGBA", "resolution": [8, 16]}, (8, 16, 4), "uint8", "png"),
    "bands": ({"image_mode": 5, "shown_bands": [3, 2, 1]}, (8, 8, 5), "uint8", "npy"),
    "deep grey": ({"image_mode": "L", "image_dtype": "uint16"}, (8, 8), "uint16", "png"),
    "deep bands": (
        {"image_mode": 5, "image_dtype": "uint16", "value_range": [0, 4095]},
        (8, 8, 5),
        "uint16",
        "npy",
    ),
    "floats": (
        {"image_mode": "L", "image_dtype": "float32", "value_range": [-1000, 3000]},
        (8, 8),
        "float32",
        "npy",
    ),
    "padded": ({"image_mode": "L", "image_fit": "pad"}, (8, 4), "uint8", "png"),
}


def numbers(shape, dtype, fields) -> np.ndarray:
    low, high = fields.get("value_range") or (0, np.iinfo(dtype).max)
    return RANDOM.uniform(low, high, shape).astype(dtype)


def write(folder: Path, kind: str) -> Path:
    """Two classes of images of a kind, with a split to hold out."""
    fields, shape, dtype, suffix = KINDS[kind]
    for split, count in (("train", 5), ("test", 3)):
        for i in range(2 * count):
            path = folder / split / ("left", "right")[i % 2] / f"{i}.{suffix}"
            path.parent.mkdir(parents=True, exist_ok=True)
            array = numbers(shape, dtype, fields)
            if suffix == "npy":
                np.save(path, array)
            else:
                Image.fromarray(array).save(path)
    return folder


@pytest.fixture(scope="module", params=KINDS)
def trained(request, base, tmp_path_factory):
    """(kind, folder of the export) of a run of two steps, with validation's pictures."""
    from tiny import own_state

    kind, folder = request.param, tmp_path_factory.mktemp("formats")
    fields = KINDS[kind][0]
    tasks = {"generate": 1.0, "inpaint": 1.0, "edit": 1.0, "upscale": 1.0}
    tasks |= {"colorize": 1.0} if kind == "alpha" else {}
    config = replace(
        base,
        dataset_name=str(write(folder / "data", kind)),
        output_dir=str(folder / "run"),
        max_train_steps=2,
        tasks=tasks,
        gallery=True,
        **fields,
    )
    with own_state():
        train(check(config))
    return kind, folder / "run" / "pipeline"


def test_a_model_returns_what_it_was_given_where_nothing_is_painted(trained):
    """Byte for byte, in every form in which it takes images."""
    kind, folder = trained
    fields, shape, dtype, _ = KINDS[kind]
    pipe = MultiTaskPipeline.from_pretrained(folder)
    pipe.set_progress_bar_config(disable=True)
    form = pipe.format
    assert form.fit == fields.get("image_fit", "crop") and form.mode == fields["image_mode"]
    array = numbers(shape, dtype, fields)
    mask = np.zeros(shape[:2], bool)
    mask[:, :2] = True
    call = {"task": "inpaint", "mask_image": mask, "num_inference_steps": 2}
    if form.pil_mode:
        (image,) = pipe(image=Image.fromarray(array), **call).images
        assert image.mode == form.pil_mode
        assert np.array_equal(np.asarray(image)[~mask], array[~mask])
        assert not np.array_equal(np.asarray(image)[mask], array[mask])
    else:
        with pytest.raises(ValueError, match="PIL has no mode for images of 8x8 pixels, 5 bands"):
            pipe(task="generate", output_type="pil")
    given = array.astype(np.float32).reshape(*shape[:2], -1)
    given = given if form.value_range else given / np.float32(np.iinfo(dtype).max)
    (found,) = pipe(image=given, output_type="np", **call).images
    assert found.dtype == np.float32 and np.array_equal(found[~mask], given[~mask])
    assert found.min() >= form.array_range[0] and found.max() <= form.array_range[1]
    stored = form.array_as_stored(torch.from_numpy(found)).numpy().astype(dtype)
    assert np.array_equal(stored[~mask], array.reshape(*shape[:2], -1)[~mask])


def test_every_task_draws_images_of_the_format_where_this_package_is_not_needed(trained):
    kind, folder = trained
    fields, _, dtype, _ = KINDS[kind]
    pipe = DiffusionPipeline.from_pretrained(folder, trust_remote_code=True)
    pipe.set_progress_bar_config(disable=True)
    source = pipe(task="generate", class_label="left", num_inference_steps=2).images[0]
    for task in pipe.tasks:
        needs = pipe.spec(task).required
        given = {
            "image": source,
            "class_label": "right",
            "mask_image": torch.ones(pipe.format.size),
        }
        given = {name: value for name, value in given.items() if name in needs}
        (image,) = pipe(task=task, num_inference_steps=2, output_type="np", **given).images
        assert image.shape == pipe.format.shape[1:] + pipe.format.shape[:1]
    pictures = {path.name for path in folder.parent.glob("validation/*.png")}
    assert {f"step-2-{task}.png" for task in pipe.tasks} <= pictures
    assert (folder / "gallery.png").exists()
    words = "5 bands" if "bands" in kind else f"mode {fields['image_mode']}, {dtype}"
    assert words in (folder / "README.md").read_text()


def test_the_padding_of_an_image_is_cut_off_again_and_has_no_loss(trained):
    kind, folder = trained
    if kind != "padded":
        pytest.skip("of the padded model")
    pipe = MultiTaskPipeline.from_pretrained(folder)
    sources = [Image.new("L", size, 9) for size in ((4, 8), (8, 8), (8, 3))]
    edits = pipe("edit", image=sources, class_label="left", num_inference_steps=1).images
    assert [edit.size for edit in edits] == [source.size for source in sources]
    with pytest.raises(ValueError, match=r"image is 4x4 pixels; .* or less in one of the two"):
        pipe("edit", image=Image.new("L", (4, 4)), class_label="left")


def test_weights_and_formats_of_one_model_belong_together(trained):
    _, folder = trained
    pipe = MultiTaskPipeline.from_pretrained(folder)
    unet = pipe.unet
    assert ImageFormat.of(unet.config) == pipe.format
    unet.register_to_config(_image_format=None)
    if pipe.format.channels == ImageFormat.of(unet.config).channels:
        return
    with pytest.raises(ValueError, match=r"unet takes .* channels"):
        pipe.unet = unet
