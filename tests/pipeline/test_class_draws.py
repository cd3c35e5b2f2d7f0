"""A sample of generate without a class is one of a class that is drawn as the data has it."""

import json
from copy import deepcopy

import pytest
import torch
from gaussian import keyed
from scipy.stats import chisquare

from mtl_diffusion.pipeline.noise import draw_classes
from mtl_diffusion.pipeline.pipeline import MultiTaskPipeline

FAST = {"num_inference_steps": 1, "output_type": "pt"}


def with_frequencies(pipe, **shares):
    unet = deepcopy(pipe.unet)
    unet.register_to_config(_class_frequencies=shares or None)
    new = MultiTaskPipeline(unet, pipe.tokenizer, pipe.scheduler)
    new.set_progress_bar_config(disable=True)
    return new


@pytest.fixture(scope="module")
def uneven(pipe):
    return with_frequencies(pipe, **{"cat": 6, "ship": 2, "<null>": 2})


def test_classes_are_drawn_as_often_as_they_are_told_from_the_latents():
    latents = torch.randn(2000, 3, 2, 2, generator=keyed(1)[0])
    found = draw_classes(latents, [1, 0, 5, 2, 2])
    counts = torch.bincount(found + 1, minlength=5).tolist()
    assert counts[2] == 0  # the second class
    observed, shares = [counts[0], counts[1], *counts[3:]], [0.2, 0.1, 0.5, 0.2]
    assert chisquare(observed, [2000 * share for share in shares]).pvalue > 1e-3
    order = torch.randperm(2000, generator=keyed(2)[0])
    assert torch.equal(draw_classes(latents[order], [1, 0, 5, 2, 2]), found[order])
    # The class does not go with the noise itself.
    assert latents[found == 0].mean().abs() < 0.05


def test_the_output_names_the_classes_and_each_sample_is_that_of_its_class(uneven):
    drawn = uneven(num_images_per_prompt=40, generator=keyed(1)[0], **FAST)
    assert {*drawn.class_labels} == {"cat", "ship", None}
    numbers = [-1 if name is None else name for name in drawn.class_labels]
    asked = uneven(class_label=numbers, generator=keyed(1)[0], **FAST)
    assert torch.equal(drawn.images, asked.images)
    assert asked.class_labels == drawn.class_labels
    images = uneven(num_images_per_prompt=40, generator=keyed(1)[0], return_dict=False, **FAST)
    assert isinstance(images, tuple) and len(images) == 1


def test_image_i_depends_on_its_seed_and_on_i_alone(uneven):
    many = uneven(class_label=[None] * 6, generator=keyed(6), **FAST)
    for i in range(6):
        alone = uneven(generator=keyed(6)[i], **FAST)
        assert alone.class_labels == many.class_labels[i : i + 1]
        torch.testing.assert_close(alone.images, many.images[i : i + 1])


def test_an_export_of_before_draws_classes_equally_often(pipe):
    assert pipe.class_frequencies == {name: 1 / 3 for name in ("cat", "dog", "ship")}
    drawn = pipe(num_images_per_prompt=60, generator=keyed(1)[0], **FAST).class_labels
    assert min(drawn.count(name) for name in ("cat", "dog", "ship")) > 8 and None not in drawn


def test_the_null_class_is_minus_one_and_not_drawn(pipe):
    null = pipe(class_label=-1, generator=keyed(1)[0], **FAST)
    assert null.class_labels == [None]
    assert not torch.equal(null.images, pipe(generator=keyed(1)[0], **FAST).images)
    mixed = pipe(class_label=[None, -1, "dog"], generator=keyed(3), **FAST).class_labels
    assert mixed[0] is not None and mixed[1:] == [None, "dog"]
    image = torch.rand(1, 3, 8, 8, generator=keyed(1)[0])
    hole = torch.eye(8)[None, None]
    for label in (None, -1):  # what is shown tells the class
        found = pipe("inpaint", label, image, hole, generator=keyed(2)[0], **FAST)
        assert found.class_labels == [None]
    with pytest.raises(ValueError, match="class_label has None in it; task 'edit' needs a class"):
        pipe("edit", class_label=[-1], image=image, **FAST)


def test_a_model_without_classes_draws_as_before(build_pipe):
    pipe = build_pipe(tasks=("generate",), classes=())
    one, other = (pipe(class_label=label, generator=keyed(1)[0], **FAST) for label in (None, -1))
    assert torch.equal(one.images, other.images) and one.class_labels == [None]


def test_frequencies_travel_with_the_weights(uneven, tmp_path):
    uneven.save_pretrained(tmp_path)
    known = json.loads((tmp_path / "unet/config.json").read_text())["_class_frequencies"]
    assert known == {"cat": 6, "ship": 2, "<null>": 2}
    loaded = MultiTaskPipeline.from_pretrained(tmp_path)
    assert loaded.class_frequencies == uneven.class_frequencies
    assert uneven.class_frequencies == {"cat": 0.6, "ship": 0.2, "<null>": 0.2}
