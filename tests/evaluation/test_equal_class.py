"""Editing methods are compared at equal shares of edits whose class is found."""

import pytest
import torch

from mtl_diffusion.evaluation.edit import at_class_found

EVEN = [k / 10 for k in range(11)]


def curve(n=10_000, strengths=EVEN, seed=0):
    """Edit i has its class from strength u_i on, and keeps 1 - strength / 2 - u_i / 10."""
    u = torch.rand(n, generator=torch.Generator().manual_seed(seed))
    return [
        {
            "class_accuracy": u < s,
            "likeness": 1 - s / 2 - u.double() / 10,
            "strength": torch.full((n,), s),
        }
        for s in strengths
    ]


@pytest.mark.parametrize("share", [0.5, 0.65, 0.9])
def test_it_is_read_off_where_the_share_is_reached(share):
    found = at_class_found(curve(), share)
    assert found["reached"] and found["n"] == 10_000
    assert found["strength"] == pytest.approx(share, abs=0.01)
    assert found["likeness"] == pytest.approx(1 - share / 2 - 0.05, abs=0.01)


def test_the_standard_error_is_the_spread_over_draws():
    """Of the likeness, of the share, and of how they vary together."""
    found = [at_class_found(curve(200, seed=seed), 0.7) for seed in range(200)]
    values = torch.tensor([one["likeness"] for one in found])
    errors = torch.tensor([one["likeness_standard_error"] for one in found])
    assert errors.mean().item() == pytest.approx(values.std().item(), rel=0.15)


def test_a_share_that_is_not_reached_has_no_figures():
    found = at_class_found(curve(strengths=[0.0, 0.2, 0.4]), 0.5)
    assert found == {"n": 10_000, "reached": False, "largest_share": pytest.approx(0.4, abs=0.02)}
