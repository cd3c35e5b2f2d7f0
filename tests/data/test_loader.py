"""Batches of data in memory: the order, the flips, the values, and how a batch is cut."""

import math
from itertools import pairwise

import pytest
import torch

from mtl_diffusion.data.images import ImageDataset
from mtl_diffusion.data.loader import Loader, microbatches, process_rows


@pytest.fixture(scope="module")
def numbered():
    """Ten images of which every pixel is the row's number, but for a bright left half."""
    images = torch.arange(10, dtype=torch.uint8)[:, None, None, None].repeat(1, 3, 4, 4)
    images[..., :2] += 100
    return ImageDataset.of(images, torch.arange(10), tuple("abcdefghij"))


def test_values(numbered):
    batch = Loader(numbered, 10, seed=0, random_flip=False).batch(0)
    assert batch.images.dtype == torch.float32 and batch.labels.dtype == torch.int64
    expected = numbered.images[batch.labels].float() / 127.5 - 1
    assert torch.equal(batch.images, expected)


@pytest.mark.parametrize("size", [1, 4, 7, 10])
def test_each_epoch_has_every_row_once(numbered, size):
    loader = Loader(numbered, size, seed=1, random_flip=False)
    order = torch.cat([loader.batch(step).labels for step in range(30)])
    epochs = order[: len(order) // 10 * 10].view(-1, 10)
    assert (epochs.sort(1).values == torch.arange(10)).all()
    assert len({tuple(epoch.tolist()) for epoch in epochs}) == len(epochs)


@pytest.mark.parametrize("size", [1, 4, 9])
def test_balanced_classes_are_drawn_equally_often(size):
    """Seven images of one class, two of another, one of no class, and none of a third."""
    labels = torch.tensor([0] * 7 + [2] * 2 + [-1])
    images = torch.arange(10, dtype=torch.uint8)[:, None, None, None].repeat(1, 3, 4, 4)
    data = ImageDataset.of(images, labels, tuple("abc"))
    loader = Loader(data, size, seed=1, random_flip=False, balance_classes=True)
    batches = [loader.batch(step) for step in range(48 // size)]
    rounds = torch.cat([batch.labels for batch in batches])[:36].view(-1, 3)
    assert (rounds.sort(1).values == torch.tensor([-1, 0, 2])).all()
    assert len({tuple(labels) for labels in rounds.tolist()}) > 3  # in random order
    rows = ((torch.cat([b.images[:, 0, 0, 0] for b in batches]) + 1) * 127.5).round().int()
    for epoch in rows[:36].view(-1, 12).tolist():  # four rounds each
        large, small = ([row for row in epoch if row in part] for part in (range(7), (7, 8)))
        assert len(set(large)) == 4 and sorted(small) == [7, 7, 8, 8] and small[0] != small[1]
    assert set(rows.tolist()) == set(range(10))
    again = Loader(data, size, seed=1, random_flip=False, balance_classes=True).batch(3)
    assert torch.equal(again.images, batches[3].images)  # a function of the step


def test_cutting_the_global_batch_changes_nothing(numbered):
    loader = Loader(numbered, 8, seed=2, random_flip=True)
    for step in (0, 1, 6):  # step 1 crosses from one epoch into the next
        whole = loader.batch(step)
        for cuts in ([0, 4, 8], [0, 1, 3, 8]):
            parts = [loader.batch(step, slice(a, b)) for a, b in pairwise(cuts)]
            assert torch.equal(torch.cat([part.images for part in parts]), whole.images)
            assert torch.equal(torch.cat([part.labels for part in parts]), whole.labels)
        strided = loader.batch(step, slice(1, None, 2))
        assert torch.equal(strided.images, whole.images[1::2])


def test_flips_mirror_half_of_the_samples(numbered):
    plain = Loader(numbered, 10, seed=5, random_flip=False)
    mirrored = Loader(numbered, 10, seed=5, random_flip=True)
    flipped = 0
    for step in range(50):
        before, after = plain.batch(step).images, mirrored.batch(step).images
        flip = (after == before.flip(-1)).all((1, 2, 3))
        assert (flip | (after == before).all((1, 2, 3))).all()
        flipped += int(flip.sum())
    assert 200 < flipped < 300


@pytest.mark.parametrize("size", [0, 11])
def test_a_batch_no_larger_than_the_dataset(numbered, size):
    with pytest.raises(ValueError, match=f"total_batch_size: {size} .* 10 rows"):
        Loader(numbered, size, seed=0, random_flip=False)


@pytest.mark.parametrize("total", [1, 7, 32, 513])
@pytest.mark.parametrize("world", [1, 2, 3, 8])
@pytest.mark.parametrize("limit", [None, 1, 3, 8])
def test_processes_and_their_microbatches_share_a_batch_evenly_and_whole(total, world, limit):
    shares = [process_rows(total, rank, world) for rank in range(world)]
    assert max(map(len, shares)) - min(map(len, shares)) <= 1
    pieces = [piece for share in shares if share for piece in microbatches(share, limit)]
    assert [row for piece in pieces for row in range(total)[piece]] == list(range(total))
    sizes = [piece.stop - piece.start for piece in pieces]
    assert max(sizes) <= (limit or total)
    assert len(pieces) == sum(math.ceil(len(share) / (limit or total)) for share in shares)
