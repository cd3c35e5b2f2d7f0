"""The loss on held-out images."""

import pytest
import torch

from mtl_diffusion.data.images import ImageDataset
from mtl_diffusion.pipeline.pipeline import TASKS
from mtl_diffusion.training.losses import Objective
from mtl_diffusion.training.mixture import Mixture
from mtl_diffusion.training.validation import held_out_loss


def dataset(labels=None):
    random = torch.Generator().manual_seed(0)
    labels = torch.arange(12) % 3 if labels is None else torch.tensor(labels)
    images = torch.randint(0, 256, (len(labels), 3, 8, 8), generator=random, dtype=torch.uint8)
    return ImageDataset.of(images, labels, ("cat", "dog", "ship"))


def measure(pipe, data=None, names=tuple(TASKS), num_images=12, **options):
    """(T, K, N) losses."""
    tasks = tuple(TASKS[name] for name in names)
    mixture = Mixture(tasks, (1.0,) * len(tasks), pipe.vocabulary, pipe.format)
    objective = Objective(pipe.unet, pipe.scheduler)
    given = (objective, pipe.unet, mixture, data or dataset(), num_images)
    found = held_out_loss(*given, **options)
    assert tuple(found) == names
    return torch.stack([torch.stack([*levels.values()]) for levels in found.values()])


def test_ranks_add_up_to_the_whole(pipe):
    whole = measure(pipe, num_images=11)
    parts = torch.stack([measure(pipe, num_images=11, rank=rank, world=3) for rank in range(3)])
    assert ((parts != 0).sum(0) == 1).all()  # each image belongs to one rank
    torch.testing.assert_close(parts.sum(0), whole, rtol=1e-5, atol=1e-6)
    assert not measure(pipe, num_images=1, rank=2, world=3).any()  # it has no image


def test_it_is_the_same_each_time(pipe):
    once = measure(pipe)
    assert torch.equal(once, measure(pipe))
    alone = measure(pipe, names=("edit",))  # the other tasks change nothing
    torch.testing.assert_close(alone[0], once[list(TASKS).index("edit")])


@pytest.mark.parametrize(
    ("labels", "rows"),
    [([0] * 8 + [1] * 4 + [2] * 4, [0, 4, 8, 12]), ([0, 1] * 8, [0, 1, 8, 9])],
)
def test_each_class_has_its_share_of_the_images(pipe, labels, rows, monkeypatch):
    """Evenly over its rows; many datasets are sorted by class."""
    taken = []
    condition = Mixture.of_images

    def noted(self, task, batch, *rest):
        taken.append((batch.images, batch.labels))
        return condition(self, task, batch, *rest)

    monkeypatch.setattr(Mixture, "of_images", noted)
    data = dataset(labels)
    measure(pipe, data, ("generate",), num_images=4)
    ((images, found),) = taken
    assert torch.equal(found, data.labels[rows])
    assert torch.equal(images, data.format.from_stored(data.images[rows]))
