import pytest
import torch
from drawing import generator

from mtl_diffusion.pipeline import masks
from mtl_diffusion.pipeline.masks import MASKS, draw_masks

# The share of the image that masks of each kind cover: the least, the mean from and to, the most;
# the widest over the sizes below.
AREA = {
    "center": (0.25, 0.25, 0.25, 0.25),
    "boxes": (1 / 64, 0.2, 0.35, 0.9),
    "strokes": (1 / 64, 0.1, 0.3, 0.7),
    "half": (0.5, 0.5, 0.5, 0.5),
    "border": (0.4, 0.6, 0.8, 0.94),
    "pixels": (0.25, 0.7, 0.75, 63 / 64),
    None: (1 / 1024, 0.4, 0.5, 1023 / 1024),
}


def draw(n, size, kind=None):
    return draw_masks(n, (size, size), generator(), kind)


@pytest.mark.parametrize("size", [8, 16, 32])
@pytest.mark.parametrize("kind", [*MASKS, None])
def test_a_mask_is_binary_and_neither_empty_nor_everything(kind, size):
    mask = draw(4000 if size == 8 else 500, size, kind)
    assert mask.shape[1:] == (1, size, size) and mask.dtype == torch.float32
    assert ((mask == 0) | (mask == 1)).all()
    area = mask.mean((1, 2, 3))
    least, low, high, most = AREA[kind]
    assert least <= area.min() and low <= area.mean() <= high and area.max() <= most


@pytest.mark.parametrize("fill", [False, True])
def test_a_hole_that_is_empty_or_everything_becomes_the_centre(monkeypatch, fill):
    def flat(n, size, generator):
        return torch.full((n, 1, *size), fill)

    monkeypatch.setitem(masks.MASKS, "half", flat)
    centre = draw(3, 8, "center")
    assert torch.equal(draw(3, 8, "half"), centre)
    drawn = draw(600, 8)
    assert drawn.mean((1, 2, 3)).min() > 0 and drawn.mean((1, 2, 3)).max() < 1
    assert 130 < (drawn == centre[0]).all((1, 2, 3)).sum() < 270  # two kinds of six


def test_the_shape_of_each_kind():
    kept = 1 - draw(200, 16, "border")
    assert (kept[..., 7:9, 7:9] == 1).all()
    halves = draw(200, 16, "half").flatten(1).unique(dim=0)
    assert len(halves) == 4 and torch.equal(halves.sum(0), torch.full((256,), 2.0))
    rows, columns = (draw(1, 16, "center")[0, 0].amax(axis).nonzero()[:, 0] for axis in (0, 1))
    assert rows.tolist() == columns.tolist() == list(range(4, 12))
