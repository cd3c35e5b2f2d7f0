"""Gradients of tasks made one: the mathematics by hand. Whole runs are in test_training.py."""

from types import SimpleNamespace

import pytest
import torch
from torch import nn

from mtl_diffusion.training.aggregation import AGGREGATORS, Jacobian, build_aggregator


class Linear(nn.Module):
    """The loss of a sample of task i is the weights times its image: so its gradient is the image.

    Its own weighting adds v_i, as the uncertainty adds u.
    """

    def __init__(self, num_tasks, size):
        super().__init__()
        self.unet = nn.Linear(size, 1, bias=False)
        self.weighting = nn.Linear(num_tasks, 1, bias=False)

    def forward(self, image, task):
        loss = self.unet(image)[:, 0]
        return loss.detach(), loss + self.weighting.weight[0, task]


def gradients(images, task, num_tasks, aggregate, cuts=None):
    """The gradient of the shared weights, and of the weighting's own, of a batch in pieces."""
    objective = Linear(num_tasks, images.shape[1])
    alone = SimpleNamespace(reduce=lambda rows, reduction: rows)
    jacobian = Jacobian(objective, alone, num_tasks, aggregate)
    counts = torch.bincount(task, minlength=num_tasks)
    for rows in torch.arange(len(task)).split(cuts or len(task)):
        plain = jacobian.add((images[rows], task[rows]), counts, is_last=False)
        torch.testing.assert_close(plain, objective.unet(images[rows])[:, 0].detach())
    jacobian.finish(counts)
    assert not jacobian.rows.any()
    return objective.unet.weight.grad[0], objective.weighting.weight.grad[0]


CONFLICT = torch.tensor([[-4.0, 1.0, 1.0], [6.0, 1.0, 1.0]])


def upgrad_of_two(g, h):
    """UPGrad of two gradients by its definition: each is projected onto the cone of the vectors
    that have no negative product with either, and the projections are added.

    In conflict, the nearest such vector to g is g less its part along h.
    """
    assert g @ h < 0
    return (g - (g @ h) / (h @ h) * h) + (h - (g @ h) / (g @ g) * g)


def test_two_tasks_in_conflict_are_projected_as_upgrad_is_defined():
    shared, own = gradients(CONFLICT, torch.tensor([0, 1]), 2, build_aggregator("upgrad"))
    expected = upgrad_of_two(*CONFLICT)
    torch.testing.assert_close(shared, expected, rtol=2e-3, atol=2e-3)  # torchjd regularises
    # Neither task is harmed to the first order; the plain sum harms the first one.
    assert (CONFLICT @ shared >= -1e-2).all() and CONFLICT[0] @ CONFLICT.sum(0) < 0
    torch.testing.assert_close(own, torch.ones(2))  # the plain sum


@pytest.mark.parametrize("name", ["upgrad"])
def test_without_a_conflict_it_is_the_plain_sum(name):
    images = torch.tensor([[1.0, 0.0, 0.5], [0.0, 3.0, 0.5], [1.0, 1.0, 0.0]])
    shared, _ = gradients(images, torch.arange(3), 3, build_aggregator(name))
    torch.testing.assert_close(shared, images.sum(0), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("name", AGGREGATORS)
def test_microbatches_are_one_batch_and_a_task_is_its_mean(name):
    random = torch.Generator().manual_seed(0)
    images = torch.randn(12, 5, generator=random)
    task = torch.tensor([0, 0, 2, 0, 1, 0, 2, 2, 0, 0, 0, 1])
    aggregate = build_aggregator(name)
    whole, _ = gradients(images, task, 3, aggregate)
    means = torch.stack([images[task == i].mean(0) for i in range(3)])
    torch.testing.assert_close(whole, 3 * aggregate(means))
    for cuts in (1, 5):
        torch.testing.assert_close(gradients(images, task, 3, aggregate, cuts)[0], whole)


@pytest.mark.parametrize("name", AGGREGATORS)
def test_a_task_that_no_sample_of_the_batch_has_does_not_count(name):
    task = torch.tensor([0, 2])
    three, own = gradients(CONFLICT, task, 3, build_aggregator(name))
    two, _ = gradients(CONFLICT, task // 2, 2, build_aggregator(name))
    torch.testing.assert_close(three, two)
    assert own.tolist() == [1, 0, 1]
    assert three.abs().sum() > 0.1


def test_gradients_that_are_not_finite_reach_the_check_that_names_them():
    images = torch.tensor([[1.0, float("inf")], [1.0, 1.0]])
    shared, _ = gradients(images, torch.arange(2), 2, build_aggregator("upgrad"))
    assert not shared.isfinite().all()
