"""The loss in a classifier's features: what it is, what it reaches, and that a run goes on."""

from dataclasses import replace
from functools import partial
from shutil import copytree

import pytest
import torch
import torch.nn.functional as F
from forked import SHORT, STATE, die, train
from tables import load
from tiny import MODEL, unet_of

from mtl_diffusion import loop
from mtl_diffusion.classifiers.classifier import Classifier
from mtl_diffusion.classifiers.training import train_classifier
from mtl_diffusion.config import ConfigError, TrainConfig
from mtl_diffusion.pipeline.denoiser import Conditioning
from mtl_diffusion.tools.tensors import to_unit_range
from mtl_diffusion.training.alignment import Alignment
from mtl_diffusion.training.losses import Objective
from mtl_diffusion.training.model import build_scheduler, build_unet

OPTIONS = {"epochs": 1, "batch_size": 20, "width": 4}


@pytest.fixture(scope="module")
def dataset(data):
    return load(data, split="train", resolution=8)


@pytest.fixture(scope="module")
def folders(dataset, tmp_path_factory):
    """A classifier of 8x8 pixels of each architecture."""
    made = [tmp_path_factory.mktemp("classifier") for _ in range(2)]
    for architecture, folder in zip(("regnet", "resnet9"), made, strict=True):
        train_classifier(dataset, architecture, **OPTIONS).save(folder, {"accuracy": 0.0})
    return made


@pytest.fixture
def unet():
    unet = build_unet(TrainConfig(**MODEL), 12)
    torch.nn.init.normal_(unet.conv_out.weight, std=0.1)
    unet.time_proj.requires_grad_(False)
    return unet


@pytest.fixture
def images(dataset):
    return to_unit_range(dataset.images[:12])


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


def test_it_is_added_to_the_loss_and_the_classifier_is_not_trained(unet, alignment, images):
    objective, seen = Objective(unet, build_scheduler(TrainConfig(**MODEL)), None, alignment), []
    alignment.register_forward_hook(lambda module, inputs, output: seen.append(output))
    given = Conditioning(
        images, torch.ones_like(images[:, :1]), torch.eye(12)[:3].expand(12, 3, 12)
    )
    plain, weighted = objective(images, images, torch.ones(12, 1, 1, 1), given, torch.arange(12))
    torch.testing.assert_close(weighted, plain + seen[0])
    own = {name for name, _ in objective.named_parameters() if not name.startswith("unet.")}
    assert own == {
        f"alignment.projector.{layer}.{kind}" for layer in (0, 2) for kind in ("weight", "bias")
    }
    assert set(alignment.state_dict()) == {name.removeprefix("alignment.") for name in own}


def test_a_run_with_a_classifier_goes_on_exactly(folders, tmp_path):
    """Wherever the classifier is by then; another one is refused."""
    fields = {"max_train_steps": 4, "checkpointing_steps": 2}

    def run(name, classifier, *faults):
        return train(tmp_path / name, *SHORT, *faults, alignment_classifier=classifier, **fields)

    whole = run("whole", folders[0])[1]
    assert {*STATE, "alignment"} == set(whole.state(4))
    assert run("run", folders[0], partial(die, 3))[0] == -9
    code, again = run("run", copytree(folders[0], tmp_path / "moved"))
    assert code == 0 and "resuming after step 2" in again.text, again.text
    assert again.state(4) == whole.state(4)
    code, other = run("run", folders[1])
    assert code == 2 and "alignment_classifier: the checkpoint has a classifier of" in other.text


def test_processes_share_a_run_with_a_classifier(folders, tmp_path):
    fields, runs = {"alignment_classifier": folders[1], "dropout": 0.0, "max_train_steps": 3}, []
    for processes in (1, 2):
        code, run = train(tmp_path / str(processes), *SHORT, processes=processes, **fields)
        assert code in (0, [0, 0]), run.text
        runs.append(run.folder)
    for name in ("unet", "alignment"):
        one, two = (unet_of(folder, name) for folder in runs)
        for key, weight in one.items():
            torch.testing.assert_close(two[key], weight, atol=2e-4, rtol=1e-3)


def test_a_classifier_that_does_not_fit_or_none_is_refused(config, folders, tmp_path):
    large = {"resolution": 16, "attention_resolutions": [8]}
    for folder, words, change in (
        (folders[0], "is for images of 8 pixels, resolution is 16", large),
        (tmp_path, "has no config.json and metrics.json", {}),
    ):
        with pytest.raises(ConfigError, match=words):
            loop.train(replace(config, alignment_classifier=str(folder), **change))
