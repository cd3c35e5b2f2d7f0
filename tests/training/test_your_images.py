"""The commands of docs/your_images.md, and two more formats: trained, exported, and drawn."""

import re
import shlex
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import DiffusionPipeline
from PIL import Image
from tiny import own_state

from mtl_diffusion.config.command_line import parse
from mtl_diffusion.data.images import load_splits
from mtl_diffusion.data.loader import Batch
from mtl_diffusion.loop import train
from mtl_diffusion.pipeline.pipeline import MultiTaskPipeline
from mtl_diffusion.pipeline.translate import Translate
from mtl_diffusion.training.mixture import Mixture

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs/your_images.md").read_text(encoding="utf-8").replace("\\\n", " ")
COMMANDS = {
    command.split()[command.split().index("--dataset_name") + 1]: shlex.split(command)[2:]
    for command in re.findall(r"^mtl-diffusion train .*$", PAGE, re.M)
}
MORE = {
    "floats": {"image_mode": "L", "image_dtype": "float32", "value_range": [-1000, 3000]},
    "padded": {"image_mode": "L", "image_fit": "pad"},
}
TOY = ["--resolution=8", "--block_out_channels=[8,8]", "--norm_num_groups=4", "--token_dim=8"]
TOY += ["--total_batch_size=4", "--max_train_steps=2", "--num_threads=1", "--report_to=none"]
TOY += ["--validation_images=4"]
RANDOM = np.random.default_rng(0)
# Folder -> height, width and bands of its images, and a value that none of them reaches.
SHAPES = {
    "photos": ((40, 32, 3), 256),
    "scans": ((10, 8), 4096),
    "faces": ((10, 8, 3), 256),
    "tiles": ((8, 8, 5), 10_000),
    "sprites": ((10, 8, 4), 256),
    "floats": ((8, 8), 3000.0),
    "padded": ((8, 4), 256),
}
SECOND = {"scans": "mask", "faces": "map"}  # folder -> the column of the other images of its table


def numbers(name: str, size: tuple[int, int] | None = None) -> np.ndarray:
    shape, end = SHAPES[name]
    shape = (*(size or shape[:2]), *shape[2:])
    if name == "floats":
        return RANDOM.uniform(-1000, end, shape).astype(np.float32)
    return RANDOM.integers(0, end, shape, np.uint16 if end > 256 else np.uint8)


def write(name: str) -> None:
    """Twenty images as the page describes them, in the working directory; maps of two colours."""
    for i in range(20):
        folder = Path(name, "" if name in SECOND else ("cat", "dog & more")[i % 2])
        folder.mkdir(parents=True, exist_ok=True)
        array = numbers(name)
        if name == "floats" or (array.ndim == 3 and array.shape[2] == 5):
            np.save(folder / f"{i}.npy", array if i % 4 else np.moveaxis(array, -1, 0))
        else:
            Image.fromarray(array).save(folder / f"{i}.png")
        if name in SECOND:
            second = Image.fromarray(RANDOM.integers(0, 2, array.shape[:2], np.uint8), "P")
            second.putpalette([255, 0, 0, 0, 0, 255])
            second.save(folder / f"{i}-2.png")
    if name in SECOND:
        rows = [f"{i}.png,{i}-2.png" for i in range(20)]
        (folder / "train.csv").write_text("\n".join([f"image,{SECOND[name]}", *rows]))


@pytest.fixture(scope="module", params=SHAPES)
def trained(request, tmp_path_factory):
    """(name, configuration, folder of the export) of a run of two steps."""
    name, folder = request.param, tmp_path_factory.mktemp("formats")
    assert COMMANDS.keys() | MORE.keys() == SHAPES.keys()
    with pytest.MonkeyPatch.context() as patch, own_state():
        patch.chdir(folder)
        (folder / "configs").symlink_to(ROOT / "configs")
        write(name)
        other = {"dataset_name": folder / name, "output_dir": "run", **MORE.get(name, {})}
        command = COMMANDS.get(name, [f"--{key}={value}" for key, value in other.items()])
        config = parse([*TOY, *command, f"--dataset_name={folder / name}"])
        train(config)
    return name, config, folder / config.output_dir / "pipeline"


def test_a_model_returns_what_it_was_given_where_nothing_is_painted(trained):
    """Byte for byte, in every form in which it takes images."""
    name, config, folder = trained
    pipe = MultiTaskPipeline.from_pretrained(folder)
    if "inpaint" not in pipe.tasks:
        pytest.skip("it does not inpaint")
    pipe.set_progress_bar_config(disable=True)
    form = pipe.format
    assert (form.size, form.fit, form.mode) == (config.size, config.image_fit, config.image_mode)
    array = numbers(name, form.size)
    mask = np.zeros(form.size, bool)
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
    given = array.astype(np.float32).reshape(*form.size, -1)
    given = given if form.value_range else given / np.float32(np.iinfo(array.dtype).max)
    (found,) = pipe(image=given, output_type="np", **call).images
    assert found.dtype == np.float32 and np.array_equal(found[~mask], given[~mask])
    assert found.min() >= form.array_range[0] and found.max() <= form.array_range[1]
    stored = form.array_as_stored(torch.from_numpy(found)).numpy().astype(array.dtype)
    assert np.array_equal(stored[~mask], array.reshape(*form.size, -1)[~mask])


def test_every_task_draws_images_of_the_format_where_this_package_is_not_needed(trained):
    _, config, folder = trained
    pipe = DiffusionPipeline.from_pretrained(folder, trust_remote_code=True)
    pipe.set_progress_bar_config(disable=True)
    assert set(pipe.tasks) == set(config.shares)
    source = pipe(task="generate", num_inference_steps=2).images[0]
    given = {"image": source, "class_label": 0, "mask_image": torch.ones(pipe.format.size)}
    for task in pipe.tasks:
        own = {name: given[name] for name in pipe.spec(task).required}
        (image,) = pipe(task=task, num_inference_steps=2, output_type="np", **own).images
        assert image.shape == pipe.format.shape[1:] + pipe.format.shape[:1]
    pictures = {path.name for path in folder.parent.glob("validation/*.png")}
    assert pictures == {f"step-2-{task}.png" for task in pipe.tasks}
    assert (folder / "gallery.png").exists()
    assert pipe.format.words in (folder / "README.md").read_text()


def test_an_image_is_made_of_one_of_another_kind(trained):
    """The network is shown the condition, whose labels were not mixed, and not the image."""
    name, config, folder = trained
    if name != "faces":
        pytest.skip("of the pairs")
    pipe = MultiTaskPipeline.from_pretrained(folder)
    assert pipe.translations == ("from_map",) and pipe.tasks[-1] == "from_map"
    form = pipe.format
    _, held_out = load_splits(config, form)
    layer = held_out.conditions["from_map"]
    colours = layer.permute(0, 2, 3, 1).reshape(-1, 3).unique(dim=0)
    assert colours.tolist() == [[0, 0, 255], [255, 0, 0]]
    mix = Mixture((Translate("from_map"),), (1.0,), pipe.vocabulary, form)
    images = form.from_stored(held_out.images)
    draw = mix.draw(0, 0, len(images), torch.device("cpu"))
    batch = Batch(images, held_out.labels, held_out.layers)
    target, conditioning = mix.condition(batch, draw)
    kept = draw.drop_image.logical_not()
    assert torch.equal(target, images) and (conditioning.mask == 1).all()
    assert torch.equal(conditioning.image[kept], form.from_stored(layer)[kept])
    call = {"task": "from_map", "num_inference_steps": 2, "output_type": "pt"}
    one, other = (
        pipe(image=form.stored_as_array(layer[i]), generator=torch.manual_seed(0), **call).images
        for i in (0, 1)
    )
    assert not torch.equal(one, other)


def test_the_padding_of_an_image_is_cut_off_again_and_has_no_loss(trained):
    name, _, folder = trained
    if name != "padded":
        pytest.skip("of the padded model")
    pipe = MultiTaskPipeline.from_pretrained(folder)
    sources = [Image.new("L", size, 9) for size in ((4, 8), (8, 8), (8, 3))]
    edits = pipe("edit", image=sources, class_label="cat", num_inference_steps=1).images
    assert [edit.size for edit in edits] == [source.size for source in sources]
    with pytest.raises(ValueError, match=r"image is 4x4 pixels; .* or less in one of the two"):
        pipe("edit", image=Image.new("L", (4, 4)), class_label="cat")
