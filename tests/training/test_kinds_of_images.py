"""Models of other channels, depths and shapes: trained for a few steps, exported, and drawn."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import DiffusionPipeline
from PIL import Image
from tiny import own_state

from mtl_diffusion.config import TrainConfig, check
from mtl_diffusion.data.images import load_splits
from mtl_diffusion.data.loader import Batch
from mtl_diffusion.loop import train
from mtl_diffusion.pipeline.pipeline import MultiTaskPipeline
from mtl_diffusion.pipeline.translate import Translate
from mtl_diffusion.training.mixture import Mixture

RANDOM = np.random.default_rng(0)
BANDS = {"image_mode": 5, "image_dtype": "uint16", "value_range": [0, 4095]}
FLOATS = {"image_mode": "L", "image_dtype": "float32", "value_range": [-1000, 3000]}
PAIRS = {"image_column": "image", "condition_columns": {"from_map": "map"}}
# How each kind of data is given, and the shape, numbers and suffix of its files.
KINDS = {
    "alpha": ({"image_mode": "RGBA", "resolution": [8, 16]}, (8, 16, 4), "uint8", "png"),
    "deep grey": ({"image_mode": "L", "image_dtype": "uint16"}, (8, 8), "uint16", "png"),
    "bands": (BANDS | {"shown_bands": [3, 2, 1]}, (8, 8, 5), "uint16", "npy"),
    "floats": (FLOATS, (8, 8), "float32", "npy"),
    "pairs": (PAIRS | {"resolution": [8, 16]}, (8, 16, 3), "uint8", "png"),
    "padded": ({"image_mode": "L", "image_fit": "pad"}, (8, 4), "uint8", "png"),
}


def numbers(shape, dtype, fields) -> np.ndarray:
    low, high = fields.get("value_range") or (0, np.iinfo(dtype).max)
    return RANDOM.uniform(low, high, shape).astype(dtype)


def write(folder: Path, kind: str) -> Path:
    """Two classes of images of a kind, with a split to hold out.

    Pairs are in tables, with maps of two colours in a palette, twice as large.
    """
    fields, shape, dtype, suffix = KINDS[kind]
    for split, count in (("train", 10), ("test", 6)):
        rows = ["image,map,label"]
        for i in range(count):
            label = ("left", "right")[i % 2]
            path = folder / split / label / f"{i}.{suffix}"
            path.parent.mkdir(parents=True, exist_ok=True)
            array = numbers(shape, dtype, fields)
            if suffix == "npy":
                np.save(path, array)
            else:
                Image.fromarray(array).save(path)
            if kind == "pairs":
                labels = Image.fromarray(RANDOM.integers(0, 2, (16, 32), np.uint8), "P")
                labels.putpalette([255, 0, 0, 0, 0, 255])
                labels.save(path.with_name(f"{i}-map.png"))
                rows.append(f"{label}/{i}.png,{label}/{i}-map.png,{label}")
        if kind == "pairs":
            (folder / split / f"{split}.csv").write_text("\n".join(rows))
    return folder


@pytest.fixture(scope="module", params=KINDS)
def trained(request, base, tmp_path_factory):
    """(kind, folder of the export) of a run of two steps, with validation's pictures."""
    kind, folder = request.param, tmp_path_factory.mktemp("formats")
    fields = KINDS[kind][0]
    tasks = ["generate", "inpaint", "edit", "upscale", *fields.get("condition_columns", ())]
    config = replace(
        base,
        dataset_name=str(write(folder / "data", kind)),
        output_dir=str(folder / "run"),
        max_train_steps=2,
        tasks=dict.fromkeys(tasks + ["colorize"] * (kind == "alpha"), 1.0),
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
    found = form.fit, form.mode
    assert found == (fields.get("image_fit", "crop"), fields.get("image_mode", "RGB"))
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
        with pytest.raises(ValueError, match="np, pt, latent for images of 8x8 pixels, 5 bands"):
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
    mask = torch.ones(pipe.format.size)
    for task in pipe.tasks:
        given = {"image": source, "class_label": "right", "mask_image": mask}
        given = {name: given[name] for name in pipe.spec(task).required}
        (image,) = pipe(task=task, num_inference_steps=2, output_type="np", **given).images
        assert image.shape == pipe.format.shape[1:] + pipe.format.shape[:1]
    pictures = {path.name for path in folder.parent.glob("validation/*.png")}
    assert {f"step-2-{task}.png" for task in pipe.tasks} <= pictures
    assert (folder / "gallery.png").exists()
    words = "5 bands" if kind == "bands" else f"mode {fields.get('image_mode')}, {dtype}"
    words = "16x8 pixels" if kind == "pairs" else words
    assert words in (folder / "README.md").read_text()


def test_an_image_is_made_of_one_of_another_kind(trained):
    """The network is shown the condition, whose labels were not mixed, and not the image."""
    kind, folder = trained
    if kind != "pairs":
        pytest.skip("of the pairs")
    pipe = MultiTaskPipeline.from_pretrained(folder)
    assert pipe.translations == ("from_map",) and pipe.tasks[-1] == "from_map"
    data, form = folder.parents[1] / "data", pipe.format
    config = replace(TrainConfig(), dataset_name=str(data), **KINDS[kind][0])
    _, held_out = load_splits(config, form)
    layer = held_out.conditions["from_map"]
    colours = layer.permute(0, 2, 3, 1).reshape(-1, 3).unique(dim=0)
    assert colours.tolist() == [[0, 0, 255], [255, 0, 0]]
    mix = Mixture((Translate("from_map"),), (1.0,), pipe.vocabulary, form, 0.0, 0.0)
    images = form.from_stored(held_out.images)
    batch = Batch(images, held_out.labels, held_out.layers)
    target, conditioning = mix.condition(batch, mix.draw(0, 0, len(images), torch.device("cpu")))
    kept = mix.draw(0, 0, len(images), torch.device("cpu")).drop_image.logical_not()
    assert torch.equal(target, images) and (conditioning.mask == 1).all()
    assert torch.equal(conditioning.image[kept], form.from_stored(layer)[kept])
    call = {"task": "from_map", "class_label": "left", "num_inference_steps": 2}
    drawn = [
        pipe(image=form.stored_as_array(layer[i]), generator=torch.manual_seed(0), **call).images[0]
        for i in (0, 1)
    ]
    assert drawn[0].tobytes() != drawn[1].tobytes() and drawn[0].size == (16, 8)


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
