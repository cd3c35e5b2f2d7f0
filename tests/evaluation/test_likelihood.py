"""Bits per dimension, for images whose density is known."""

import math

import pytest
import torch
from gaussian import DIM, SHAPE, Gaussian, correlated, keyed

from mtl_diffusion.evaluation.bulk import evaluations_of
from mtl_diffusion.evaluation.methods.denoisers import generate_denoiser
from mtl_diffusion.evaluation.methods.density import bits_per_dim, denoised_and_trace, log_density
from mtl_diffusion.tools.tensors import to_unit_range

LEVELS = {"low": 0.002, "high": 80.0}


def exact(model, x, low=0.002, high=80.0):
    """ln p(x) by the change of variables of the whole flow at once: it is linear."""
    top = model.flowed(x.flatten(1), low, high)
    values = torch.linalg.eigvalsh(model.covariance)
    volume = 0.5 * ((values + high**2) / (values + low**2)).log().sum()
    prior = -(top**2).sum(1) / (2 * high**2) - DIM / 2 * math.log(2 * math.pi * high**2)
    return prior + volume


def to_bytes(x):
    return ((x + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)


def probes(D, x, sigma, n):
    return torch.stack(
        [denoised_and_trace(D, x, sigma, keyed(len(x), 100 * i))[1] for i in range(n)]
    )


def test_the_trace_is_exact_without_correlations_and_unbiased_with_them():
    x = torch.randn(3, *SHAPE)
    plain = Gaussian(0.1, 0.25)
    for sigma in (0.01, 0.5, 20.0):
        denoised, trace = denoised_and_trace(plain, x, sigma, keyed(3))
        assert torch.equal(denoised, plain(x, sigma))
        assert trace.tolist() == pytest.approx([DIM * 0.25 / (0.25 + sigma**2)] * 3, rel=1e-5)
    tied = Gaussian(0.1, correlated(0.5))
    gain = tied.gain(0.5)
    found = probes(tied, x, 0.5, 400)
    off_diagonal = (gain - gain.diag().diag()).square().sum()
    spread = (2 * off_diagonal).sqrt()  # of random signs, for a symmetric matrix
    assert found.std().item() == pytest.approx(spread.item(), rel=0.1)
    assert abs(found.mean() - gain.trace()) < 4 * spread / math.sqrt(found.numel())


def test_the_trace_is_that_of_the_networks_jacobian(pipe):
    """By central differences, one for each pixel, beside as many random probes."""
    D = generate_denoiser(pipe, torch.ones(192, dtype=torch.long))
    x, step = torch.randn(1, 3, 8, 8).expand(192, -1, -1, -1), 0.01 * torch.eye(192)
    step = step.view_as(x)
    _, found = denoised_and_trace(D, x, 0.5, keyed(192))
    with torch.no_grad():
        trace = ((D(x + step, 0.5) - D(x - step, 0.5)) * step).sum() / (2 * 0.01**2)
    assert found.std() > 0 and abs(found.mean() - trace) < 4 * found.std() / 192**0.5


@pytest.mark.parametrize("covariance", [0.05, correlated(0.3)], ids=["independent", "correlated"])
def test_the_density_is_that_of_the_flow_to_second_order(covariance, monkeypatch):
    model = Gaussian(0.2, covariance)
    x = model.sample(4)

    def exact_trace(D, x, sigma, generators):
        return D(x, sigma), model.gain(float(sigma[0])).trace().expand(len(x))

    monkeypatch.setattr("mtl_diffusion.evaluation.methods.density.denoised_and_trace", exact_trace)
    truth = exact(model, x)
    found = (log_density(model, x, keyed(4), **LEVELS, steps=steps) for steps in (32, 64, 128))
    error = [(one - truth).abs().max().item() / DIM for one in found]
    assert error[2] < 0.004
    assert error[0] > 3 * error[1] > 9 * error[2]  # four times smaller for twice the steps
    # The flow's own density is the data's but for the prior, which takes no account of the data.
    noisy = model.covariance + 0.002**2 * torch.eye(DIM)
    data = torch.distributions.MultivariateNormal(model.mean, noisy).log_prob(x.flatten(1))
    torch.testing.assert_close(truth, data, atol=0.02, rtol=0)


def test_bits_per_dim_of_a_gaussian_are_its_cross_entropy():
    s = 0.25
    model = Gaussian(0.1, s**2)
    images = to_bytes(model.sample(64))
    found = bits_per_dim(model, to_unit_range(images), keyed(64), 2 / 255, **LEVELS, steps=128)
    assert found.shape == (64,) and found.dtype == torch.float64
    # -log2 of the density of a pixel uniform in its bin, in units of bins, for each image
    variance = s**2 + 0.002**2
    squares = (to_unit_range(images).double() - 0.1).square() + (2 / 255) ** 2 / 12
    nats = 0.5 * math.log(2 * math.pi * variance) + squares / (2 * variance) - math.log(2 / 255)
    truth = nats.flatten(1).mean(1) / math.log(2)
    torch.testing.assert_close(found, truth, atol=0.02, rtol=0)
    assert abs(found.mean() - truth.mean()) < 0.004
    # and over the images, the entropy of the Gaussian, whose standard deviation is 31.9 bins
    entropy = math.log2(s * 127.5 * math.sqrt(2 * math.pi * math.e))
    assert found.mean().item() == pytest.approx(
        entropy, abs=3 / math.sqrt(2 * 64 * DIM) / math.log(2)
    )


def test_a_batch_gives_what_its_images_give_alone(pipe):
    pixels = torch.randint(256, (3, 3, 8, 8), generator=torch.Generator().manual_seed(0))
    images = to_unit_range(pixels)
    labels, ode = torch.tensor([0, -1, 2]), {**LEVELS, "steps": 8}
    D = generate_denoiser(pipe, labels)
    with torch.no_grad(), evaluations_of(pipe.unet) as seen:
        batch = bits_per_dim(D, images, keyed(3), 2 / 255, **ode)
    assert seen == [3 * (8 + 1)]
    assert batch.isfinite().all() and not batch.requires_grad
    for i in range(3):
        own = generate_denoiser(pipe, labels[i : i + 1])
        alone = bits_per_dim(own, images[i : i + 1], keyed(1, first=i), 2 / 255, **ode)
        torch.testing.assert_close(batch[i : i + 1], alone, atol=1e-4, rtol=1e-4)
    assert not torch.equal(batch, bits_per_dim(D, images, keyed(3, first=9), 2 / 255, **ode))
    assert all(p.grad is None for p in pipe.unet.parameters())
