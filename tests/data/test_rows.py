"""How a global batch is cut over processes and into microbatches."""

import math

import pytest

from mtl_diffusion.data.loader import microbatches, process_rows


@pytest.mark.parametrize("total", [1, 7, 8, 32, 513])
@pytest.mark.parametrize("world", [1, 2, 3, 8])
def test_processes_share_a_batch_evenly_and_whole(total, world):
    shares = [process_rows(total, rank, world) for rank in range(world)]
    assert [row for share in shares for row in share] == list(range(total))
    sizes = [len(share) for share in shares]
    assert max(sizes) - min(sizes) <= 1


@pytest.mark.parametrize("limit", [None, 1, 3, 4, 8, 100])
def test_microbatches_cover_the_rows_in_order(limit):
    rows = range(8, 16)
    pieces = microbatches(rows, limit)
    assert [row for piece in pieces for row in range(16)[piece]] == list(rows)
    assert all(piece.stop - piece.start <= (limit or 8) for piece in pieces)
    assert len(pieces) == math.ceil(8 / min(limit or 8, 8))
