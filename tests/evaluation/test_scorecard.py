"""What the scorecard makes of images whose quality is known."""

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from diffusers import EDMEulerScheduler

from mtl_diffusion.data.images import ImageDataset
from mtl_diffusion.evaluation.bulk import Drawn, evaluations_of
from mtl_diffusion.evaluation.edit import Edit, compare, edit_scores, pairs
from mtl_diffusion.evaluation.equal_class import FOUND
from mtl_diffusion.evaluation.evaluate import (
    _others,
    context,
    of_model,
    parts_for,
    write_scorecard,
)
from mtl_diffusion.evaluation.features import FeatureSpace
from mtl_diffusion.evaluation.generate import Generate, distances, floor, memorisation
from mtl_diffusion.evaluation.inpaint import Inpaint, completion_scores
from mtl_diffusion.evaluation.parts import Context, Seen, mean
from mtl_diffusion.evaluation.settings import Settings
from mtl_diffusion.pipeline.chains import default_chains
from mtl_diffusion.pipeline.pipeline import MultiTaskPipeline

NAMES = ("red", "green", "blue")


def colours(labels, seed=0, size=16):
    """(N, 3, H, W) uint8: noise, and the channel of the label is brighter."""
    random = torch.Generator().manual_seed(seed)
    images = torch.randint(0, 100, (len(labels), 3, size, size), generator=random)
    images[torch.arange(len(labels)), labels] += 150
    return images.to(torch.uint8)


class FakeClassifier:
    """Sees the brightest channel; its classes are in another order than the pipeline's."""

    class_names = ("blue", "red", "green")

    def __call__(self, images):
        return images.mean((2, 3))[:, [2, 0, 1]]


def dataset(n, seed=0):
    labels = torch.arange(n) % 3
    return ImageDataset.of(colours(labels, seed), labels, NAMES)


@pytest.fixture
def given(tmp_path):
    def embed(images):
        return torch.cat([images.mean((2, 3)), images.std((2, 3))], 1)

    return Context(
        pipe=SimpleNamespace(
            class_names=NAMES,
            chains=None,
            device=torch.device("cpu"),
            default_guidance=lambda task: 3.0,
            default_guidance_interval=lambda task: (0.28, 2.9),
        ),
        classifier=FakeClassifier(),
        space=FeatureSpace("moments", "abc", {}, embed),
        train=dataset(90),
        test=dataset(60, seed=1),
        settings=Settings(edit_images=4, num_images=30, num_inference_steps=18),
        cache=tmp_path,
    )


def test_the_classifiers_order_of_classes_is_not_the_pipelines(given):
    assert given.classes_of(given.test.images).tolist() == given.test.labels.tolist()


def scores_of(given, sources, edited, own, asked):
    seen = Seen.of(given, sources)
    return edit_scores(compare(given, sources, seen, edited, own, asked), own != asked)


def test_the_identity_editor_is_faithful_and_reaches_nothing(given):
    sources, own, asked = pairs(given)
    found = scores_of(given, sources, sources, own, asked)
    assert found["n"] == 3 * 2 * 4 and found["control"]["n"] == 3 * 4
    assert found["class_accuracy"] == 0 and found["source_class_kept"] == 1
    assert found["ssim_to_source"] == pytest.approx(1, abs=1e-5)
    assert found["low_frequency_error"] == 0
    assert found["feature_distance"] == pytest.approx(0, abs=1e-6)
    assert found["control"]["class_accuracy"] == 1


def test_an_editor_that_ignores_its_source_reaches_the_class_and_keeps_nothing(given):
    sources, own, asked = pairs(given)
    found = scores_of(given, sources, colours(asked, seed=9), own, asked)
    assert found["class_accuracy"] == 1 and found["source_class_kept"] == 0
    assert found["ssim_to_source"] < 0.3 and found["low_frequency_error"] > 0.2


def drawn_by(part, knees):
    """Edits that fade to the class that was asked for; each method at another rate."""
    target = colours(part.asked, seed=9).float()
    table = {}
    for method, knee in knees.items():
        random = torch.rand(len(part.own), generator=torch.Generator().manual_seed(len(method)))
        for strength in part.strengths:
            share = (strength / random).clamp(max=1) ** knee
            mixed = torch.lerp(part.sources.float(), target, share[:, None, None, None])
            images = mixed.round().to(torch.uint8)
            table[f"{method}-{strength:g}"] = Drawn(images, 20 * strength, 1.0)
    return table


def test_further_strengths_change_no_ranking(given, tmp_path):
    """Nor any figure that the methods are compared by."""
    knees = {"edit": 1.0, "edit_source_class": 1.2, "edit_in_class_mask": 1.3}
    knees |= {"sdedit_guidance_3": 2.0, "sdedit_guidance_7": 1.7}
    knees |= {"ddim_inversion_guidance_3": 0.7, "ddim_inversion_guidance_7": 0.9}
    knees |= {"flowedit_guidance_3": 1.4, "flowedit_guidance_7": 1.2}
    given.pipe.tasks = ("generate", "edit")
    found, rankings = [], []
    for i, further in enumerate(([], [0.05, 0.33, 0.47, 0.72, 0.95])):
        settings = replace(given.settings, strengths=further)
        part = Edit(replace(given, settings=settings))
        assert [method.name for method in part.methods] == list(knees)
        folder = tmp_path / str(i)
        folder.mkdir()
        results = part.score(drawn_by(part, knees), folder)
        assert {f"strength_{s:g}" for s in [*part.ladder, *further]} <= results["edit"].keys()
        found.append({m: [results[m][share] for share in FOUND] for m in knees})
        rankings.append(sorted(knees, key=lambda m: -found[-1][m][1]["ssim_to_source"]))
    assert all(entry["reached"] for entries in found[0].values() for entry in entries)
    assert found[0] == found[1] and rankings[0] == rankings[1]


def test_a_baseline_is_compared_at_the_guidance_that_serves_it_best(given, tmp_path):
    """At each share on its own; edit has its default alone."""
    given.pipe.tasks = ("generate", "edit")
    scales = [1.5, 4.0]
    settings = replace(given.settings, baseline_guidance_scales=scales)
    part = Edit(replace(given, settings=settings))
    names = {m: [f"{m}_guidance_1.5", f"{m}_guidance_4"] for m in ("sdedit", "flowedit")}
    names["ddim_inversion"] = ["ddim_inversion_guidance_1.5", "ddim_inversion_guidance_4"]
    knees = {"edit": 1.0, "edit_source_class": 1.2, "edit_in_class_mask": 1.3} | {
        n: 0.5 + len(n) % 7 for pair in names.values() for n in pair
    }
    results = part.score(drawn_by(part, knees), tmp_path)
    for method, pair in names.items():
        for share in FOUND:
            both = [results[name][share] for name in pair]
            assert [entry["guidance_scale"] for entry in both] == scales
            assert results[method][share] == max(both, key=lambda e: e["ssim_to_source"])
    assert results["edit"]["class_found_0.5"]["guidance_scale"] == part.methods[0].guidance


def test_pairs_are_all_ordered_ones_and_each_source_is_of_its_class(given):
    sources, own, asked = pairs(given)
    found = torch.stack([own, asked], 1).unique(dim=0, return_counts=True)
    assert len(found[0]) == 9 and (found[1] == 4).all()
    assert given.classes_of(sources).tolist() == own.tolist()


def test_a_perfect_inpainter(given):
    images = given.test.images
    mask = torch.zeros(60, 1, 16, 16)
    mask[..., 4:12, 4:12] = 1
    found = completion_scores(given, images, Seen.of(given, images), images, mask)
    assert found["psnr_in_hole"] == pytest.approx(54.15, abs=0.01)
    assert found["ssim_in_hole"] == pytest.approx(1, abs=1e-5)
    assert found["same_class"] == 1 and abs(found["frechet_distance"]) < 1e-6
    spoilt = torch.where(mask > 0, 255 - images, images)
    worse = completion_scores(given, images, Seen.of(given, images), spoilt, mask)
    assert worse["psnr_in_hole"] < 15 and worse["frechet_distance"] > 0.001


def test_samples_that_are_the_data_are_at_the_floor_and_noise_is_not(given):
    train, test = (given.space.features(d.images) for d in (given.train, given.test))
    real = floor(train, test, 1000)
    assert real["n"] == 60
    again = distances(test, train, test)
    assert again["frechet_distance_to_train"] == pytest.approx(real["frechet_distance_to_train"])
    assert again["frechet_distance_to_test"] == pytest.approx(0, abs=1e-6)
    noise = torch.randint(0, 256, (60, 3, 16, 16), generator=torch.Generator().manual_seed(0))
    far = distances(given.space.features(noise.to(torch.uint8)), train, test)
    assert far["frechet_distance_to_train"] > 10 * real["frechet_distance_to_train"]
    assert far["kernel_distance_to_train"] > 5 * far["kernel_distance_to_train_subset_deviation"]
    assert far["precision"] == 0 and far["recall"] == 0


def test_copies_of_the_training_images_are_found_out(given, tmp_path):
    train, test = given.features_of("train"), given.features_of("test")
    copied, honest = (
        memorisation(given, images, given.space.features(images), train, test, tmp_path)
        for images in (given.train.images[:30], dataset(30, seed=7).images)
    )
    assert copied["nearest_distance_ratio"] < 0.01 < 0.7 < honest["nearest_distance_ratio"] < 1.4
    assert copied["nearer_than_held_out_1_percent"] == 1
    assert (tmp_path / "nearest_training_images.png").exists()


def test_the_samplings_of_generate_and_what_they_cost(given, pipe):
    settings = replace(
        given.settings, num_inference_steps=6, step_counts=[3], guidance_interval=(0.05, 6)
    )
    part = Generate(replace(given, pipe=pipe, settings=settings))
    cost = {}
    for job in part.jobs():
        with evaluations_of(pipe.unet) as seen:
            job.draw(range(3))
        cost[job.name.removeprefix("generate-")] = seen[0] / 3
    # Karras's six noise levels are 80, 24, 5.8, 0.97, 0.083 and 0.002: by default one is guided.
    assert cost == {
        "unconditional_steps_6": 6,
        "by_class_steps_3": 3,
        "by_class_steps_6": 6,
        "by_class_guidance_2_interval_0.28_2.9_steps_6": 7,
        "by_class_guidance_2_interval_0.05_6_steps_6": 9,
    }
    for once in (None, (0.28, 2.9)):
        settings = replace(settings, guidance_interval=once)
        without = Generate(replace(given, pipe=pipe, settings=settings))
        assert [job.name for job in without.jobs()] == [job.name for job in part.jobs()][:-1]


def test_mean_has_its_standard_error():
    found = mean("x", torch.tensor([1.0, 2.0, 3.0, 6.0]))
    assert found["x"] == 3 and found["x_standard_error"] == pytest.approx((14 / 3 / 4) ** 0.5)


def test_other_classes_are_refused(given):
    other = ImageDataset.of(colours(torch.zeros(4).long()), torch.zeros(4).long(), ("cat",))
    with pytest.raises(ValueError, match=r"dataset_name has the classes cat; .*red, green, blue"):
        context(given.pipe, FakeClassifier(), given.space, other, other, Settings(), given.cache)


def test_a_model_without_edit_has_no_edit_part():
    def pipe(*tasks, classes=NAMES):
        return SimpleNamespace(tasks=tasks, class_names=classes, chains=None)

    assert parts_for(pipe("generate", "inpaint")) == ["generate", "likelihood", "inpaint"]
    assert parts_for(pipe("edit")) == ["edit"]
    assert parts_for(pipe("edit", classes=("one",))) == []


@pytest.mark.parametrize(
    "change",
    [
        {"num_images": 3},
        {"strengths": [1.5]},
        {"step_counts": []},
        {"baseline_guidance_scales": [-1.0]},
        {"guidance_interval": (2.0, 1.0)},
        {"guidance_interval": (float("nan"), 1.0)},
    ],
)
def test_settings_out_of_range_are_refused(change):
    with pytest.raises(ValueError, match=next(iter(change))):
        Settings(**change)


@pytest.fixture
def few(given, build_pipe):
    """The inputs for a model of few steps."""
    pipe = build_pipe(classes=NAMES)
    pipe = MultiTaskPipeline(pipe.unet, pipe.tokenizer, EDMEulerScheduler(), default_chains(80.0))
    pipe.set_progress_bar_config(disable=True)
    return replace(given, pipe=pipe, settings=of_model(Settings(num_images=12), pipe))


def test_a_model_of_few_steps_has_its_own_steps_and_no_other_solver(few):
    assert parts_for(few.pipe) == ["generate", "inpaint", "edit"]
    assert [part(few).steps for part in (Generate, Inpaint, Edit)] == [4, 2, 4]
    fixed = replace(few, settings=of_model(Settings(num_inference_steps=1), few.pipe))
    assert [part(fixed).steps for part in (Generate, Inpaint, Edit)] == [1, 1, 1]
    part, cost = Generate(few), {}
    for job in part.jobs():
        with evaluations_of(few.pipe.unet) as seen:
            job.draw(range(3))
        cost[job.name.removeprefix("generate-")] = seen[0] / 3
    assert cost == {
        "unconditional_steps_4": 4,
        "by_class_steps_1": 1,
        "by_class_steps_2": 2,
        "by_class_steps_4": 4,
    }
    methods = [(m.name, m.guidance) for m in Edit(few).methods]
    assert methods == [("edit", 1.0), ("edit_in_class_mask", 1.0)]


def test_figures_of_another_n_or_space_are_not_drawn_beside(given, tmp_path):
    about = {"pipeline": "p", "generate": {}, "settings": {"num_images": 30}}
    for n, space in ((31, "abc"), (30, "abd")):
        about |= {"settings": {"num_images": n}, "feature_space": {"weights": space}}
        (tmp_path / "metrics.json").write_text(json.dumps(about))
        data = SimpleNamespace(pipeline="q")
        pipe = SimpleNamespace(tasks=(), class_names=NAMES, chains=None)
        with pytest.raises(ValueError, match="can't be compared"):
            write_scorecard(
                replace(given, pipe=pipe), [], tmp_path, data, "", [tmp_path / "metrics.json"]
            )


@pytest.mark.parametrize("name", ["mtl-cifar10", "mtl-cifar10-fewstep"])
def test_published_figures_can_be_drawn_beside_those_of_another_model(given, name):
    path = Path(__file__).parents[2] / "pretrained" / name / "metrics.json"
    metrics = json.loads(path.read_text())
    space = replace(given.space, digest=metrics["feature_space"]["weights"])
    settings = replace(given.settings, num_images=metrics["generate"]["floor"]["n"])
    found = _others([path], replace(given, space=space, settings=settings))
    assert found == {f"pretrained/{name}": metrics["generate"]}
