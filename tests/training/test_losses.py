"""The loss against the paper's formulas in float64, its weighting, its sums; the noise levels."""

import math

import numpy as np
import pytest
import torch
from diffusers import EDMDPMSolverMultistepScheduler

from mtl_diffusion.tools.rng import generator
from mtl_diffusion.training.losses import (
    AREA_FLOOR,
    Uncertainty,
    denoising_loss,
    draw_sigma,
    sum_of_task_means,
)

SIGMA_DATA = 0.5
SIDE = 16


@pytest.fixture
def random():
    return torch.Generator().manual_seed(0)


def draw(random, n):
    return torch.randn(n, 3, SIDE, SIDE, generator=random, dtype=torch.float64)


def loss_of(output, image, noise, sigma, mask):
    """The loss of a network's output F."""
    scheduler = EDMDPMSolverMultistepScheduler(sigma_data=SIGMA_DATA)
    denoised = scheduler.precondition_outputs(image + sigma * noise, output, sigma)
    return denoising_loss(denoised, image, sigma, mask, scheduler)


def karras(output, image, noise, sigma, mask) -> np.ndarray:
    """Karras et al. 2022, eq. 2, 7 and table 1, a sample and a pixel at a time, in float64."""
    losses = []
    for F, x, n, s, m in zip(output, image, noise, sigma.ravel(), mask, strict=True):
        c_skip = SIGMA_DATA**2 / (s**2 + SIGMA_DATA**2)
        c_out = s * SIGMA_DATA / math.sqrt(SIGMA_DATA**2 + s**2)
        weight = (s**2 + SIGMA_DATA**2) / (s * SIGMA_DATA) ** 2
        D = c_skip * (x + s * n) + c_out * F
        inside = [
            weight * (D[c, i, j] - x[c, i, j]) ** 2
            for c in range(3)
            for i in range(SIDE)
            for j in range(SIDE)
            if m[0, i, j]
        ]
        losses.append(sum(inside) / max(len(inside), 3 * SIDE * SIDE * AREA_FLOOR))
    return np.array(losses)


def test_it_is_the_papers_loss(random):
    output, image, noise = draw(random, 6), draw(random, 6) / 2, draw(random, 6)
    sigma = torch.tensor([0.002, 0.05, 0.3, 1.0, 8.0, 80.0], dtype=torch.float64).view(6, 1, 1, 1)
    share = torch.tensor([1.0, 0.5, 0.9, 0.2, 0.7, 0.01]).view(6, 1, 1, 1)
    mask = (torch.rand(6, 1, SIDE, SIDE, generator=random) <= share).double()
    ours = loss_of(output, image, noise, sigma, mask)
    theirs = karras(*(part.numpy() for part in (output, image, noise, sigma, mask)))
    np.testing.assert_allclose(ours, theirs, rtol=1e-9)
    # float32 is what training uses; c_skip x - x cancels at low noise, and costs digits there.
    single = loss_of(*(part.float() for part in (output, image, noise, sigma, mask)))
    np.testing.assert_allclose(single[1:], theirs[1:], rtol=1e-4)


def test_u_learns_the_log_of_each_tasks_mean_loss_at_each_noise_level():
    def mean_loss(sigma, task):
        x = sigma.flatten().log()
        curves = torch.stack([0.3 + 0.25 * torch.tanh(x + 1), 0.02 + 1 / (1 + x.exp())], 1)
        return curves.gather(1, task[:, None])[:, 0]

    random = torch.Generator().manual_seed(0)
    weighting = Uncertainty(2)
    optimizer = torch.optim.Adam(weighting.parameters())
    for step in range(400):
        optimizer.param_groups[0]["lr"] = 0.05 * (1 - step / 400)
        task = torch.randint(2, (512,), generator=random)
        sigma = (-1.2 + 1.2 * torch.randn(512, 1, 1, 1, generator=random)).exp()
        # Mean one, spread of two fifths: a loss is noisy, and only its mean may be learned.
        noise = torch.randn(512, 12, generator=random).square().mean(1)
        optimizer.zero_grad()
        weighting(mean_loss(sigma, task) * noise, sigma, task).mean().backward()
        optimizer.step()
    for index in range(2):
        sigma = (-1.2 + 1.2 * torch.linspace(-2, 2, 41)).exp().view(-1, 1, 1, 1)
        task = torch.full((41,), index)
        with torch.no_grad():
            error = weighting.u(sigma, task) - mean_loss(sigma, task).log()
        assert error.abs().max() < 0.15 and error.abs().mean() < 0.05


@pytest.mark.parametrize("cut", [[12], [5, 7], [1] * 12, [0, 11, 1]])
def test_the_parts_of_a_batch_add_up_to_the_sum_of_the_tasks_means(cut):
    loss = torch.rand(12, dtype=torch.float64, requires_grad=True)
    task = torch.tensor([0, 0, 2, 0, 1, 0, 2, 2, 0, 0, 0, 1])
    counts = torch.bincount(task, minlength=4)  # the last task is absent
    pieces = zip(loss.split(cut), task.split(cut), strict=True)
    total = sum(sum_of_task_means(part, tasks, counts) for part, tasks in pieces)
    torch.testing.assert_close(total, sum(loss[task == i].mean() for i in range(3)))
    total.backward()
    assert loss.grad.isfinite().all()


@pytest.mark.parametrize(("mean", "std"), [(-0.8, 1.6), (0.4, 0.5)])
def test_a_batch_has_a_noise_level_in_each_quantile_interval_of_the_log_normal(mean, std, n=32):
    for seed in range(20):
        sigma = draw_sigma(torch.zeros(n), mean, std, generator(seed, "sigma")).flatten().double()
        quantile = 0.5 * (1 + torch.erf((sigma.log() - mean) / std / math.sqrt(2)))
        intervals = (quantile * n + 1e-4).floor().long()  # float32's rounding at the borders
        assert (intervals.bincount(minlength=n + 1) - 1).abs().sum() <= 2
        assert not torch.equal(intervals, intervals.sort().values)
