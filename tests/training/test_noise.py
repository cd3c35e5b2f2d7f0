import math

import pytest
import torch

from mtl_diffusion.tools.rng import generator
from mtl_diffusion.training.noise import draw_sigma


@pytest.mark.parametrize(("mean", "std"), [(-1.2, 1.2), (0.4, 0.5)])
def test_sigma_is_log_normal(mean, std):
    sigma = draw_sigma(20_000, mean, std, generator(0, "sigma")).flatten().log().double()
    assert sigma.mean().item() == pytest.approx(mean, abs=4 * std / math.sqrt(20_000))
    assert sigma.std().item() == pytest.approx(std, rel=0.02)
    # The shape, too: a normal has its quartiles 0.6745 standard deviations from the mean.
    quartiles = sigma.quantile(torch.tensor([0.25, 0.75], dtype=torch.float64))
    expected = [mean - 0.6745 * std, mean + 0.6745 * std]
    assert quartiles.tolist() == pytest.approx(expected, abs=0.04 * std)


def test_every_batch_has_a_noise_level_in_each_quantile_interval():
    for seed in range(20):
        sigma = draw_sigma(32, -0.8, 1.6, generator(seed, "sigma")).flatten().double()
        quantile = 0.5 * (1 + torch.erf((sigma.log() + 0.8) / 1.6 / math.sqrt(2)))
        intervals = (quantile * 32 + 1e-4).floor().long()  # float32's rounding at the borders
        assert (intervals.bincount(minlength=33) - 1).abs().sum() <= 2
        assert not torch.equal(intervals, intervals.sort().values)
