"""The loss in a classifier's features: what it is, what it reaches, and that a run goes on."""

import json
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from forked import SHORT, STATE, STEPS, die, train
from safetensors.torch import load_file
from tiny import MODEL

from mtl_diffusion.classifiers.classifier import Classifier
from mtl_diffusion.classifiers.training import train_classifier
from mtl_diffusion.config import TrainConfig
from mtl_diffusion.data.images import load_images
from mtl_diffusion.tools.tensors import to_unit_range
from mtl_diffusion.training.alignment import Alignment
from mtl_diffusion.training.losses import Objective, Plain
from mtl_diffusion.training.model import build_scheduler, build_unet


@pytest.fixture(scope="module")
def folders(data, tmp_path_factory):
    """Two classifiers of 8x8 pixels, which differ in their seed."""
    dataset = load_images(data, split="train", resolution=8)
    made = []
    for seed in range(2):
        folder = tmp_path_factory.mktemp("classifier")
        options = {"epochs": 1, "batch_size": 20, "width": 4, "seed": seed}
        train_classifier(dataset, **options).save(folder, {"accuracy": 0.0})
        made.append(folder)
    return made


@pytest.fixture(scope="module")
def images(data):
    return to_unit_range(load_images(data, split="train", resolution=8).images[:12])


@pytest.fixture
def unet():
    unet = build_unet(TrainConfig(**MODEL), 12)
    torch.nn.init.normal_(unet.conv_out.weight, std=0.1)
    unet.time_proj.requires_grad_(False)
    return unet


@pytest.fixture
def alignment(unet, folders, images):
    return Alignment(unet, Classifier.load(folders[0]), images, weight=0.5, seed=0)


def run_unet(unet, images):
    tokens = torch.zeros(len(images), 3, 12)
    tokens[:, :, 0] = 1
    channels = torch.cat([images, images, images[:, :1]], dim=1)
    time = torch.zeros(len(images))
    return unet(channels, time, encoder_hidden_states=tokens, class_labels=tokens.flatten(1)).sample


def test_alignment_is_one_minus_the_mean_cosine(unet, alignment, folders, images):
    seen = []
    unet.mid_block.register_forward_hook(lambda block, inputs, output: seen.append(output))
    run_unet(unet, images)
    loss = alignment(images)

    model = Classifier.load(folders[0]).model
    with torch.no_grad():
        last = model.regnet(images).last_hidden_state
    centred = F.interpolate(last - last.mean((0, 2, 3), keepdim=True), (4, 4), mode="bilinear")
    mine = alignment.projector(seen[0])
    cosines = (mine * centred).sum(1) / (mine.norm(dim=1) * centred.norm(dim=1))
    torch.testing.assert_close(loss, 0.5 * (1 - cosines.mean((1, 2))), rtol=1e-4, atol=1e-5)


def test_the_classifier_is_neither_trained_nor_saved(unet, alignment):
    objective = Objective(unet, build_scheduler(TrainConfig(**MODEL)), Plain(), alignment)
    own = {name for name, _ in objective.named_parameters() if not name.startswith("unet.")}
    assert own == {
        f"alignment.projector.{layer}.{kind}" for layer in (0, 2) for kind in ("weight", "bias")
    }
    assert set(alignment.state_dict()) == {name.removeprefix("alignment.") for name in own}


def test_a_run_with_a_classifier_goes_on_exactly(folders, tmp_path):
    options = {"alignment_classifier": folders[0]}
    whole = train(tmp_path / "whole", *SHORT, **options)[1]
    facts = json.loads((whole.folder / f"checkpoints/step-{STEPS}/facts.json").read_text())
    assert facts["alignment"]
    code, run = train(tmp_path / "run", *SHORT, partial(die, 7), **options)
    assert code == -9
    moved = folders[0].rename(tmp_path / "moved")  # it is known by its weights
    try:
        code, run = train(tmp_path / "run", *SHORT, **{**options, "alignment_classifier": moved})
    finally:
        moved.rename(folders[0])
    assert code == 0, run.text
    assert run.state() == whole.state() and {*STATE, "alignment"} == set(whole.state())

    code, run = train(tmp_path / "run", *SHORT, **{**options, "alignment_classifier": folders[1]})
    assert code == 2 and "alignment_classifier: the checkpoint has a classifier of the" in run.text


def test_processes_share_a_run_with_a_classifier(folders, tmp_path):
    options = {"alignment_classifier": folders[0], "dropout": 0.0, "max_train_steps": 3}
    one = train(tmp_path / "one", *SHORT, **options)[1]
    code, two = train(tmp_path / "two", *SHORT, processes=2, **options)
    assert code == [0, 0], two.text
    for group in ("unet", "alignment"):
        first, second = (
            load_file(run.folder / f"checkpoints/step-3/{group}.safetensors") for run in (one, two)
        )
        for name, weight in first.items():
            torch.testing.assert_close(second[name], weight, atol=2e-4, rtol=1e-3)


def test_a_classifier_that_does_not_fit_or_none_is_refused(folders, data, tmp_path):
    code, run = train(
        tmp_path / "a", *SHORT, alignment_classifier=folders[0], resolution=16,
        attention_resolutions=[8],
    )  # fmt: skip
    assert code == 2 and "is for images of 8 pixels, resolution is 16" in run.text
    code, run = train(tmp_path / "b", *SHORT, alignment_classifier=tmp_path)
    assert code == 2 and "has no config.json and metrics.json" in run.text
    dataset = load_images(data, split="train", resolution=8)
    options = {"architecture": "resnet9", "epochs": 1, "batch_size": 20, "width": 4}
    train_classifier(dataset, **options).save(tmp_path / "resnet9", {"accuracy": 0.0})
    code, run = train(tmp_path / "c", *SHORT, alignment_classifier=tmp_path / "resnet9")
    assert code == 2 and "is of model_type 'resnet9'; it must be 'regnet'" in run.text
