"""Images without labels, or of one class: trained, exported, drawn from, described."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image
from tables import write_images

from mtl_diffusion.config import ConfigError
from mtl_diffusion.loop import train
from mtl_diffusion.pipeline.pipeline import MultiTaskPipeline


@pytest.fixture
def config(config, tmp_path):
    """On a folder as diffusers' own example of unconditional generation has it."""
    write_images(tmp_path / "flowers", *(f"{i}.png" for i in range(24)))
    tasks = {"generate": 1, "inpaint": 1, "colorize": 1}
    return replace(config, dataset_name=str(tmp_path / "flowers"), tasks=tasks, max_train_steps=2)


def test_images_without_labels(config, capsys):
    train(replace(config, gallery=True))
    where = f"the images of {config.dataset_name} (the rest of train; a tenth of train"
    line = "Data: 22 training and 2 held-out images, no classes, from " + where
    assert line in capsys.readouterr().out
    folder = Path(config.output_dir)
    assert all((folder / f"validation/step-2-{task}.png").exists() for task in config.tasks)

    pipe = MultiTaskPipeline.from_pretrained(folder / "pipeline")
    pipe.set_progress_bar_config(disable=True)
    assert pipe.class_names == ()
    common = {"num_inference_steps": 2, "generator": torch.Generator().manual_seed(0)}
    image = pipe(num_images_per_prompt=2, **common).images[1]
    mask = Image.new("L", image.size, 255)
    assert pipe("inpaint", image=image, mask_image=mask, **common).images[0].size == (8, 8)
    assert pipe("colorize", image=image, **common).images[0].size == (8, 8)
    with pytest.raises(ValueError, match=r"class_label is .*; it must be None, for this model has"):
        pipe(class_label="cat", **common)

    card = (folder / "pipeline/README.md").read_text()
    assert "It has no classes: its training images had no labels." in card
    assert "class-conditional" not in card and "class_label=" not in card
    assert Image.open(folder / "pipeline/gallery.png").width > 64


def test_what_needs_classes_is_refused(config):
    with pytest.raises(ConfigError) as refused:
        train(replace(config, tasks={"generate": 0.5, "inpaint": 0.25, "edit": 0.25}))
    (fault,) = refused.value.faults
    assert fault.startswith("tasks: edit needs a class for each image, and the data has none")
    assert fault.endswith("""leave it out: --tasks '{"generate": 0.5, "inpaint": 0.25}'""")
    with pytest.raises(ConfigError, match="balance_classes: found true; the data has no classes"):
        train(replace(config, balance_classes=True))


def test_an_unlabelled_dataset_for_a_model_that_has_classes(config, tmp_path, no_validation):
    """The words stay, and the new images have none of them."""
    write_images(tmp_path / "pets", *(f"{'ab'[i % 2]}/{i}.png" for i in range(12)))
    named = replace(config, dataset_name=str(tmp_path / "pets"), output_dir=str(tmp_path / "named"))
    train(named)
    pretrained = str(tmp_path / "named/pipeline")
    train(replace(config, pretrained_model_name_or_path=pretrained))
    pipe = MultiTaskPipeline.from_pretrained(Path(config.output_dir) / "pipeline")
    assert pipe.class_names == ("a", "b")


def test_a_pretrained_model_that_is_none(config, tmp_path):
    (tmp_path / "model").mkdir()
    with pytest.raises(ConfigError, match=r"pretrained_model_name_or_path: .*model_index\.json"):
        train(replace(config, pretrained_model_name_or_path=str(tmp_path / "model")))
