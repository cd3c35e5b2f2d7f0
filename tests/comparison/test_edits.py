"""Methods of editing are compared at scales that other images chose; nothing is drawn twice."""

import json
from dataclasses import replace

import pytest
import torch
from in_process import run_script
from tables import write_images

from mtl_diffusion.classifiers.classifier import Classifier
from mtl_diffusion.classifiers.resnet9 import ResNet9, ResNet9Config
from mtl_diffusion.comparison import edits
from mtl_diffusion.comparison.edits import KINDS, Edits, compare_edits, table
from mtl_diffusion.data.images import ImageDataset
from mtl_diffusion.editing import whole
from mtl_diffusion.evaluation import edit
from mtl_diffusion.evaluation.bulk import evaluations_of
from mtl_diffusion.evaluation.features import FeatureSpace
from mtl_diffusion.evaluation.parts import Context
from mtl_diffusion.evaluation.settings import Settings
from mtl_diffusion.pipeline.chains import default_chains
from mtl_diffusion.pipeline.pipeline import MultiTaskPipeline

TUNED_ON, ROWS = range(2, 14), range(14, 32)


def coloured(labels, darker=0):
    """(N, 3, 8, 8) uint8: noise, and the channel of the label is brighter."""
    images = torch.randint(50, 100, (len(labels), 3, 8, 8), generator=torch.Generator())
    images[torch.arange(len(labels)), labels] += 100
    return (images - darker).to(torch.uint8)


class Brightest:
    """Sees the brightest channel."""

    class_names = ("cat", "dog", "ship")

    def __call__(self, images):
        return images.mean((2, 3))


@pytest.fixture
def given(pipe):
    labels = torch.arange(40) % 3
    images = torch.cat([coloured(labels[:14], darker=40), coloured(labels[14:])])
    data = ImageDataset.of(images, labels, pipe.class_names)
    space = FeatureSpace("means", "abc", {}, lambda images: images.mean((2, 3)))
    settings = Settings(num_strengths=2, num_inference_steps=2, batch_size=10)
    return Context(pipe, Brightest(), space, data, data, settings)


@pytest.fixture
def drawn(monkeypatch):
    """In place of edits: towards the class, noisier the farther the scale is from the best one.

    That is 4 for the dark images, which choose, and 2 for the others. The list has what was drawn.
    """
    calls = []

    def _edited(self, rows, image, class_label, source_class, strength, steps, **way):
        calls.append((way["method"], way["local"], way["guidance"], strength, len(image)))
        far = abs(way["guidance"] - (4 if image.float().mean() < 80 else 2))
        spread = torch.randint(0, 12, image.shape, generator=torch.Generator()) * far
        mixed = image.float().lerp(coloured(class_label).float(), 0.8 * strength)
        return (mixed + spread).clamp(0, 255).to(torch.uint8)

    monkeypatch.setattr(edit.Edit, "_edited", _edited)
    return calls


def test_each_method_has_the_scale_that_is_best_on_the_tuning_images(given, drawn, tmp_path):
    *results, tuning = compare_edits([given, given], TUNED_ON, ROWS, [2, 4, 6], tmp_path)
    assert results[0] == results[1] and results[0].keys() == KINDS.keys() and len(KINDS) == 10
    for name in KINDS:
        by_scale = {s: tuning[f"{name}-{s}"]["class_found_0.9"] for s in (2, 4, 6)}
        assert max(by_scale, key=lambda s: by_scale[s]["ssim_to_source"]) == 4
        entry = results[0][name]["class_found_0.9"]
        assert entry["guidance_scale"] == 4 and entry["n"] == len(ROWS) and entry["reached"]
        assert entry["seconds"] > 0 and by_scale[4]["n"] == len(TUNED_ON)
    assert {call[2] for call in drawn if call[-1] == 8} == {4}  # the second chunk of 18 images
    assert (tmp_path / "compare_edits.png").stat().st_size > 1000
    ssim = results[0]["edit"]["class_found_0.7"]["ssim_to_source"]
    assert f"| 70% | edit | 4 | {ssim:.3f} ± " in table(results[0])


def test_a_scale_that_reaches_the_class_more_often_is_preferred():
    def entries(**ssim):
        shares = {name.replace("of_", "class_found_0."): value for name, value in ssim.items()}
        return {n: {"ssim_to_source": shares[n]} if n in shares else {} for n in edit.FOUND}

    ways = [entries(of_5=0.9, of_7=0.8), entries(of_5=0.3, of_7=0.2, of_9=0.1), entries(of_5=1.0)]
    ways += [entries(of_5=0.4, of_7=0.3, of_9=0.05), entries()]
    assert sorted(ways, key=edits.likeness, reverse=True) == [ways[i] for i in (1, 3, 0, 2, 4)]
    unreached = {name: {"reached": False, "largest_share": 0.4} for name in edit.FOUND}
    shown = table({"sdedit": {n: e | {"guidance_scale": 2} for n, e in unreached.items()}})
    assert "| 90% | sdedit | 2 | at most 40% reach it |" in shown


def test_each_image_is_edited_into_another_class(given):
    part = Edits(given, ROWS, KINDS)
    assert torch.equal(part.sources, given.test.images[14:32])
    assert torch.equal(part.own, given.test.labels[14:32]) and (part.own != part.asked).all()
    assert len(torch.stack([part.own, part.asked]).unique(dim=1).T) == 6


@pytest.mark.parametrize("method", ["whole_edit", "edit", "sdedit", "ddim_inversion", "flowedit"])
def test_weights_of_one_everywhere_are_no_weights(given, method, monkeypatch):
    """And edit is, without weights, the call of the pipeline."""
    labels = ([1, 2, 0], [0, 1, 2])

    @torch.no_grad()
    def edited(local):
        part, way = edit.Edit(given), edit.Way(method, 3.0, local)
        with evaluations_of(given.pipe.unet) as seen:
            images = part._edited(range(3), given.test.images[:3], *labels, 0.7, 4, **way._asdict())
        return images.int(), seen[0]

    (plain, fewer), (local, more) = edited(False), edited(True)
    assert (local - plain).abs().max() > 2 and more == fewer + 3 * 4
    monkeypatch.setattr(whole, "relevance", lambda difference, mask: mask)
    monkeypatch.setattr(
        edit, "local_weights", lambda pipe, image, *_: torch.ones_like(image[:, :1])
    )
    assert (edited(True)[0] - plain).abs().max() <= 1


def test_what_cannot_be_compared_is_refused(given, build_pipe, tmp_path):
    few = MultiTaskPipeline(**given.pipe.components, chains=default_chains(80.0))

    def refused(words, tuned_on=TUNED_ON, rows=ROWS, scales=(2.0,), pipe=given.pipe):
        context = replace(given, pipe=pipe)
        with pytest.raises(ValueError, match=words):
            compare_edits([context], tuned_on, rows, scales, tmp_path)

    refused("tune_images are 2:15, images 14:32; .* none of them in both", range(2, 15))
    refused("images 14:41; give rows up to 40", rows=range(14, 41))
    refused("guidance_scales has nan; give numbers above 0", scales=[2.0, float("nan")])
    refused("pipeline: give one of many steps", pipe=few)
    refused("two classes", pipe=build_pipe(classes=("cat",)))
    assert not list(tmp_path.iterdir())


def test_the_script_writes_a_table_for_each_classifier(pipe, tmp_path, monkeypatch, capsys):
    pipe.save_pretrained(tmp_path / "pipeline")
    names = [f"test/{name}/{i}.png" for name in pipe.class_names for i in "12"]
    data = write_images(tmp_path / "data", *names)
    for name in "ab":
        config = ResNet9Config(width=4, id2label=dict(enumerate(pipe.class_names)))
        Classifier(ResNet9(config), pipe.class_names, 8).save(tmp_path / name, {"accuracy": 0.3})

    def command(*more):
        given = ["--pipeline", tmp_path / "pipeline", "--dataset_name", data, "--classifier"]
        given += [tmp_path / "a", "--classifier", tmp_path / "b", "--guidance_scales", 2]
        given += ["--num_strengths", 1, "--num_inference_steps", 1]
        given += ["--output_dir", tmp_path / "out"]
        return run_script("compare_edits.py", *given, *more, monkeypatch=monkeypatch)

    assert command("--tune_images", "0:2", "--images", "2") == 2
    assert "argument --images: '2' is not FIRST:END" in capsys.readouterr().err
    assert command("--tune_images", "0:2", "--images", "2:6", "--batch_size", 0) == 2
    assert "compare_edits: batch_size is 0: Input should be greater" in capsys.readouterr().err
    assert command("--tune_images", "0:2", "--images", "2:6") == 0
    report = json.loads((tmp_path / "out/compare_edits.json").read_text())
    assert report["n"] == 4 and list(report["results"]) == [str(tmp_path / n) for n in "ab"]
    shown = (tmp_path / "out/compare_edits.md").read_text()
    assert shown in capsys.readouterr().out and shown.count("| 90% | whole_edit_local | 2 |") == 2
