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
from mtl_diffusion.pipeline.denoiser import CLASS, STRENGTH, TASK, Conditioning, build_conditioning
from mtl_diffusion.pipeline.format import ImageFormat
from mtl_diffusion.pipeline.masks import draw_masks
from mtl_diffusion.pipeline.noise import own_generators
from mtl_diffusion.pipeline.pipeline import TASKS
from mtl_diffusion.pipeline.task import Choice
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


def mixture(vocabulary, class_dropout=0.1, task_dropout=0.1, size=SIZE, **shares):
    shares = shares or {name: 1 / len(TASKS) for name in TASKS}
    return Mixture(
        tasks=tuple(TASKS[name] for name in shares),
        proportions=tuple(shares.values()),
        vocabulary=vocabulary,
        images=ImageFormat.square(size),
        class_dropout=class_dropout,
        task_dropout=task_dropout,
    )


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
    assert torch.equal(draw.noise, same.noise) and same.pairs is None  # all else is drawn alike
    target, found = mix.condition(Batch(images, own), draw)
    target_of_images, expected = plain.condition(Batch(images, own), same)
    edits = draw.task == list(TASKS).index("edit")
    assert torch.equal(target_of_images, images) and torch.equal(target[~edits], images[~edits])
    for ours, theirs in zip(parts_of(found), parts_of(expected), strict=True):
        assert torch.equal(ours[~edits], theirs[~edits])
    drawn = draw.pairs[edits]
    assert torch.equal(target[edits], to_unit_range(drawn.edit))
    assert torch.equal(found.image[edits], to_unit_range(drawn.source))
    assert torch.equal(found.mask[edits], drawn.mask.float())
    words = found.tokens[edits].argmax(-1)
    assert torch.equal(words[:, CLASS], vocabulary.class_ids(drawn.label))  # never without a class
    assert not (words[:, STRENGTH] == vocabulary.null).any()
    asked_for_their_own = drawn.label == drawn.source_label
    assert 0 < asked_for_their_own.sum() < 25
    own_class = asked_for_their_own[:, None, None, None]
    assert torch.equal(
        torch.where(own_class, drawn.edit, 0), torch.where(own_class, drawn.source, 0)
    )


# --- which task ---------------------------------------------------------------------------------


@pytest.mark.parametrize("first", [0, 30_000_000])
def test_it_is_the_golden_ratio_sequence_in_whole_numbers(first):
    """floor(k phi) by integer arithmetic, on a ratio of Fibonacci numbers that is as good here."""
    golden = Fraction(12586269025, 20365011074)  # F(50) / F(51)
    place = [k * golden % 1 for k in range(first, first + 2000)]
    expected = [0 if p < Fraction(1, 2) else 1 if p < Fraction(3, 4) else 2 for p in place]
    assert assign_tasks((2, 1, 1), first, 2000).tolist() == expected


# --- draws and their cuts -----------------------------------------------------------------------


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


def test_every_sample_has_a_choice_of_its_own_task(vocabulary):
    mix = mixture(vocabulary)
    draw = mix.draw(0, 0, 400, CPU)
    kinds = [mix.tasks[i].name for i in draw.task]
    has_strength = [name in ("edit", "colorize") for name in kinds]
    assert (~draw.choice.strength.isnan()).tolist() == has_strength
    full = draw.choice.mask.mean((1, 2, 3)) == 1
    everything = ("generate", "colorize", "upscale")
    assert all(full[i] for i, name in enumerate(kinds) if name in everything)
    assert not any(full[i] for i, name in enumerate(kinds) if name == "inpaint")
    hidden = draw.choice.drop_image
    assert hidden.any() and all(kinds[i] == "edit" for i in hidden.nonzero()[:, 0])
    assert draw.counts.tolist() == [kinds.count(t.name) for t in mix.tasks]


def sources(n, seed=0):
    random = torch.Generator().manual_seed(seed)
    pixels = torch.randint(0, 256, (n, 3, SIZE, SIZE), generator=random, dtype=torch.uint8)
    return to_unit_range(pixels), torch.randint(-1, len(CLASSES), (n,), generator=random)


def parts_of(conditioning):
    return conditioning.image, conditioning.mask, conditioning.tokens


@pytest.mark.parametrize("cut", [[13], [1] * 13, [6, 7], [4, 4, 5], [2, 0, 11]])
def test_any_cut_of_a_batch_is_a_slice_of_the_whole_bit_for_bit(vocabulary, cut):
    mix = mixture(vocabulary, class_dropout=0.3, task_dropout=0.3)
    images, labels = sources(13)
    for step in range(5):
        draw = mix.draw(0, step, 13, CPU)
        _, whole = mix.condition(Batch(images, labels), draw)
        start = 0
        for length in cut:
            rows = slice(start, start + length)
            _, part = mix.condition(Batch(images[rows], labels[rows]), draw[rows])
            for ours, theirs in zip(parts_of(part), parts_of(whole[rows]), strict=True):
                assert torch.equal(ours, theirs)
            start += length


def test_condition_keeps_the_order_of_the_samples(vocabulary):
    mix = mixture(vocabulary, class_dropout=0, task_dropout=0)
    images, labels = sources(24)
    draw = mix.draw(0, 0, 24, CPU)
    _, conditioning = mix.condition(Batch(images, labels), draw)
    ids = list(vocabulary.tasks.values())
    by_task = [vocabulary.tasks[mix.tasks[i].name] for i in draw.task]
    assert conditioning.tokens[:, TASK].argmax(-1).tolist() == by_task
    classes = [vocabulary.null if y < 0 else vocabulary.classes[CLASSES[y]] for y in labels]
    kept = ~(draw.choice.drop_class | draw.choice.drop_image)
    assert conditioning.tokens[kept, CLASS].argmax(-1).tolist() == [
        c for c, k in zip(classes, kept, strict=True) if k
    ]
    known = conditioning.mask[:, 0] == 0
    inpainted = torch.tensor([mix.tasks[i].name == "inpaint" for i in draw.task])
    shown = conditioning.image.movedim(1, -1)[known & inpainted[:, None, None]]
    assert torch.equal(shown, images.movedim(1, -1)[known & inpainted[:, None, None]])
    assert set(ids) == set(by_task)


def within(count, n, p):
    """Four standard deviations of a binomial."""
    return abs(count - n * p) < 4 * (n * p * (1 - p)) ** 0.5


@pytest.mark.parametrize(("class_dropout", "task_dropout"), [(0.1, 0.1), (0.3, 0.05), (0.0, 0.0)])
def test_tokens_are_dropped_as_often_as_they_should_be(vocabulary, class_dropout, task_dropout):
    mix = mixture(vocabulary, class_dropout, task_dropout)
    n = 8000
    draw = mix.draw(0, 0, n, CPU)
    images, labels = torch.zeros(n, 3, SIZE, SIZE), torch.zeros(n, dtype=torch.int64)
    tokens = mix.condition(Batch(images, labels), draw)[1].tokens
    no_task, no_class = (tokens[:, place, vocabulary.null] == 1 for place in (TASK, CLASS))
    for index, task in enumerate(mix.tasks):
        rows = draw.task == index
        size = int(rows.sum())
        if not class_dropout:
            assert not no_class[rows].any() and not no_task[rows].any()
            continue
        assert within(int(no_class[rows].sum()), size, class_dropout), task.name
        assert within(int(no_task[rows].sum()), size, task_dropout), task.name
        both = int((no_class & no_task)[rows].sum())
        assert within(both, size, class_dropout * task_dropout), task.name


# --- training and sampling agree ----------------------------------------------------------------


@pytest.mark.parametrize("name", TASKS)
def test_training_and_sampling_tell_the_denoiser_the_same(name, pipe, vocabulary, monkeypatch):
    n, task = 6, TASKS[name]
    takes = task.required | task.optional
    pixels = torch.randint(
        0, 256, (n, 3, SIZE, SIZE), generator=torch.Generator().manual_seed(1), dtype=torch.uint8
    )
    labels = torch.tensor([0, 1, 2, 2, 1, 0])
    mask = torch.ones(n, 1, SIZE, SIZE)
    strength = torch.full((n,), float("nan"))
    arguments = {"class_label": labels.tolist()}
    if "image" in takes:
        arguments["image"] = [Image.fromarray(p) for p in pixels.movedim(1, -1).numpy()]
    if "mask_image" in takes:
        mask = draw_masks(n, (SIZE, SIZE), torch.Generator().manual_seed(2))
        arguments["mask_image"] = mask
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
    draw = Draw(
        task=torch.zeros(n, dtype=torch.int64),
        choice=Choice(mask=mask, strength=strength, drop_class=no, drop_image=no),
        drop_task=no,
        noise=own_noise,
        counts=torch.tensor([n]),
        pairs=None,
    )
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

    # From the same floats it is the same, bit for bit.
    images = to_unit_range(pixels)
    conditioning = build_conditioning(
        task.condition(images, mask, strength, own_noise), task, labels, vocabulary
    )
    for ours, theirs in zip(parts_of(conditioning), parts_of(trained), strict=True):
        assert torch.equal(ours, theirs)
