"""The second stage: a student learns to arrive in one step where its teacher does in several."""

import json
from dataclasses import replace
from pathlib import Path
from shutil import rmtree

import pytest
import torch
from forked import SHORT
from forked import train as forked_train
from gaussian import Gaussian, correlated
from kills import check_killed_and_run_again
from tiny import unet_of

from mtl_diffusion import loop
from mtl_diffusion.classifiers.classifier import Classifier
from mtl_diffusion.classifiers.resnet9 import ResNet9, ResNet9Config
from mtl_diffusion.config import ConfigError
from mtl_diffusion.data.shapes import shapes
from mtl_diffusion.editing.ode import ode_end
from mtl_diffusion.pipeline import denoiser
from mtl_diffusion.pipeline.chains import default_chains
from mtl_diffusion.pipeline.denoiser import CLASS, Conditioning, Denoiser, Guidance
from mtl_diffusion.pipeline.pipeline import TASKS, MultiTaskPipeline
from mtl_diffusion.publishing.export import of_checkpoint
from mtl_diffusion.tools.rng import generator
from mtl_diffusion.training import teaching
from mtl_diffusion.training.distillation import Distillation, draw_level
from mtl_diffusion.training.losses import Plain

CHAINS = default_chains(80.0)


def each(gaussian, x, sigma):
    """D of samples that have noise levels of their own."""
    return torch.cat([gaussian(a[None], float(s)) for a, s in zip(x, sigma, strict=True)])


# --- what the student learns ----------------------------------------------------------------------


@pytest.fixture(scope="module")
def classifier():
    """One that knows nothing, for images of 8 pixels."""
    config = ResNet9Config(width=4, id2label={0: "a", 1: "b"})
    return Classifier(ResNet9(config).eval().requires_grad_(False), ("a", "b"), 8)


@pytest.fixture
def objective(build_pipe):
    pipe = build_pipe()
    tasks = [TASKS[name] for name in ("generate", "inpaint", "edit")]
    return Distillation(
        pipe.unet,
        pipe.scheduler,
        Plain(),
        build_pipe().unet,
        tasks,
        pipe.vocabulary.null,
        CHAINS,
        teacher_steps=60,
    )


def inputs(objective, n=7):
    random = generator(0, "inputs")
    tokens = torch.rand(n, 3, objective.unet.config.encoder_hid_dim, generator=random)
    image, known, noise = torch.randn(3, n, 3, 8, 8, generator=random)
    mask = (torch.rand(n, 1, 8, 8, generator=random) < 0.5).float()
    task = torch.arange(n) % 3
    return image, noise, objective.starts.view(n, 1, 1, 1), Conditioning(known, mask, tokens), task


def test_an_euler_step_to_the_target_arrives_where_the_flow_does(objective, monkeypatch):
    """With the exact denoiser of a Gaussian in place of the teacher."""
    gaussian, null = Gaussian(0.1, correlated(0.5, 192), (3, 8, 8)), objective.null
    seen = {True: [], False: []}  # with a class, and without one: noise levels of each call

    def exact_denoiser(unet, scheduler, x, sigma, conditioning):
        assert unet is not objective.unet and len(conditioning) == len(x)
        without = conditioning.tokens[:, CLASS, null] == 1
        for has_class, rows in ((True, ~without), (False, without)):
            seen[has_class].append(sigma[rows])
        D = each(gaussian, x, sigma)
        zero = scheduler.precondition_outputs(x, 0 * x, sigma)
        return (D - zero) / scheduler.precondition_outputs(0 * sigma, 1 + 0 * sigma, sigma)

    monkeypatch.setattr(denoiser, "predict", exact_denoiser)
    image, noise, sigma, conditioning, task = inputs(objective)
    D, rest = objective.target(image, noise, sigma, conditioning, task)
    jumps = (task != objective.whole).nonzero()[:, 0]
    x = image + sigma * noise
    torch.testing.assert_close((D + sigma * rest)[jumps], x[jumps])
    ends = objective.ends.view_as(sigma)
    arrived = ends / sigma * x + (1 - ends / sigma) * D
    for i in jumps:
        exact = gaussian.flowed(x[i].flatten()[None], float(sigma[i]), float(ends[i]))
        torch.testing.assert_close(
            arrived[i].flatten()[None].double(), exact, rtol=0, atol=0.02 + 0.002 * float(ends[i])
        )
    # 60 steps of one call each. The second branch is of generate alone, where it is guided, at
    # sigma 0.28 to 2.9.
    assert [len(sigma) for sigma in seen[True]] == [5] * 60
    for given, without in zip(seen[True], seen[False], strict=True):
        generate = given[task[jumps] == 0].flatten()
        assert ((generate >= 0.28) & (generate <= 2.9)).sum() == len(without)
    assert 10 < sum(map(len, seen[False])) < 3 * 60


def test_each_sample_is_taught_with_the_guidance_of_its_task(objective):
    objective.teacher_steps = 2
    image, noise, sigma, conditioning, task = inputs(objective)
    D, _ = objective.target(image, noise, sigma, conditioning, task)
    ends = objective.ends.view_as(sigma)
    for i in (task != objective.whole).nonzero()[:, 0].tolist():
        own = TASKS[("generate", "inpaint")[task[i]]]
        network = objective._teacher[0], objective.scheduler
        guidance = Guidance.of(*network, conditioning[[i]], objective.null)
        scale = own.default_guidance_scale, 1.0, own.default_guidance_interval
        x, level, end = image[[i]] + sigma[[i]] * noise[[i]], sigma[[i]], ends[[i]]
        with torch.no_grad():
            arrived = ode_end(
                lambda x, s, g=guidance, c=scale: g.denoiser(*c)(x, s.item()), x, level, end, 2
            )
        expected = (arrived - end / level * x) / (1 - end / level)
        torch.testing.assert_close(D[[i]], expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("with_classifier", [False, True])
def test_an_edit_is_learned_whole_from_noise_alone(objective, with_classifier, classifier):
    """The loss is that of the edit itself, and its distance in the features of a classifier."""
    image, noise, sigma, conditioning, _ = inputs(objective)
    sigma, task = torch.full_like(sigma, 80.0), torch.full((7,), objective.whole)
    objective._classifier = (classifier if with_classifier else None,)
    plain, weighted = objective(image, noise, sigma, conditioning, task)
    x, mask = sigma * noise, conditioning.mask
    with torch.no_grad():
        D = Denoiser.of(objective.unet, objective.scheduler, conditioning)(x, 80.0)
    c_out = 80 * 0.5 / (80**2 + 0.25) ** 0.5
    area = mask.mean((1, 2, 3)).clamp_min(1 / 16)
    expected = (((D - image) / c_out).square() * mask).mean((1, 2, 3)) / area
    if with_classifier:
        shown = torch.where(mask > 0, D, conditioning.image)
        features = classifier.features(shown), classifier.features(image)
        expected = expected + 0.4 * (1 - torch.cosine_similarity(*features, dim=1))
    torch.testing.assert_close(plain, expected, rtol=1e-3, atol=1e-4)
    weighted.sum().backward()
    assert all(p.grad is not None for p in objective.unet.parameters() if p.requires_grad)
    assert not any(p.requires_grad for p in classifier.model.parameters())


def test_the_loss_is_the_error_in_the_hole_and_only_the_student_learns(objective):
    objective.teacher_steps = 1
    image, noise, sigma, conditioning, task = inputs(objective)
    plain, weighted = objective(image, noise, sigma, conditioning, task)
    D, rest = objective.target(image, noise, sigma, conditioning, task)
    everything = replace(conditioning, mask=0 * conditioning.mask)
    none, _ = objective(image, noise, sigma, everything, task)
    assert plain.shape == (7,) and (plain > 0).all() and (none == 0).all()
    weighted.sum().backward()
    assert all(p.grad is not None for p in objective.unet.parameters() if p.requires_grad)
    names = [name for name, _ in objective.named_parameters()]
    assert names and all(name.startswith("unet.") for name in names)
    assert not any("teacher" in name for name in objective.state_dict())
    assert not D.requires_grad and not rest.requires_grad


def test_levels_come_equally_often_and_by_the_key():
    levels, task = torch.tensor([8.0, 4.0, 1.0]), torch.arange(30) % 3

    def draw(seed):
        return draw_level(task, levels, 2, generator(seed, "level"))

    found = draw(0)
    assert found.shape == (30, 1, 1, 1) and (found[task == 2] == 8).all()
    counts = [(found[task != 2] == level).sum().item() for level in levels]
    assert sorted(counts) == [6, 7, 7]
    assert torch.equal(found, draw(0)) and not torch.equal(found, draw(1))


# --- runs -----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def teacher(build_pipe, tmp_path_factory):
    """A folder with a pipeline that knows the classes of the shapes, and three tasks."""
    folder = tmp_path_factory.mktemp("teacher")
    classes = shapes(8, num_train=5, num_test=5)["train"].features["label"].names
    build_pipe(tasks=("generate", "inpaint", "edit"), classes=classes).save_pretrained(folder)
    return str(folder)


@pytest.fixture
def second(config, teacher):
    return replace(
        config,
        objective="distillation",
        teacher_steps=1,
        edit_pairs=20,
        pretrained_model_name_or_path=teacher,
        strength_levels=5,  # the teacher's, as all that describes the network
        reserved_tokens=3,
    )


def test_a_run_ends_in_a_pipeline_of_few_steps(second):
    loop.train(replace(second, learning_rate=1e-9, use_ema=False))
    folder = Path(second.output_dir)
    pipe = MultiTaskPipeline.from_pretrained(folder / "pipeline")
    assert pipe.chains == CHAINS and type(pipe.scheduler).__name__ == "EDMEulerScheduler"
    # It started from the teacher.
    start = MultiTaskPipeline.from_pretrained(second.pretrained_model_name_or_path)
    for name, weight in start.unet.state_dict().items():
        torch.testing.assert_close(pipe.unet.state_dict()[name], weight)
    table = json.loads((folder / "validation/step-4.json").read_text())["loss"]
    assert table.keys() == {"generate", "inpaint", "edit"}
    levels = list(table["generate"])
    assert levels[:3] == ["80 to 0", "40 to 0.8", "0.8 to 0"] and len(levels) == 7
    assert list(table["edit"]) == ["80 to 0"] and table["edit"]["80 to 0"] > 0
    assert table["generate"]["0.8 to 0"] > 0
    # A step of generate at 80 is not guided, and there the student is still its teacher.
    assert table["generate"]["80 to 0"] == pytest.approx(0, abs=1e-9)
    checkpoint = of_checkpoint(folder).pipeline
    assert checkpoint.chains == CHAINS
    assert type(checkpoint.scheduler).__name__ == "EDMEulerScheduler"
    assert checkpoint.spec("edit").at_once and pipe.spec("edit").at_once
    assert pipe.class_frequencies == checkpoint.class_frequencies
    # It can't be a teacher itself, but it can go on learning from one.
    again = replace(
        second,
        pretrained_model_name_or_path=str(folder / "pipeline"),
        output_dir=f"{folder}-again",
    )
    with pytest.raises(ConfigError, match="is a model of few steps itself"):
        loop.train(again)
    loop.train(replace(again, teacher_model_name_or_path=second.pretrained_model_name_or_path))


def test_pairs_are_drawn_once_by_the_teacher_of_the_run(second, steps_only, monkeypatch, capsys):
    loop.train(replace(second, max_train_steps=2))
    files = list(Path(second.output_dir, "edit_pairs").iterdir())
    written = [file.stat().st_mtime_ns for file in files]
    monkeypatch.setattr("mtl_diffusion.training.teaching.draw_pairs", None)  # it is not called
    loop.train(replace(second, max_train_steps=2))
    assert len(files) == 1 and written == [file.stat().st_mtime_ns for file in files]
    with pytest.raises(ConfigError, match=r"was drawn with .*give another output_dir"):
        folder = Path(second.output_dir)
        rmtree(folder / "checkpoints")
        loop.train(replace(second, seed=1))


def test_a_run_in_minutes_draws_no_pairs_to_learn_its_rate(second, steps_only, monkeypatch):
    drawn = []
    own = teaching.draw_pairs

    def noted(*arguments):
        drawn.append(Path(second.output_dir, "length.json").exists())
        return own(*arguments)

    monkeypatch.setattr(teaching, "draw_pairs", noted)
    monkeypatch.setattr(loop, "REHEARSAL", (1, 2))
    loop.train(replace(second, max_train_steps=None, max_train_minutes=0.01))
    assert drawn and all(drawn)


def test_what_the_teacher_has_not_learned_is_refused(second):
    with pytest.raises(ConfigError, match=r"tasks: .* has not learned colorize"):
        loop.train(replace(second, tasks={"generate": 1, "colorize": 1}))


def test_killed_and_run_again_is_byte_equal(teacher, tmp_path):
    check_killed_and_run_again(tmp_path, [(7, 0)], **few_steps_of(teacher))


def few_steps_of(teacher):
    return {
        "objective": "distillation",
        "pretrained_model_name_or_path": teacher,
        "teacher_steps": 2,
        "edit_pairs": 16,
        "dropout": 0.0,  # as in the teacher
    }


def test_two_processes_equal_one(teacher, tmp_path):
    arguments = few_steps_of(teacher) | {"max_train_steps": 3}
    one = forked_train(tmp_path / "one", *SHORT, **arguments)[1]
    code, two = forked_train(tmp_path / "two", *SHORT, **arguments, processes=2)
    assert code == [0, 0], two.text
    before, after = unet_of(one.folder), unet_of(two.folder)
    for name, weight in before.items():
        torch.testing.assert_close(after[name], weight, rtol=1e-3, atol=1e-4)


def test_another_teacher_does_not_continue_a_run(second, build_pipe, monkeypatch, steps_only):
    second = replace(second, lr_scheduler="constant")
    loop.train(replace(second, max_train_steps=2))
    monkeypatch.setattr("mtl_diffusion.training.distillation.weights_digest", lambda module: "else")
    with pytest.raises(ConfigError, match="a teacher of the fingerprint"):
        loop.train(second)
