"""The second stage: a student learns to arrive in one step where its teacher does in several."""

import json
from dataclasses import replace
from pathlib import Path
from shutil import rmtree

import pytest
import torch
from forked import SHORT, check_killed_and_run_again
from forked import train as forked_train
from gaussian import Gaussian, correlated
from tiny import unet_of

from mtl_diffusion import loop
from mtl_diffusion.classifiers.classifier import Classifier
from mtl_diffusion.classifiers.resnet9 import ResNet9, ResNet9Config
from mtl_diffusion.config import ConfigError
from mtl_diffusion.data.shapes import shapes
from mtl_diffusion.editing.ode import ode_end
from mtl_diffusion.pipeline import denoiser
from mtl_diffusion.pipeline.chains import default_chains
from mtl_diffusion.pipeline.denoiser import Conditioning, Denoiser, guided
from mtl_diffusion.pipeline.pipeline import TASKS, MultiTaskPipeline
from mtl_diffusion.publishing.export import of_checkpoint
from mtl_diffusion.tools.rng import generator
from mtl_diffusion.training import teaching
from mtl_diffusion.training.distillation import Distillation, draw_level

CHAINS = default_chains(80.0)


@pytest.fixture(scope="module")
def classifier():
    """One that knows nothing, for images of 8 pixels."""
    config = ResNet9Config(width=4, id2label={0: "a", 1: "b"})
    return Classifier(ResNet9(config).eval().requires_grad_(False), ("a", "b"), 8)


@pytest.fixture
def objective(build_pipe):
    return objective_of(build_pipe, teacher_steps=60)


def objective_of(build_pipe, **more):
    pipe = build_pipe()
    tasks = [TASKS[name] for name in ("generate", "inpaint", "edit")]
    return Distillation(pipe.unet, pipe.scheduler, None, build_pipe(), tasks, CHAINS, **more)


def inputs(objective, n=7):
    random = generator(0, "inputs")
    tokens = torch.rand(n, 3, objective.unet.config.encoder_hid_dim, generator=random)
    image, known, noise = torch.randn(3, n, 3, 8, 8, generator=random)
    mask = (torch.rand(n, 1, 8, 8, generator=random) < 0.5).float()
    task = torch.arange(n) % 3
    return image, noise, objective.starts.view(n, 1, 1, 1), Conditioning(known, mask, tokens), task


def test_an_euler_step_to_the_target_arrives_where_the_flow_does(objective, monkeypatch):
    """With the exact denoiser of a Gaussian in place of the teacher."""
    gaussian = Gaussian(0.1, correlated(0.5, 192), (3, 8, 8))

    def exact(unet, scheduler, x, sigma, conditioning):
        """The F of its D, of samples that have noise levels of their own."""
        assert unet is objective._teacher.unet and len(conditioning) == len(x)
        D = torch.cat([gaussian(a[None], float(s)) for a, s in zip(x, sigma, strict=True)])
        zero = scheduler.precondition_outputs(x, 0 * x, sigma)
        return (D - zero) / scheduler.precondition_outputs(0 * sigma, 1 + 0 * sigma, sigma)

    monkeypatch.setattr(denoiser, "predict", exact)
    image, noise, sigma, conditioning, task = inputs(objective)
    D, rest = objective.target(image, noise, sigma, conditioning, task)
    jumps = (task != objective.whole).nonzero()[:, 0]
    x, ends = image + sigma * noise, objective.ends.view_as(sigma)
    torch.testing.assert_close((D + sigma * rest)[jumps], x[jumps])
    arrived = ends / sigma * x + (1 - ends / sigma) * D
    for i in jumps:
        flowed = gaussian.flowed(x[i].flatten()[None], float(sigma[i]), float(ends[i]))
        found, most = arrived[i].flatten()[None].double(), 0.02 + 0.002 * float(ends[i])
        torch.testing.assert_close(found, flowed, rtol=0, atol=most)


@pytest.mark.parametrize("interval", [None, (0.5, 1000.0)])
def test_each_sample_is_taught_with_the_guidance_of_its_task(build_pipe, interval):
    objective = objective_of(build_pipe, teacher_steps=2, interval=interval)
    image, noise, sigma, conditioning, task = inputs(objective)
    D, _ = objective.target(image, noise, sigma, conditioning, task)
    ends = objective.ends.view_as(sigma)
    for i in (task != objective.whole).nonzero()[:, 0].tolist():
        own = TASKS[("generate", "inpaint")[task[i]]]
        teacher = objective._teacher
        network, null = (teacher.unet, teacher.scheduler), teacher.vocabulary.null
        scales = own.default_guidance_scale, 1.0, interval or own.default_guidance_interval
        D_own = guided(*network, conditioning[[i]], null, *scales)
        x, level, end = image[[i]] + sigma[[i]] * noise[[i]], sigma[[i]], ends[[i]]
        with torch.no_grad():
            arrived = ode_end(lambda x, s, D=D_own: D(x, s.item()), x, level, end, 2)
        expected = (arrived - end / level * x) / (1 - end / level)
        torch.testing.assert_close(D[[i]], expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("with_classifier", [False, True])
def test_an_edit_is_learned_whole_from_noise_alone(objective, with_classifier, classifier):
    """The loss is that of the edit itself, and its distance in the features of a classifier."""
    image, noise, sigma, conditioning, _ = inputs(objective)
    sigma, task = torch.full_like(sigma, 80.0), torch.full((7,), objective.whole)
    objective._classifier = classifier if with_classifier else None
    plain, weighted = objective(image, noise, sigma, conditioning, task)
    x, mask = sigma * noise, conditioning.mask
    with torch.no_grad():
        D = Denoiser.of(objective.unet, objective.scheduler, conditioning)(x, 80.0)
    c_out = 80 * 0.5 / (80**2 + 0.25) ** 0.5
    area = mask.mean((1, 2, 3)).clamp_min(1 / 16)
    expected = (((D - image) / c_out).square() * mask).mean((1, 2, 3)) / area
    if with_classifier:
        shown = (torch.where(mask > 0, x, conditioning.image) for x in (D, image))
        found = map(classifier.features, shown)
        expected = expected + 0.4 * (1 - torch.cosine_similarity(*found, dim=1))
    torch.testing.assert_close(plain, expected, rtol=1e-3, atol=1e-4)
    assert torch.equal(weighted, plain)  # without a weighting
    # Only the student learns, and only it is saved.
    weighted.sum().backward()
    assert all(p.grad is not None for p in objective.unet.parameters() if p.requires_grad)
    assert all(p.grad is None for p in objective._teacher.unet.parameters())
    assert all(p.grad is None for p in classifier.model.parameters())
    names = [*dict(objective.named_parameters()), *objective.state_dict()]
    assert all(name.startswith("unet.") for name in names)


def test_each_task_agrees_with_its_teacher_in_features(objective, classifier):
    """Where a task paints: elsewhere both have the known pixels."""
    given = inputs(objective)
    sigma, conditioning = given[2:4]
    without, _ = objective(*given)
    objective._classifier = classifier
    found = objective(*given)[0] - without
    target, rest = objective.target(*given)
    denoise = Denoiser.of(objective.unet, objective.scheduler, conditioning)
    with torch.no_grad():
        D = denoise(target + sigma * rest, sigma)
    shown = (torch.where(conditioning.mask > 0, x, conditioning.image) for x in (D, target))
    expected = 1 - torch.cosine_similarity(*map(classifier.features, shown), dim=1)
    torch.testing.assert_close(found, 0.4 * expected, rtol=1e-3, atol=1e-5)
    assert (expected > 1e-4).all()


def test_levels_come_equally_often_and_by_the_key():
    levels, task = torch.tensor([8.0, 4.0, 1.0]), torch.arange(30) % 3

    def draw(seed):
        return draw_level(task, levels, 2, generator(seed, "level"))

    found = draw(0)
    assert found.shape == (30, 1, 1, 1) and (found[task == 2] == 8).all()
    counts = [(found[task != 2] == level).sum().item() for level in levels]
    assert sorted(counts) == [6, 7, 7]
    assert torch.equal(found, draw(0)) and not torch.equal(found, draw(1))


@pytest.fixture(scope="module")
def teacher(build_pipe, tmp_path_factory):
    """A folder with a pipeline that knows the classes of the shapes, and three tasks."""
    folder = tmp_path_factory.mktemp("teacher")
    classes = shapes(8, num_train=5, num_test=5)["train"].features["label"].names
    build_pipe(tasks=("generate", "inpaint", "edit"), classes=classes).save_pretrained(folder)
    return str(folder)


def few_at_once():
    """A file has 16 pairs, in place of 256: all pairs of a file are drawn."""
    teaching.CHUNK = 16


@pytest.fixture
def fields(teacher):
    """Fields of a run of the second stage."""
    fields = {"objective": "distillation", "pretrained_model_name_or_path": teacher}
    return fields | {"teacher_steps": 1, "edit_pairs": 16}


@pytest.fixture
def second(config, fields, monkeypatch):
    monkeypatch.setattr(teaching, "CHUNK", 16)
    # What describes the network is the teacher's.
    return replace(config, **fields, strength_levels=5, reserved_tokens=3)


def test_a_run_ends_in_a_pipeline_of_few_steps(second):
    loop.train(replace(second, learning_rate=1e-9, use_ema=False))
    folder = Path(second.output_dir)
    pipe, checkpoint = MultiTaskPipeline.from_pretrained(folder / "pipeline"), of_checkpoint(folder)
    for model in (pipe, checkpoint.pipeline):
        assert model.chains == CHAINS and type(model.scheduler).__name__ == "EDMEulerScheduler"
        assert model.spec("edit").at_once
    assert pipe.class_frequencies == checkpoint.pipeline.class_frequencies
    table = json.loads((folder / "validation/step-4.json").read_text())["loss"]
    assert table.keys() == {"generate", "inpaint", "edit"} and len(table["generate"]) == 7
    assert list(table["edit"]) == ["80 to 0"] and table["edit"]["80 to 0"] > 0
    # It started as its teacher, which is not guided in a step of generate at 80.
    assert table["generate"]["80 to 0"] == pytest.approx(0, abs=1e-9)
    assert table["generate"]["0.8 to 0"] > 0
    # It can't be a teacher itself, but it can go on learning from one.
    few = {"pretrained_model_name_or_path": str(folder / "pipeline")}
    again = replace(second, **few, output_dir=f"{folder}-again")
    with pytest.raises(ConfigError, match="is a model of few steps itself"):
        loop.train(again)
    loop.train(replace(again, teacher_model_name_or_path=second.pretrained_model_name_or_path))


def test_pairs_are_drawn_once_by_the_teacher_of_the_run(second, steps_only, monkeypatch):
    """Not to learn the rate of a run in minutes; and another teacher or seed has other ones."""
    drawn, own, folder = [], teaching.draw_pairs, Path(second.output_dir)

    def noted(*arguments):
        drawn.append((folder / "length.json").exists())
        return own(*arguments)

    monkeypatch.setattr(teaching, "draw_pairs", noted)
    monkeypatch.setattr(loop, "REHEARSAL", (1, 2))
    minutes = replace(second, max_train_steps=None, max_train_minutes=0.01, lr_scheduler="constant")
    loop.train(minutes)
    (file,) = (folder / "edit_pairs").rglob("*.safetensors")
    written = file.stat().st_mtime_ns
    assert drawn and all(drawn)
    monkeypatch.setattr(teaching, "draw_pairs", None)  # it is not called
    loop.train(minutes)
    assert written == file.stat().st_mtime_ns
    with monkeypatch.context() as patch:
        patch.setattr("mtl_diffusion.training.distillation.weights_digest", lambda module: "else")
        with pytest.raises(ConfigError, match="a teacher of the fingerprint"):
            loop.train(minutes)
    rmtree(folder / "checkpoints")
    with pytest.raises(TypeError, match="not callable"):  # it is
        loop.train(replace(minutes, seed=1))


def test_what_the_teacher_has_not_learned_is_refused(second):
    with pytest.raises(ConfigError, match=r"tasks: .* has not learned colorize"):
        loop.train(replace(second, tasks={"generate": 1, "colorize": 1}))


def test_killed_and_run_again_is_byte_equal(fields, tmp_path):
    check_killed_and_run_again(tmp_path, [(7, 0)], few_at_once, **fields, dropout=0.0)


def test_two_processes_equal_one(fields, tmp_path):
    fields, weights = fields | {"dropout": 0.0, "max_train_steps": 3, "edit_pairs": 32}, []
    for processes in (1, 2):
        faults = (*SHORT, few_at_once)
        code, run = forked_train(tmp_path / str(processes), *faults, **fields, processes=processes)
        assert code in (0, [0, 0]), run.text
        weights.append(unet_of(run.folder))
    for name, weight in weights[0].items():
        # AdamW turns the rounding of a gradient near 0 into a step. Token tables have such ones, at
        # tokens that are rare in three steps: a few of their numbers may differ by more.
        table = name in ("encoder_hid_proj.weight", "class_embedding.linear_1.weight")
        bound = {"rtol": 1e-3, "atol": 5e-4 if table else 1e-4}
        torch.testing.assert_close(weights[1][name], weight, **bound)
        assert (weights[1][name] - weight).square().mean().sqrt() < 5e-5, name
