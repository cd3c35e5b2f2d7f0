"""Which sample gets which task, and that training tells the denoiser what sampling tells it."""

from dataclasses import replace
from fractions import Fraction

import pytest
import torch
from PIL import Image

from mtl_diffusion.data.images import MASK
from mtl_diffusion.data.loader import Batch
from mtl_diffusion.editing.pairs import EditPairs
from mtl_diffusion.pipeline import denoiser
from mtl_diffusion.pipeline.denoiser import CLASS, STRENGTH, TASK, Conditioning
from mtl_diffusion.pipeline.format import ImageFormat
from mtl_diffusion.pipeline.masks import draw_masks
from mtl_diffusion.pipeline.noise import own_generators
from mtl_diffusion.pipeline.pipeline import TASKS
from mtl_diffusion.tools.tensors import to_unit_range
from mtl_diffusion.training.mixture import Draw, Mixture, assign_tasks

CPU = torch.device("cpu")
CLASSES = ("disc", "square", "ring")
SIZE = 8


@pytest.fixture(scope="module")
def pipe(build_pipe):
    return build_pipe(classes=CLASSES)


@pytest.fixture(scope="module")
def vocabulary(pipe):
    return pipe.vocabulary


def mixture(vocabulary, class_dropout=0.1, task_dropout=0.1, **shares):
    shares = shares or {name: 1 / len(TASKS) for name in TASKS}
    return Mixture(
        tasks=tuple(TASKS[name] for name in shares),
        proportions=tuple(shares.values()),
        vocabulary=vocabulary,
        images=ImageFormat.square(SIZE),
        class_dropout=class_dropout,
        task_dropout=task_dropout,
    )


def sources(n):
    pixels = torch.randint(0, 256, (n, 3, SIZE, SIZE), dtype=torch.uint8)
    return to_unit_range(pixels), torch.randint(-1, len(CLASSES), (n,))


def parts_of(conditioning):
    return conditioning.image, conditioning.mask, conditioning.tokens


def within(count, n, p):
    """Four standard deviations of a binomial."""
    return abs(count - n * p) < 4 * (n * p * (1 - p)) ** 0.5


@pytest.mark.parametrize("first", [0, 30_000_000])
def test_it_is_the_golden_ratio_sequence_in_whole_numbers(first):
    """floor(k phi) by integer arithmetic, on a ratio of Fibonacci numbers that is as good here."""
    golden = Fraction(12586269025, 20365011074)  # F(50) / F(51)
    place = [k * golden % 1 for k in range(first, first + 2000)]
    expected = [0 if p < Fraction(1, 2) else 1 if p < Fraction(3, 4) else 2 for p in place]
    assert assign_tasks((2, 1, 1), first, 2000).tolist() == expected


def test_each_sample_has_the_conditioning_of_its_task_and_its_place(vocabulary):
    mix = mixture(vocabulary, class_dropout=0, task_dropout=0)
    images, labels = sources(100)
    draw = mix.draw(0, 0, 100, CPU)
    target, found = mix.condition(Batch(images, labels), draw)
    kinds = [mix.tasks[i].name for i in draw.task]
    assert torch.equal(target, images) and set(kinds) == set(TASKS)
    assert mix.counts(draw.task).tolist() == [kinds.count(task.name) for task in mix.tasks]
    words = found.tokens.argmax(-1)
    assert words[:, TASK].tolist() == [vocabulary.tasks[kind] for kind in kinds]
    assert torch.equal(words[:, CLASS], vocabulary.class_ids(labels))
    has_strength = words[:, STRENGTH] != vocabulary.null
    assert has_strength.tolist() == [kind in ("edit", "colorize") for kind in kinds]
    full = found.mask.mean((1, 2, 3)) == 1
    everything = ("generate", "colorize", "upscale")
    assert all(full[i] for i, kind in enumerate(kinds) if kind in everything)
    inpainted = torch.tensor([kind == "inpaint" for kind in kinds])
    known = (found.mask[:, 0] == 0) & inpainted[:, None, None]
    assert not full[inpainted].any() and known.any()
    assert torch.equal(found.image.movedim(1, -1)[known], images.movedim(1, -1)[known])


@pytest.mark.parametrize("rows", [slice(3, 4), slice(6, 13), slice(2, 2)])
def test_any_cut_of_a_batch_is_a_slice_of_the_whole_bit_for_bit(vocabulary, rows):
    mix = mixture(vocabulary, class_dropout=0.3, task_dropout=0.3)
    images, labels = sources(13)
    for step in range(5):
        draw = mix.draw(0, step, 13, CPU)
        _, whole = mix.condition(Batch(images, labels), draw)
        _, part = mix.condition(Batch(images[rows], labels[rows]), draw[rows])
        for ours, theirs in zip(parts_of(part), parts_of(whole[rows]), strict=True):
            assert torch.equal(ours, theirs)


@pytest.mark.parametrize(("class_dropout", "task_dropout"), [(0.3, 0.05), (0.0, 0.0)])
def test_tokens_are_dropped_as_often_as_they_should_be(vocabulary, class_dropout, task_dropout):
    mix, n = mixture(vocabulary, class_dropout, task_dropout), 8000
    draw = mix.draw(0, 0, n, CPU)
    images, labels = torch.zeros(n, 3, SIZE, SIZE), torch.zeros(n, dtype=torch.int64)
    tokens = mix.condition(Batch(images, labels), draw)[1].tokens
    places = (TASK, CLASS, STRENGTH)
    no_task, no_class, no_strength = (tokens[:, place, vocabulary.null] == 1 for place in places)
    for index, task in enumerate(mix.tasks):
        rows = draw.task == index
        for dropped, p in (
            (no_class, class_dropout),
            (no_task, task_dropout),
            (no_class & no_task, class_dropout * task_dropout),
        ):
            found, size = int(dropped[rows].sum()), int(rows.sum())
            assert within(found, size, p) or found == p == 0, task.name
        hidden = draw.drop_image[rows]
        if task.name == "edit":  # its strength is hidden with its source
            assert torch.equal(no_strength[rows], hidden) and hidden.any() == (class_dropout > 0)
        else:
            assert not hidden.any(), task.name


def test_inpaint_takes_holes_from_the_dataset(vocabulary):
    """For a share of its samples, unless they would be no holes; the other tasks never."""
    plain, n = mixture(vocabulary), 400
    mix = replace(plain, dataset_holes=0.5)
    images, labels = sources(n)
    region = torch.zeros(n, 1, SIZE, SIZE, dtype=torch.uint8)
    region[: n // 2, :, 1, 1] = 1  # the others are empty
    draw = mix.draw(0, 0, n, CPU)
    found = mix.condition(Batch(images, labels, {MASK: region}), draw)[1].mask
    usual = plain.condition(Batch(images, labels), plain.draw(0, 0, n, CPU))[1].mask
    taken = (found != usual).any((1, 2, 3))
    inpainted = draw.task == list(TASKS).index("inpaint")
    assert torch.equal(found[taken], region[taken].float())
    assert torch.equal(taken, inpainted & draw.from_data & (torch.arange(n) < n // 2))
    assert within(int(draw.from_data.sum()), n, 0.5)


def test_edit_may_learn_from_pairs(vocabulary):
    """Of a pair the source is shown as it is, with the class that is asked for, and the edit is
    what the sample is to become."""
    plain = mixture(vocabulary, class_dropout=0.3, task_dropout=0)
    pixels = torch.randint(0, 256, (2, 20, 3, SIZE, SIZE), dtype=torch.uint8)
    labels = torch.arange(20) % 3
    mask = torch.ones(20, 1, SIZE, SIZE, dtype=torch.uint8)
    mask[:10, :, :4] = 0
    strength = torch.linspace(0.3, 0.9, 20)
    pairs = EditPairs(*pixels, mask, labels, (labels + 1) % 3, strength)
    images, own = sources(400)
    mix = replace(plain, pairs=pairs)
    draw, same = mix.draw(0, 3, 400, CPU), plain.draw(0, 3, 400, CPU)
    target, found = mix.condition(Batch(images, own), draw)
    target_of_images, expected = plain.condition(Batch(images, own), same)
    edits = draw.task == list(TASKS).index("edit")
    assert torch.equal(target_of_images, images) and torch.equal(target[~edits], images[~edits])
    for ours, theirs in zip(parts_of(found), parts_of(expected), strict=True):
        assert torch.equal(ours[~edits], theirs[~edits])  # all else is drawn alike
    drawn = draw.pairs[edits]
    assert torch.equal(target[edits], to_unit_range(drawn.edit))
    assert torch.equal(found.image[edits], to_unit_range(drawn.source))
    assert torch.equal(found.mask[edits], drawn.mask.float())
    words = found.tokens[edits].argmax(-1)
    assert torch.equal(words[:, CLASS], vocabulary.class_ids(drawn.label))  # never without a class
    assert not (words[:, STRENGTH] == vocabulary.null).any()
    own_class = drawn.label == drawn.source_label  # which gives the source back
    assert 0 < own_class.sum() < 25 and torch.equal(drawn.edit[own_class], drawn.source[own_class])


@pytest.mark.parametrize("name", TASKS)
def test_training_and_sampling_tell_the_denoiser_the_same(name, pipe, vocabulary, monkeypatch):
    n, task = 6, TASKS[name]
    takes = task.required | task.optional
    pixels = torch.randint(0, 256, (n, 3, SIZE, SIZE), dtype=torch.uint8)
    labels = torch.tensor([0, 1, 2, 2, 1, 0])
    mask = torch.ones(n, 1, SIZE, SIZE)
    strength = torch.full((n,), float("nan"))
    arguments = {"class_label": labels.tolist()}
    if "image" in takes:
        arguments["image"] = [Image.fromarray(p) for p in pixels.movedim(1, -1).numpy()]
    if "mask_image" in takes:
        arguments["mask_image"] = mask = draw_masks(n, (SIZE, SIZE), torch.Generator())
    if "strength" in takes:
        strength = torch.tensor([0.0, 0.1, 0.37, 0.5, 0.9, 1.0])
        arguments["strength"] = strength.tolist()

    captured = []

    def predict(unet, scheduler, noisy, sigma, conditioning):
        captured.append(conditioning)
        return torch.zeros_like(noisy)

    monkeypatch.setattr(denoiser, "predict", predict)
    random = torch.Generator().manual_seed(7)
    pipe(name, generator=random, num_inference_steps=2, guidance_scale=1.0, **arguments)

    latents = torch.randn(n, 3, SIZE, SIZE, generator=random.manual_seed(7))
    shape = (1, 3, SIZE, SIZE)
    own_noise = torch.cat([torch.randn(shape, generator=g) for g in own_generators(latents)])
    no = torch.zeros(n, dtype=torch.bool)
    draw = Draw(torch.zeros(n, dtype=torch.int64), mask, no, strength, no, no, own_noise)
    mix = mixture(vocabulary, **{name: 1.0})
    _, trained = mix.condition(Batch(to_unit_range(pixels), labels), draw)
    for step in (0, 1):
        sampled = Conditioning.cat(captured[step::2])  # edits of several strengths are batches
        assert torch.equal(sampled.mask, trained.mask)
        assert torch.equal(sampled.tokens, trained.tokens)
        # One reads bytes as u / 127.5 - 1 and the other as 2 (u / 255) - 1: an ulp apart.
        torch.testing.assert_close(sampled.image, trained.image, rtol=0, atol=5e-7)
    if "image" in takes:
        assert trained.image.abs().max() > 0.1
