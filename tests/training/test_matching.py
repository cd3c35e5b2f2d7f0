"""The third stage: samples get the mean and the covariance of the features of images."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import EDMEulerScheduler
from forked import SHORT, check_killed_and_run_again
from forked import train as forked_train
from scipy.linalg import sqrtm
from tiny import unet_of

from mtl_diffusion import loop
from mtl_diffusion.classifiers.classifier import Classifier
from mtl_diffusion.classifiers.resnet9 import ResNet9, ResNet9Config
from mtl_diffusion.config import ConfigError
from mtl_diffusion.data.images import ImageDataset
from mtl_diffusion.data.shapes import shapes
from mtl_diffusion.pipeline.chains import default_chains
from mtl_diffusion.pipeline.denoiser import build_conditioning
from mtl_diffusion.pipeline.pipeline import MultiTaskPipeline
from mtl_diffusion.publishing.export import of_checkpoint
from mtl_diffusion.tools.rng import generator
from mtl_diffusion.training import matching
from mtl_diffusion.training.matching import Matching, Moments, matrix_power

CHAINS = default_chains(80.0)
TASKS = ("generate", "inpaint", "edit")


def few_steps_of(pipe):
    pipe.unet.register_to_config(_chains=CHAINS, _edits_at_once=True)
    pipe.scheduler = EDMEulerScheduler.from_config(pipe.scheduler.config)
    return pipe


@pytest.fixture
def pipe(build_pipe):
    return few_steps_of(build_pipe(tasks=TASKS, classes=("a", "b")))


@pytest.fixture
def objective(pipe):
    """For images of 8 pixels of two classes."""
    random = generator(0, "images")
    pixels = torch.randint(256, (60, 3, 8, 8), generator=random, dtype=torch.uint8)
    images = ImageDataset.of(pixels, torch.arange(60) % 2, ("a", "b"))
    config = ResNet9Config(width=4, id2label={0: "a", 1: "b"})
    classifier = Classifier(ResNet9(config).eval().requires_grad_(False), ("a", "b"), 8)
    return Matching(pipe.unet, pipe.scheduler, None, pipe, 2, classifier, images)


def batch(pipe, task, label):
    """Arguments of `forward`, of one task and class: twelve samples."""
    random, n = generator(0, "batch"), 12
    image, noise = torch.randn(2, n, 3, 8, 8, generator=random)
    spec = pipe.spec(task)
    choice = spec.draw(n, (8, 8), 0.0, random)
    hint = spec.condition(image, choice.mask, choice.strength, noise)
    labels = torch.full((n,), label)
    conditioning = build_conditioning(hint, spec, labels, pipe.vocabulary)
    sigma = torch.full((n, 1, 1, 1), CHAINS[2][0])
    return image, noise, sigma, conditioning, torch.full((n,), TASKS.index(task))


def some_points(seed, n, size=5):
    random = np.random.default_rng(seed)
    return torch.from_numpy(random.normal(size=(n, size)) @ random.normal(size=(size, size)) + seed)


def test_moments_are_those_of_the_latest_samples():
    points = some_points(1, 300)
    moments = Moments(2, torch.zeros(5, dtype=torch.float64), torch.eye(5, dtype=torch.float64))
    for part in points.repeat(40, 1).split(100):
        moments.add(1, part)
    np.testing.assert_allclose(moments.mean[1], points.mean(0), atol=0.1)
    expected = torch.from_numpy(np.cov(points.T, bias=True))
    assert (moments.covariance[1] - expected).norm() < 0.1 * expected.norm()
    assert not moments.mean[0].any() and torch.equal(moments.covariance[0], torch.eye(5).double())
    before = moments.mean.clone()
    moments.add(1, points[:0])
    assert torch.equal(moments.mean, before)
    # 80 new samples are a fifth of the mean, and 400 of the covariance, of its old centre.
    moments.add(0, torch.full((80, 5), 2.0))
    torch.testing.assert_close(moments.mean[0], torch.full((5,), 0.4, dtype=torch.float64))
    old, away = moments.covariance[1].clone(), points[0] - before[1]
    moments.add(1, points[:1].repeat(400, 1))
    torch.testing.assert_close(moments.covariance[1], 0.8 * old + 0.2 * away.outer(away))


def test_the_transport_and_its_distance_are_those_of_frechet(objective, monkeypatch):
    """By scipy's root of a matrix: the points get the aim's moments, and the gradient of the
    squared distance is that of the Frechet distance."""
    monkeypatch.setattr(matching, "SHRINKAGE", 0.0)
    size = len(objective.aim)
    some = some_points(3, 3000, size)
    mean, found = some.mean(0), torch.cov(some.T)
    objective.moments.mean[0], objective.moments.covariance[0] = mean, found
    monkeypatch.setattr(objective.moments, "add", lambda group, points: None)
    moved = objective._transported(0, some).double()
    scale = objective.covariance.diagonal().mean()
    assert (moved.mean(0) - objective.aim).abs().max() < 1e-3
    assert (torch.cov(moved.T) - objective.covariance).abs().max() < 0.01 * scale

    def frechet(change):
        """Of the samples' Gaussian with another mean and covariance."""
        at, spread = (mean + change[0]).numpy(), (found + change[1] + change[1].T).numpy()
        root = sqrtm(spread @ objective.covariance.numpy()).real
        apart = ((at - objective.aim.numpy()) ** 2).sum()
        return apart + np.trace(spread + objective.covariance.numpy() - 2 * root)

    # The distance of all samples by a step of theirs, x + e (v + M (x - mean)).
    random = generator(1, "step")
    v = torch.randn(size, generator=random, dtype=torch.float64)
    M = torch.randn(size, size, generator=random, dtype=torch.float64) / size
    step = v + (some - mean) @ M.T
    slope = (2 * (some - moved) * step).sum(1).mean()
    e = 1e-4
    ends = [frechet((sign * e * v, sign * e * M @ found)) for sign in (1, -1)]
    assert slope.item() == pytest.approx((ends[0] - ends[1]) / (2 * e), rel=0.02)


def test_a_root_is_scipys():
    matrix = some_points(2, 50).T.cov()
    np.testing.assert_allclose(matrix_power(matrix, 0.5), sqrtm(matrix.numpy()), rtol=1e-6)
    inverse = np.linalg.inv(sqrtm(matrix.numpy()))
    np.testing.assert_allclose(matrix_power(matrix, -0.5), inverse, rtol=1e-5)


@pytest.mark.parametrize("task", ["generate", "inpaint"])
def test_a_sample_is_drawn_as_the_pipeline_draws_it(objective, pipe, task, monkeypatch):
    seen, images = [], {}

    def transported(group, points):
        seen.append(points)
        return 0 * points

    monkeypatch.setattr(objective, "_transported", transported)
    given = batch(pipe, task, 1)
    if task == "inpaint":
        given[3].image.clamp_(-1, 1)
        images = {"image": (given[3].image + 1) / 2, "mask_image": given[3].mask}
    plain, _ = objective(*given)
    drawn = pipe(
        task=task,
        class_label=["b"] * 12,
        latents=given[1],
        num_inference_steps=4,
        output_type="latent",
        **images,
    ).images
    features = objective._classifier.mixed_features(drawn)
    expected = (features - objective.center) / objective.scale
    torch.testing.assert_close(seen[0][:, :-2], expected, rtol=1e-3, atol=1e-3)
    assert seen[0][:, -2:].tolist() == [[0.0, matching.CLASS_WEIGHT]] * 12
    torch.testing.assert_close(plain, expected.square().mean(1), rtol=1e-3, atol=1e-3)


def test_only_the_student_learns_and_only_it_and_the_moments_are_saved(objective, pipe):
    plain, weighted = objective(*batch(pipe, "generate", 0))
    assert (plain > 0).all() and torch.equal(plain, weighted)
    weighted.sum().backward()
    assert all(p.grad is not None for p in objective.unet.parameters() if p.requires_grad)
    assert all(p.grad is None for p in objective._classifier.model.parameters())
    names = {name.partition(".")[0] for name in objective.state_dict()}
    assert names == {"unet", "moments"}


@pytest.fixture(scope="module")
def made(build_pipe, tmp_path_factory):
    """Folders of a model of few steps, and of a classifier, for the shapes."""
    folder = tmp_path_factory.mktemp("matching")
    rows = shapes(8, num_train=60, num_test=20)
    classes = rows["train"].features["label"].names
    pipe = build_pipe(tasks=TASKS, classes=classes)
    few_steps_of(pipe)
    pipe.save_pretrained(folder / "few")
    config = ResNet9Config(width=4, id2label=dict(enumerate(classes)))
    Classifier(ResNet9(config).eval(), tuple(classes), 8).save(folder / "classifier", {})
    return folder


@pytest.fixture
def fields(made):
    fields = {"objective": "matching", "pretrained_model_name_or_path": str(made / "few")}
    return fields | {
        "feature_classifier": str(made / "classifier"),
        "dropout": 0.0,
        "class_dropout": 0.0,
        "tasks": {"generate": 2.0, "inpaint": 1.0},
    }


@pytest.fixture
def third(config, fields):
    return replace(config, **fields, strength_levels=5, reserved_tokens=3)


def test_a_run_ends_in_a_pipeline_of_few_steps(third):
    loop.train(third)
    folder = Path(third.output_dir)
    pipe, checkpoint = MultiTaskPipeline.from_pretrained(folder / "pipeline"), of_checkpoint(folder)
    for model in (pipe, checkpoint.pipeline):
        assert model.chains == CHAINS and type(model.scheduler).__name__ == "EDMEulerScheduler"
        assert model.spec("edit").at_once
    table = json.loads((folder / "validation/step-4.json").read_text())["loss"]
    assert table.keys() == {"generate", "inpaint"} and list(table["generate"]) == ["4 steps"]
    begun = MultiTaskPipeline.from_pretrained(third.pretrained_model_name_or_path)
    moved = [
        not torch.equal(*p)
        for p in zip(*(model.unet.parameters() for model in (pipe, begun)), strict=True)
    ]
    assert sum(moved) > len(moved) / 2


def test_what_can_not_be_matched_is_refused(third, build_pipe, tmp_path):
    with pytest.raises(ConfigError, match=r"has not learned colorize"):
        loop.train(replace(third, tasks={"generate": 1, "colorize": 1}))
    few = MultiTaskPipeline.from_pretrained(third.pretrained_model_name_or_path)
    build_pipe(tasks=TASKS, classes=few.class_names).save_pretrained(tmp_path / "many")
    with pytest.raises(ConfigError, match="draws in many steps; set objective to distillation"):
        loop.train(replace(third, pretrained_model_name_or_path=str(tmp_path / "many")))


def test_killed_and_run_again_is_byte_equal(fields, tmp_path):
    check_killed_and_run_again(tmp_path, [(7, 0)], **fields)


def test_two_processes_share_the_moments(fields, tmp_path):
    found = []
    for processes in (1, 2):
        given = fields | {"max_train_steps": 2, "learning_rate": 1e-9}
        code, run = forked_train(tmp_path / str(processes), *SHORT, **given, processes=processes)
        assert code in (0, [0, 0]), run.text
        found.append(unet_of(run.folder, "moments"))
    for name, value in found[0].items():
        torch.testing.assert_close(found[1][name], value, rtol=1e-3, atol=1e-4)
    assert found[0]["mean"].unique(dim=0).shape[0] > 1  # the groups have begun to differ
