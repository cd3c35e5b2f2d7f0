"""What the scorecard makes of images whose quality is known."""

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from diffusers import EDMEulerScheduler

from mtl_diffusion.data.images import ImageDataset, condition_of
from mtl_diffusion.evaluation.bulk import Drawn, evaluations_of
from mtl_diffusion.evaluation.edit import Edit, Way, pairs
from mtl_diffusion.evaluation.evaluate import context, parts_for
from mtl_diffusion.evaluation.features import FeatureSpace
from mtl_diffusion.evaluation.generate import Generate, memorisation
from mtl_diffusion.evaluation.inpaint import Inpaint
from mtl_diffusion.evaluation.parts import Context, mean
from mtl_diffusion.evaluation.settings import Settings
from mtl_diffusion.evaluation.translate import Translate
from mtl_diffusion.pipeline.chains import default_chains
from mtl_diffusion.pipeline.format import ImageFormat
from mtl_diffusion.pipeline.pipeline import TASKS, MultiTaskPipeline

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
def given():
    def embed(images):
        return torch.cat([images.mean((2, 3)), images.std((2, 3))], 1)

    return Context(
        pipe=SimpleNamespace(
            class_names=NAMES,
            tasks=("inpaint", "edit"),
            translations=("from_map",),
            chains=None,
            format=ImageFormat.square(16),
            device=torch.device("cpu"),
            default_steps=lambda task: 18,
            spec=TASKS.get,
            default_guidance=lambda task: 3.0,
        ),
        classifier=FakeClassifier(),
        space=FeatureSpace("moments", "abc", {}, embed),
        train=dataset(90),
        test=dataset(60, seed=1),
        settings=Settings(edit_images=36, num_images=30),
    )


def changed(context, **settings):
    """The context with some other settings."""
    return replace(context, settings=context.settings.model_copy(update=settings))


def edited(given, images, tmp_path):
    """The figures of edit with these images (N, 3, H, W) uint8 at every strength."""
    part = Edit(given)
    drawn = {f"edit-{s:g}": Drawn(images(part), 20.0) for s in part.strengths}
    return part.score(drawn, tmp_path)["edit"]


def test_an_editor_that_does_nothing_and_one_that_ignores_its_source(given, tmp_path):
    found = edited(given, lambda part: part.sources, tmp_path)
    entry = found["strength_0.7"]
    assert entry["n"] == 3 * 2 * 4 and entry["control"]["n"] == 3 * 4
    assert entry["class_accuracy"] == 0 and entry["source_class_kept"] == 1
    assert entry["ssim_to_source"] == pytest.approx(1, abs=1e-5)
    assert entry["psnr_to_source"] == pytest.approx(54.15, abs=0.01)
    assert entry["feature_distance"] == pytest.approx(0, abs=1e-6)
    assert entry["control"]["class_accuracy"] == 1 and entry["evaluations"] == 20
    assert found["class_found_0.5"]["reached"] is False

    found = edited(given, lambda part: colours(part.asked, seed=9), tmp_path)
    entry, equal = found["strength_0.7"], found["class_found_0.5"]
    assert entry["class_accuracy"] == 1 and entry["source_class_kept"] == 0
    assert entry["ssim_to_source"] < 0.3 and entry["psnr_to_source"] < 15
    # Half of the way from the source, which strength 0 gives, to the weakest edit.
    assert equal["strength"] == pytest.approx(0.05) and equal["guidance_scale"] == 3
    assert equal["ssim_to_source"] == pytest.approx((1 + entry["ssim_to_source"]) / 2, abs=1e-3)


def test_pairs_are_all_ordered_ones_and_more_edits_begin_with_the_same(given):
    sources, own, asked = pairs(given)
    found = torch.stack([own, asked], 1).unique(dim=0, return_counts=True)
    assert len(found[0]) == 9 and (found[1] == 4).all()
    assert given.seen(sources)[1].tolist() == own.tolist()
    assert len(sources.flatten(1).unique(dim=0)) == len(sources)
    assert (own != asked)[:6].all()  # an edit into another class comes first
    few = pairs(changed(given, edit_images=10))
    for ours, theirs in zip((sources, own, asked), few, strict=True):
        assert torch.equal(ours[:10], theirs)


def test_a_perfect_inpainter_and_one_that_paints_the_negative(given, tmp_path):
    part = Inpaint(given)

    def figures(answer):
        images = {k: torch.where(mask > 0, answer, part.images) for k, mask in part.masks.items()}
        drawn = {f"inpaint-{kind}": Drawn(image, 18.0) for kind, image in images.items()}
        return part.score(drawn, tmp_path)["center"]

    found, worse = figures(part.images), figures(255 - part.images)
    assert found["psnr_in_hole"] == pytest.approx(54.15, abs=0.01) and found["evaluations"] == 18
    assert found["ssim_in_hole"] == pytest.approx(1, abs=1e-5)
    assert found["same_class"] == 1 and abs(found["frechet_distance"]) < 1e-6
    assert worse["psnr_in_hole"] < 15 and worse["frechet_distance"] > 0.001


def test_samples_that_are_the_data_are_at_the_floor_and_noise_is_not(given, tmp_path):
    """And copies of the training images are noticed."""
    part = Generate(changed(given, step_counts=[18]))
    random = torch.Generator().manual_seed(0)
    noise = torch.randint(0, 256, (30, 3, 16, 16), generator=random).to(torch.uint8)
    images = {
        "null_class_steps_18": noise,
        "without_a_class_guidance_3_interval_0.28_2.9_steps_18": dataset(30, seed=7).images,
        "by_class_steps_18": given.test.images[:30],
        "by_class_guidance_3_interval_0.28_2.9_steps_18": given.train.images[:30],
    }
    drawn = {name: Drawn(values, 18.0) for name, values in images.items()}
    for split in ("train", "test"):
        job = given.reference(split)
        drawn[job.name] = Drawn(job.draw(range(len(job)), **job.same, **job.each), 0.0)
    found = part.score(drawn, tmp_path)
    far, fresh, again, copied = (found[name] for name in images)
    for name in ("frechet_distance_to_train", "precision", "recall"):
        assert again[name] == found["floor"][name]
    assert far["frechet_distance_to_train"] > 10 * fresh["frechet_distance_to_train"]
    assert far["precision"] == 0 and far["recall"] == 0
    assert copied["class_accuracy"] == 1 and "class_accuracy" not in fresh
    assert found["memorisation"]["nearest_distance_ratio"] < 0.01
    assert found["memorisation"]["nearer_than_held_out_1_percent"] == 1
    train, test = (drawn[f"features-{split}"].values for split in ("train", "test"))
    honest = memorisation(given.space.features(dataset(30, seed=7).images), train, test)
    assert 0.7 < honest["nearest_distance_ratio"] < 1.4
    assert (tmp_path / "quality_against_evaluations.png").exists()


def costs(part):
    """Name -> evaluations for one image, of each job."""
    cost = {}
    for job in part.samplings:
        with evaluations_of(part.context.pipe.unet) as seen:
            job.draw(range(3), **job.same, **job.of(range(3)))
        cost[job.name] = seen[0] / 3
    return cost


def test_the_samplings_of_generate_and_what_they_cost(given, pipe):
    six = changed(given, num_inference_steps=6, step_counts=[3])
    # Karras's six noise levels are 80, 24, 5.8, 0.97, 0.083 and 0.002: by default one is guided.
    assert costs(Generate(replace(six, pipe=pipe))) == {
        "null_class_steps_6": 6,
        "without_a_class_guidance_2_interval_0.28_2.9_steps_6": 7,
        "by_class_steps_6": 6,
        "by_class_guidance_2_interval_0.28_2.9_steps_6": 7,
        "by_class_steps_3": 3,
    }


def test_mean_has_its_standard_error():
    found = mean("x", torch.tensor([1.0, 2.0, 3.0, 6.0]))
    assert found["x"] == 3 and found["x_standard_error"] == pytest.approx((14 / 3 / 4) ** 0.5)


def test_other_classes_are_refused(given):
    other = ImageDataset.of(colours(torch.zeros(4).long()), torch.zeros(4).long(), ("cat",))
    with pytest.raises(ValueError, match=r"dataset_name has the classes cat; .*red, green, blue"):
        context(given.pipe, FakeClassifier(), given.space, other, other, Settings())


def test_a_model_without_edit_has_no_edit_part():
    def pipe(*tasks, classes=NAMES, translations=()):
        return SimpleNamespace(tasks=tasks, class_names=classes, translations=translations)

    assert parts_for(pipe("generate", "inpaint")) == ["generate", "inpaint"]
    assert parts_for(pipe("edit")) == ["edit"]
    assert parts_for(pipe("edit", classes=("one",))) == []
    assert parts_for(pipe("from_map", translations=("from_map",))) == ["translate"]


def test_answers_are_compared_with_the_true_images_of_their_conditions(given, tmp_path):
    layer = 255 - given.test.images
    test = replace(given.test, layers={condition_of("from_map"): layer})
    part = Translate(replace(given, test=test))
    (job,) = part.jobs()
    assert torch.equal(job.each["image"], layer) and job.same["task"] == "from_map"

    def figures(answers):
        return part.score({job.name: Drawn(answers, 18.0)}, tmp_path)["from_map"]

    right, wrong = (figures(images[: part.count]) for images in (test.images, layer))
    assert right["psnr"] == pytest.approx(54.15, abs=0.01) and right["ssim"] == pytest.approx(1)
    assert right["feature_distance"] == pytest.approx(0, abs=1e-6) and right["n"] == part.count
    assert wrong["psnr"] < 10 and (tmp_path / "from_map.png").exists()


def test_a_model_of_few_steps_has_its_own_steps_and_no_other_solver(given, build_pipe):
    pipe = build_pipe(classes=NAMES)
    pipe = MultiTaskPipeline(pipe.unet, pipe.tokenizer, EDMEulerScheduler(), default_chains(80.0))
    pipe.set_progress_bar_config(disable=True)
    inputs = (pipe, FakeClassifier(), given.space, given.train, given.test)
    few = context(*inputs, Settings(num_images=12))
    assert parts_for(pipe) == ["generate", "inpaint", "edit"]
    parts = (Generate, Inpaint, Edit)
    assert [part(few).steps(part.task) for part in parts] == [4, 2, 4]
    assert costs(Generate(few)) == {
        "null_class_steps_4": 4,
        "without_a_class_steps_4": 4,
        "by_class_steps_4": 4,
        "by_class_steps_1": 1,
        "by_class_steps_2": 2,
    }
    assert Edit(few).ways == {"edit": Way("edit", 1)}
    assert not few.has_baselines
