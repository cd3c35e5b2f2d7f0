"""Whole edits of a model of many steps, and pairs of them."""

import math
from itertools import pairwise

import pytest
import torch
from drawing import SIZE, as_tensor, picture
from gaussian import keyed

from mtl_diffusion.editing import pairs, whole
from mtl_diffusion.editing.whole import LOWEST, class_difference, relevance, whole_edit
from mtl_diffusion.evaluation.bulk import evaluations_of
from mtl_diffusion.pipeline.chains import default_chains
from mtl_diffusion.pipeline.degradation import low_pass
from mtl_diffusion.pipeline.denoiser import CLASS, Denoiser, build_conditioning
from mtl_diffusion.pipeline.edit import STRONGEST
from mtl_diffusion.pipeline.pipeline import TASKS, MultiTaskPipeline

KNOWN = torch.stack([2 * as_tensor(picture(seed)) - 1 for seed in range(3)])
ONES = torch.ones(3, 1, SIZE, SIZE)
LABEL, SOURCE = torch.tensor([1, 2, 0]), torch.tensor([0, 1, -1])
STRENGTH = torch.tensor([0.3, 0.6, 0.9])


def edit(pipe, rows=slice(None), seed=3, **options):
    given = (KNOWN, ONES, LABEL, SOURCE, STRENGTH)
    image, mask, label, source, strength = (part[rows] for part in given)
    given = {"mask": mask, "label": label, "source_label": source, "strength": strength} | options
    return whole_edit(pipe, image=image, generator=keyed(1, seed)[0], **given)


def euler(D, x, levels):
    """The ODE in many small steps of Euler's method, in double precision."""
    for now, then in pairwise(levels):
        x = x + (then - now) * (x - D(x.float(), float(now)).double()) / now
    return x


@torch.no_grad()
def test_it_is_up_the_flow_of_the_source_and_down_the_guided_one(pipe, monkeypatch):
    """Beside Euler's method in 200 steps, all of it from the parts of the denoiser."""
    rows, noise = slice(1, 2), torch.randn(1, 3, SIZE, SIZE, generator=keyed(1, 3)[0])
    task = TASKS["generate"]

    def denoiser(task, hint, label):
        given = build_conditioning(hint, task, torch.tensor([label]), pipe.vocabulary)
        return Denoiser.of(pipe.unet, pipe.scheduler, given)

    hint = TASKS["edit"].condition(KNOWN[rows], ONES[rows], STRENGTH[rows], noise)
    base = denoiser(TASKS["edit"], hint, SOURCE[1])
    hint = task.condition(noise, ONES[rows], None, noise)
    toward, away = denoiser(task, hint, LABEL[1]), denoiser(task, hint, -1)
    start = TASKS["edit"].start(STRENGTH[1]).item()
    up = torch.logspace(math.log10(LOWEST), math.log10(start), 201, dtype=torch.float64)
    x = euler(base, KNOWN[rows].double(), up)

    def guided(x, sigma):
        return base(x, sigma) + 2.0 * (toward(x, sigma) - away(x, sigma))

    low = torch.logspace(math.log10(start), -3, 201, dtype=torch.float64)
    expected = euler(guided, x, torch.cat([low, torch.zeros(1, dtype=torch.float64)]))
    monkeypatch.setattr(whole, "relevance", lambda difference, mask: 1.0)
    few, many = (
        edit(pipe, rows, steps=n, inversion_steps=n, guidance_scale=2.0) - expected.clamp(-1, 1)
        for n in (6, 60)
    )
    assert many.abs().mean() < 0.02 * expected.std() and many.abs().mean() < few.abs().mean()


def test_guidance_is_off_at_0_where_the_source_comes_back_and_continuous_at_1(pipe):
    back = edit(pipe, guidance_scale=0.0, steps=64, inversion_steps=64)
    assert (back - KNOWN).abs().mean() < 0.02 < (edit(pipe) - KNOWN).abs().mean()
    at_1, near, at_2 = (edit(pipe, guidance_scale=scale) for scale in (1.0, 1.001, 2.0))
    assert 0 < (at_1 - near).abs().mean() < 0.01 * (at_1 - at_2).abs().mean()


def test_known_pixels_come_back_and_strength_0_is_the_source(pipe):
    mask = ONES.clone()
    mask[:, :, :4] = 0
    edited = edit(pipe, mask=mask)
    assert torch.equal(edited[:, :, :4], KNOWN[:, :, :4])
    assert (edited[:, :, 4:] != KNOWN[:, :, 4:]).any() and edited.abs().max() <= 1
    assert torch.equal(edit(pipe, strength=torch.zeros(3)), KNOWN)
    assert torch.equal(edit(pipe, label=SOURCE), KNOWN)
    with evaluations_of(pipe.unet) as seen:
        strongest = edit(pipe, strength=torch.full((3,), STRONGEST))
    assert seen == [3 * (8 + 4 + 3 * 12)]
    # Nothing is asked of strengths that are random.
    assert torch.equal(edit(pipe, strength=torch.ones(3)), strongest)


def test_a_model_that_cannot_do_it_is_refused(pipe, build_pipe):
    with pytest.raises(ValueError, match=r"has learned edit and generate; it knows edit$"):
        edit(build_pipe(tasks=("edit",)))
    few = MultiTaskPipeline(**pipe.components, chains=default_chains(80.0))
    with pytest.raises(ValueError, match="in few steps"):
        edit(few)


# --- where the class makes a difference -----------------------------------------------------------


@torch.no_grad()
def test_the_difference_is_that_of_two_answers_squared_and_smoothed(pipe):
    task = TASKS["generate"]
    hint = task.condition(KNOWN, ONES, None, KNOWN)
    toward = build_conditioning(hint, task, LABEL, pipe.vocabulary)
    away = toward.without(CLASS, pipe.vocabulary.null)
    with evaluations_of(pipe.unet) as seen:
        found = class_difference(pipe, KNOWN, toward, away, keyed(1, 3)[0])
    assert seen == [2 * 2 * 3]
    random, expected = keyed(1, 3)[0], 0
    for _ in range(2):
        noisy = KNOWN + torch.randn(KNOWN.shape, generator=random)
        one, other = (
            Denoiser.of(pipe.unet, pipe.scheduler, given)(noisy, 1.0) for given in (toward, away)
        )
        expected = expected + (one - other).square().sum(1, keepdim=True) / 2
    expected = low_pass(expected, torch.full((3,), 0.05 * SIZE))
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-5)


def test_relevance_is_1_where_the_difference_is_its_mean_over_the_painted_pixels():
    difference = torch.tensor([[2.0, 6, 4, 100], [0, 0, 0, 5]]).view(2, 1, 2, 2)
    painted = torch.tensor([1.0, 1.0, 1.0, 0.0]).view(1, 1, 2, 2).expand(2, 1, 2, 2)
    found = relevance(difference, painted)
    assert found[0].flatten().tolist() == pytest.approx([4 / 6, 12 / 10, 1, 200 / 104])
    # Where the class makes no difference at all, nothing is divided by zero.
    assert found[1].flatten().tolist() == [0, 0, 0, 2]


# --- pairs ----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def drawn(pipe):
    images = torch.randint(0, 256, (60, 3, SIZE, SIZE), generator=keyed(1)[0], dtype=torch.uint8)
    labels = torch.arange(60) % 4 - 1
    return pairs.draw_pairs(pipe, images, labels, keyed(1, 2)[0])


def test_pairs_ask_for_another_class_and_keep_what_is_not_painted(drawn):
    assert len(drawn) == 60 and drawn.edit.dtype == torch.uint8
    assert (drawn.label != drawn.source_label).all() and {*drawn.label.tolist()} == {0, 1, 2}
    weak = (drawn.strength < pairs.WEAKEST).float().mean()
    assert 0 < weak < 0.3 and drawn.strength.min() > 0 and drawn.strength.max() <= STRONGEST
    regions = (drawn.mask == 0).flatten(1).any(1)
    assert 0.05 < regions.float().mean() < 0.5
    kept = (drawn.mask == 0).expand_as(drawn.source)
    assert torch.equal(drawn.edit[kept], drawn.source[kept])
    assert not torch.equal(drawn.edit, drawn.source)


def test_samples_of_pairs_are_mirrored_whole_and_keyed(drawn):
    one, same, other = (drawn.draw(400, keyed(1, seed)[0]) for seed in (1, 1, 2))
    assert all(map(torch.equal, vars(one).values(), vars(same).values()))
    assert not torch.equal(one.source, other.source)
    own = one.label == one.source_label
    assert 5 < own.sum() < 60 and torch.equal(one.edit[own], one.source[own])
    table = {drawn.source[i].numpy().tobytes(): i for i in range(len(drawn))}
    plain = [table.get(source.numpy().tobytes()) for source in one.source]
    assert 100 < sum(i is None for i in plain) < 300
    for k, i in enumerate(plain):
        axes = [-1] if i is None else []
        i = table[one.source[k].flip(axes).numpy().tobytes()]
        assert torch.equal(one.mask[k], drawn.mask[i].flip(axes))
        assert own[k] or torch.equal(one.edit[k], drawn.edit[i].flip(axes))
