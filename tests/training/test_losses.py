"""The loss against the paper's formulas in float64, its weighting, and its sums."""

import math

import numpy as np
import pytest
import torch
from diffusers import EDMDPMSolverMultistepScheduler

from mtl_diffusion.training.losses import (
    AREA_FLOOR,
    Fixed,
    Uncertainty,
    build_weighting,
    denoising_loss,
    sum_of_task_means,
)

SIGMA_DATA = 0.5
SIDE = 16


@pytest.fixture
def scheduler():
    return EDMDPMSolverMultistepScheduler(sigma_data=SIGMA_DATA)


@pytest.fixture
def random():
    return torch.Generator().manual_seed(0)


def draw(random, n, channels=3, side=SIDE):
    return torch.randn(n, channels, side, side, generator=random, dtype=torch.float64)


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


def test_it_is_the_papers_loss(scheduler, random):
    output, image, noise = draw(random, 6), draw(random, 6) / 2, draw(random, 6)
    sigma = torch.tensor([0.002, 0.05, 0.3, 1.0, 8.0, 80.0], dtype=torch.float64).view(6, 1, 1, 1)
    share = torch.tensor([1.0, 0.5, 0.9, 0.2, 0.7, 0.01]).view(6, 1, 1, 1)
    mask = (torch.rand(6, 1, SIDE, SIDE, generator=random) <= share).double()
    ours = denoising_loss(output, image, noise, sigma, mask, scheduler)
    theirs = karras(*(part.numpy() for part in (output, image, noise, sigma, mask)))
    np.testing.assert_allclose(ours, theirs, rtol=1e-9)
    # float32 is what training uses; c_skip x - x cancels at low noise, and costs digits there.
    single = denoising_loss(*(p.float() for p in (output, image, noise, sigma, mask)), scheduler)
    np.testing.assert_allclose(single[1:], theirs[1:], rtol=1e-4)


@pytest.mark.parametrize("sigma", [0.01, 0.1, 0.5, 3.0, 50.0])
def test_a_zero_network_has_a_loss_of_one_at_every_noise_level(scheduler, random, sigma):
    image, noise = draw(random, 64) * SIGMA_DATA, draw(random, 64)
    sigmas = torch.full((64, 1, 1, 1), sigma, dtype=torch.float64)
    ones = torch.ones(64, 1, SIDE, SIDE, dtype=torch.float64)
    loss = denoising_loss(torch.zeros_like(image), image, noise, sigmas, ones, scheduler)
    # 49,152 squared standard normals: the mean's standard deviation is 0.0064.
    assert loss.mean().item() == pytest.approx(1, abs=0.03)


def constant_error(error, image, noise, sigma, scheduler):
    """The output F for which (D - x) / c_out is `error` at every pixel."""
    noisy = image + sigma * noise
    skipped = scheduler.precondition_outputs(noisy, torch.zeros_like(noisy), sigma)
    c_out = sigma * SIGMA_DATA / (sigma**2 + SIGMA_DATA**2).sqrt()
    return error + (image - skipped) / c_out


@pytest.mark.parametrize("pixels", [1, 4, 15, 16, 17, 40, 128, 255, 256])
def test_a_hole_of_any_area_above_the_floor_weighs_the_same(scheduler, random, pixels):
    image, noise = draw(random, 1) / 2, draw(random, 1)
    sigma = torch.full((1, 1, 1, 1), 0.7, dtype=torch.float64)
    mask = torch.zeros(SIDE * SIDE, dtype=torch.float64)
    mask[torch.randperm(SIDE * SIDE, generator=random)[:pixels]] = 1
    output = constant_error(1.5, image, noise, sigma, scheduler)
    loss = denoising_loss(output, image, noise, sigma, mask.view(1, 1, SIDE, SIDE), scheduler)
    floor = AREA_FLOOR * SIDE * SIDE
    assert floor == 16
    assert loss.item() == pytest.approx(1.5**2 * min(1, pixels / floor), rel=1e-9)


def test_nothing_outside_the_mask_counts(scheduler, random):
    output, image, noise = draw(random, 4), draw(random, 4) / 2, draw(random, 4)
    sigma = torch.tensor([0.01, 0.3, 2.0, 40.0], dtype=torch.float64).view(4, 1, 1, 1)
    mask = (torch.rand(4, 1, SIDE, SIDE, generator=random) < 0.3).double()

    def loss(*parts):
        return denoising_loss(*parts, sigma, mask, scheduler)

    before = loss(output, image, noise)
    others = [torch.where(mask > 0, part, 9 * draw(random, 4)) for part in (output, image, noise)]
    assert torch.equal(loss(*others), before)
    assert not torch.equal(loss(output + mask, image, noise), before)


def test_a_sample_does_not_see_its_neighbours(scheduler, random):
    output, image, noise = draw(random, 3), draw(random, 3) / 2, draw(random, 3)
    sigma = torch.tensor([0.1, 1.0, 10.0], dtype=torch.float64).view(3, 1, 1, 1)
    mask = (torch.rand(3, 1, SIDE, SIDE, generator=random) < 0.5).double()
    parts = (output, image, noise, sigma, mask)
    together = denoising_loss(*parts, scheduler)
    apart = [denoising_loss(*(part[i : i + 1] for part in parts), scheduler) for i in range(3)]
    torch.testing.assert_close(torch.cat(apart), together, rtol=1e-12, atol=0)


# --- weighting ----------------------------------------------------------------------------------


def test_uncertainty_starts_as_the_plain_loss():
    loss, sigma, task = torch.rand(7), torch.rand(7, 1, 1, 1) + 0.1, torch.arange(7) % 3
    torch.testing.assert_close(Uncertainty(3)(loss, sigma, task), loss)


def test_the_gradient_vanishes_where_u_is_the_log_of_the_loss():
    means = torch.tensor([0.05, 0.7, 3.0])
    weighting = Uncertainty(3)
    task = torch.arange(300) % 3
    sigma = torch.linspace(-4, 3, 300).exp().view(-1, 1, 1, 1)

    def gradient():
        weighting.zero_grad()
        weighting(means[task], sigma, task).mean().backward()
        return torch.cat([p.grad.flatten() for p in weighting.parameters()]).abs().max().item()

    assert gradient() > 0.1
    with torch.no_grad():
        weighting.head.bias.copy_(means.log())
    assert gradient() < 1e-6


def test_u_learns_the_log_of_each_tasks_mean_loss_at_each_noise_level():
    def mean_loss(sigma, task):
        x = sigma.flatten().log()
        curves = torch.stack([0.3 + 0.25 * torch.tanh(x + 1), 0.02 + 1 / (1 + x.exp())], 1)
        return curves.gather(1, task[:, None])[:, 0]

    random = torch.Generator().manual_seed(0)
    weighting = Uncertainty(2)
    optimizer = torch.optim.Adam(weighting.parameters(), lr=0.02)
    steps = 1500
    for step in range(steps):
        optimizer.param_groups[0]["lr"] = 0.02 * (1 - step / steps)
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
    # Both curves span more than the tolerance, so a constant u would not pass.
    assert (mean_loss(sigma, task).log().max() - mean_loss(sigma, task).log().min()) > 1


def test_u_of_one_task_is_not_moved_by_another():
    weighting = Uncertainty(2)
    weighting(
        torch.rand(8), torch.rand(8, 1, 1, 1) + 0.1, torch.zeros(8, dtype=int)
    ).sum().backward()
    assert weighting.head.weight.grad[0].abs().max() > 0
    assert weighting.head.weight.grad[1].abs().max() == 0


def test_u_stays_finite_and_smooth_at_extreme_noise():
    weighting = Uncertainty(1)
    torch.nn.init.normal_(weighting.head.weight)
    sigma = torch.tensor([1e-6, 0.002, 80.0, 1e6]).view(-1, 1, 1, 1)
    assert weighting.u(sigma, torch.zeros(4, dtype=int)).isfinite().all()


def test_fixed_weights():
    loss, task = torch.tensor([1.0, 2.0, 3.0]), torch.tensor([1, 0, 1])
    sigma = torch.ones(3, 1, 1, 1)
    assert Fixed([10.0, 0.5])(loss, sigma, task).tolist() == [0.5, 20.0, 1.5]


def test_build_weighting_by_name():
    names = ["generate", "edit"]
    loss, sigma, task = torch.tensor([1.0, 1.0]), torch.ones(2, 1, 1, 1), torch.tensor([0, 1])
    # A config may also weigh tasks that it leaves out: names choose, not places.
    weights = {"edit": 3.0, "inpaint": 7.0, "generate": 2.0}
    assert build_weighting("fixed", names, weights)(loss, sigma, task).tolist() == [2.0, 3.0]
    assert build_weighting("sum", names, None)(loss, sigma, task).tolist() == [1.0, 1.0]
    learned = build_weighting("uncertainty", names, None)
    assert isinstance(learned, Uncertainty) and learned.head.out_features == 2
    assert not list(build_weighting("sum", names, None).parameters())


# --- sums ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("cut", [[12], [5, 7], [1] * 12, [3, 3, 3, 3], [0, 11, 1]])
def test_the_parts_of_a_batch_add_up_to_the_sum_of_the_tasks_means(cut):
    random = torch.Generator().manual_seed(0)
    loss = torch.rand(12, generator=random, dtype=torch.float64)
    task = torch.tensor([0, 0, 2, 0, 1, 0, 2, 2, 0, 0, 0, 1])
    counts = torch.bincount(task, minlength=3)
    parts = [
        sum_of_task_means(a, b, counts)
        for a, b in zip(loss.split(cut), task.split(cut), strict=True)
    ]
    expected = sum(loss[task == i].mean() for i in range(3))
    torch.testing.assert_close(sum(parts), expected)


def test_a_task_that_is_absent_adds_nothing():
    loss = torch.rand(4, requires_grad=True)
    task = torch.tensor([0, 2, 0, 2])
    total = sum_of_task_means(loss, task, torch.bincount(task, minlength=4))
    torch.testing.assert_close(total, loss[::2].mean() + loss[1::2].mean())
    total.backward()
    assert loss.grad.isfinite().all()
