import pytest
import torch

from mtl_diffusion.tools.rng import generator


def draw(*key):
    return torch.rand(8, generator=generator(*key))


def test_the_stream_is_pinned():
    """A resumed run on another machine or version must draw what this one draws."""
    assert generator(0, 7, "flip").initial_seed() == 8012350776124023912


@pytest.mark.parametrize(
    "other", [(1, 2), (2, 1, "noise"), (1, 2, "flip"), ("1", 2, "noise"), (12, "noise")]
)
def test_another_key_other_numbers(other):
    assert not torch.equal(draw(1, 2, "noise"), draw(*other))
