"""A sample of generate without a class is one of a class that is drawn as the data has it."""

import pytest
import torch
from drawing import generator, generators, hole, picture, randn, remade
from scipy.stats import chisquare

from mtl_diffusion.pipeline.noise import draw_classes

FAST = {"num_inference_steps": 1, "output_type": "pt"}


@pytest.fixture(scope="module")
def uneven(pipe):
    return remade(pipe, _class_frequencies={"cat": 6, "ship": 2, "<null>": 2})


def test_classes_are_drawn_as_often_as_they_are_told_from_the_latents():
    latents = randn(2000, 3, 2, 2)
    found = draw_classes(latents, [1, 0, 5, 2, 2])  # the last of no class
    counts = [(found == number).sum().item() for number in (0, 2, 3, -1)]
    assert chisquare(counts, [200, 1000, 400, 400]).pvalue > 1e-3 and (found != 1).all()
    order = torch.randperm(2000, generator=generator(2))
    assert torch.equal(draw_classes(latents[order], [1, 0, 5, 2, 2]), found[order])
    # The class does not go with the noise itself.
    assert latents[found == 0].mean().abs() < 0.05


def test_the_output_names_the_classes_and_each_sample_is_that_of_its_class(uneven):
    assert uneven.class_frequencies == {"cat": 0.6, "ship": 0.2, "<null>": 0.2}
    drawn = uneven(num_images_per_prompt=40, generator=generator(1), **FAST)
    assert {*drawn.class_labels} == {"cat", "ship", None}
    numbers = [-1 if name is None else name for name in drawn.class_labels]
    asked = uneven(class_label=numbers, generator=generator(1), **FAST)
    assert torch.equal(drawn.images, asked.images)
    assert asked.class_labels == drawn.class_labels
    images = uneven(generator=generator(1), return_dict=False, **FAST)
    assert isinstance(images, tuple) and len(images) == 1


def test_an_export_of_before_draws_classes_equally_often(pipe):
    assert pipe.class_frequencies == {name: 1 / 3 for name in ("cat", "dog", "ship")}
    drawn = pipe(num_images_per_prompt=60, generator=generator(1), **FAST).class_labels
    assert min(drawn.count(name) for name in ("cat", "dog", "ship")) > 8 and None not in drawn


def test_the_null_class_is_minus_one_and_not_drawn(pipe):
    null = pipe(class_label=-1, generator=generator(1), **FAST)
    assert null.class_labels == [None]
    assert not torch.equal(null.images, pipe(generator=generator(1), **FAST).images)
    mixed = pipe(class_label=[None, -1, "dog"], generator=generators(3), **FAST).class_labels
    assert mixed[0] is not None and mixed[1:] == [None, "dog"]
    for label in (None, -1):  # what is shown tells the class
        found = pipe("inpaint", label, picture(), hole(), **FAST)
        assert found.class_labels == [None]
    with pytest.raises(ValueError, match="class_label has None in it; task 'edit' needs a class"):
        pipe("edit", class_label=[-1], image=picture(), **FAST)


def test_a_model_without_classes_draws_as_before(build_pipe):
    pipe = build_pipe(tasks=("generate",), classes=())
    one, other = (pipe(class_label=label, generator=generator(1), **FAST) for label in (None, -1))
    assert torch.equal(one.images, other.images) and one.class_labels == [None]
