"""The learning rate, and runs that can be lengthened."""

import math
from dataclasses import replace

import pytest

from mtl_diffusion.config import TrainConfig
from mtl_diffusion.training.schedule import (
    decay_start,
    learning_rate,
    lengthening_steps,
    same_steps,
    with_shares_of,
)

CONFIG = TrainConfig(
    max_train_steps=1000,
    learning_rate=2e-3,
    lr_warmup_steps=40,
    lr_scheduler="warmup_stable_decay",
    lr_decay=0.2,
)
COSINE = TrainConfig(max_train_steps=1000, learning_rate=2e-3, lr_warmup_steps=0.04)


@pytest.mark.parametrize("shape", ["cosine", "linear", "constant"])
def test_the_learning_rate_warms_up_and_has_its_shape(shape):
    rates = [learning_rate(replace(COSINE, lr_scheduler=shape), step) for step in range(1001)]
    assert rates[:40] == pytest.approx([2e-3 * (step + 1) / 40 for step in range(40)])
    for step in (40, 100, 520, 700, 990, 1000):
        done = (step - 40) / 960
        factor = {"constant": 1, "linear": 1 - done, "cosine": math.cos(math.pi * done / 2) ** 2}
        assert rates[step] == pytest.approx(2e-3 * factor[shape], abs=1e-12)


@pytest.mark.parametrize("warmup", [40, 0.04])
def test_a_longer_run_takes_the_same_steps_up_to_the_decay(warmup):
    first = replace(CONFIG, lr_warmup_steps=warmup)
    longer = with_shares_of(replace(first, max_train_steps=3000), 1000)
    assert decay_start(first) == 800 and lengthening_steps(first) == (800,)
    assert same_steps(first, longer) == 800 and same_steps(first, first) == 1000
    for step in range(800):
        assert learning_rate(longer, step) == learning_rate(first, step)
    assert learning_rate(longer, 2400) == 2e-3 and learning_rate(longer, 2700) == 1e-3
    assert longer.lr_warmup_steps == 40 and with_shares_of(first, 1000) == first


def test_a_run_of_cosine_shares_its_warm_up_with_longer_ones():
    longer = replace(COSINE, max_train_steps=3000, lr_warmup_steps=40)
    assert same_steps(COSINE, longer) == 40
    shorter = replace(COSINE, max_train_steps=30, lr_warmup_steps=40)
    assert same_steps(COSINE, shorter) == 0  # it would end in its warm-up


@pytest.mark.parametrize("steps", [1, 2, 5])
@pytest.mark.parametrize("warm_up", [0.0, 0.5, 0.99, 1.0])
@pytest.mark.parametrize("decay", [0.001, 0.3, 1.0])
def test_the_shortest_runs_have_a_rate(steps, warm_up, decay):
    for shape in ("cosine", "linear", "constant", "warmup_stable_decay"):
        config = replace(CONFIG, lr_scheduler=shape, max_train_steps=steps, lr_decay=decay)
        config = replace(config, lr_warmup_steps=warm_up)
        assert all(0 < learning_rate(config, step) <= 2e-3 for step in range(steps))
