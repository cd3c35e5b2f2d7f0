"""Schedules, and how a global batch is cut."""

import math
from dataclasses import replace

import pytest

from mtl_diffusion.config import TrainConfig
from mtl_diffusion.training.run import microbatches, process_rows
from mtl_diffusion.training.schedule import learning_rate

CONFIG = TrainConfig(max_train_steps=1000, learning_rate=2e-3, lr_warmup_steps=0.04)


@pytest.mark.parametrize("shape", ["cosine", "linear", "constant"])
def test_the_learning_rate_warms_up_decays_and_is_never_negative(shape):
    config = replace(CONFIG, lr_scheduler=shape)
    rates = [learning_rate(config, step) for step in range(1001)]
    warm_up, rest = rates[:40], rates[40:]
    assert warm_up == pytest.approx([2e-3 * (step + 1) / 40 for step in range(40)])
    assert max(rates) == pytest.approx(2e-3) and min(rates) >= 0
    assert rest == sorted(rest, reverse=True)
    if shape == "constant":
        assert set(rest) == {2e-3}
    else:
        assert rates[999] < 2e-3 * 0.002 and rates[1000] == pytest.approx(0, abs=1e-12)
        assert rates[520] == pytest.approx(1e-3)  # half way, for both


def test_the_cosine():
    for step in (40, 100, 700, 990):
        expected = 2e-3 * (1 + math.cos(math.pi * (step - 40) / 960)) / 2
        assert learning_rate(CONFIG, step) == pytest.approx(expected)


@pytest.mark.parametrize("shape", ["cosine", "linear"])
def test_the_schedule_is_a_function_of_the_share_of_the_run(shape):
    short = replace(CONFIG, lr_scheduler=shape)
    long = replace(short, max_train_steps=10_000)
    for step in range(40, 1001, 60):
        assert learning_rate(long, 10 * step) == pytest.approx(learning_rate(short, step))


def test_warm_up_in_steps_and_none():
    assert learning_rate(replace(CONFIG, lr_warmup_steps=10), 4) == pytest.approx(1e-3)
    assert learning_rate(replace(CONFIG, lr_warmup_steps=0), 0) == pytest.approx(2e-3)


@pytest.mark.parametrize("shape", ["cosine", "linear", "constant"])
@pytest.mark.parametrize("steps", [1, 2, 5])
@pytest.mark.parametrize("warm_up", [0, 0.5, 0.99, 1])
def test_the_shortest_runs_have_a_rate(shape, steps, warm_up):
    config = replace(
        CONFIG, lr_scheduler=shape, max_train_steps=steps, lr_warmup_steps=float(warm_up)
    )
    rates = [learning_rate(config, step) for step in range(steps)]
    assert all(0 < rate <= 2e-3 for rate in rates)


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
