"""Inpainting and editing with the generate task alone, where the right answer is known."""

import math

import pytest
import torch
from gaussian import SHAPE, Gaussian, correlated, karras, keyed

from mtl_diffusion.editing.ode import ode_end
from mtl_diffusion.evaluation.bulk import evaluations_of
from mtl_diffusion.evaluation.methods.ddim_inversion import ddim_inversion
from mtl_diffusion.evaluation.methods.denoisers import generate_denoiser, noise_levels
from mtl_diffusion.evaluation.methods.flowedit import flowedit
from mtl_diffusion.evaluation.methods.repaint import repaint
from mtl_diffusion.evaluation.methods.sdedit import sdedit

PIXELS = (3, 8, 8)  # of the pipeline's images


def images(n, shape=SHAPE, seed=0):
    random = torch.Generator().manual_seed(seed)
    return torch.rand(n, *shape, generator=random) * 2 - 1


def largest(difference):
    return difference.abs().max().item()


def hole():
    mask = torch.zeros(1, 1, 2, 2)
    mask[..., 0] = 1
    return mask


def test_many_steps_give_what_the_pipeline_gives(build_pipe):
    pipe = build_pipe()
    with torch.no_grad():
        pipe.unet.conv_out.weight *= 0.1  # so that many steps of any solver can follow the flow
    label, noise = torch.tensor([0, 2]), torch.randn(2, *PIXELS, generator=keyed(1)[0])
    theirs = pipe(
        task="generate",
        class_label=label.tolist(),
        guidance_scale=2.5,
        guidance_interval=(0, math.inf),
        num_inference_steps=60,
        latents=noise,
        output_type="latent",
    ).images
    high = torch.full((2, 1, 1, 1), noise_levels(pipe.scheduler, 5)[0])

    def ours(label):
        with torch.no_grad():
            return ode_end(generate_denoiser(pipe, label, 2.5), high * noise, high, 0 * high, 90)

    torch.testing.assert_close(ours(label), theirs, atol=0.02, rtol=0)
    assert largest(ours(label.flip(0)) - theirs) > 0.04  # the class counts for more


def test_repaint_paints_the_mean_and_spread_that_the_known_pixels_leave():
    """As far as its steps go: many resamplings bring the mean, many steps the spread."""
    n = 300
    model = Gaussian(0.1, correlated(0.3))
    image = images(1).expand(n, *SHAPE)
    mask = hole().expand(n, -1, -1, -1)
    found = repaint(model, image, mask, karras(50), keyed(n), resamplings=20)
    inside = hole().expand(1, *SHAPE).flatten() > 0
    C, mean, known = model.covariance, model.mean, image[0].flatten().double()[~inside]
    gain = torch.linalg.solve(C[~inside][:, ~inside], C[~inside][:, inside]).T
    shift = gain @ (known - mean[~inside])
    spread = (C[inside][:, inside] - gain @ C[~inside][:, inside]).diag().sqrt()
    painted = found.flatten(1).double()[:, inside]
    assert largest(shift) > 0.4  # what is known counts
    assert largest(painted.mean(0) - mean[inside] - shift) < 0.15 * largest(shift)
    assert 0.8 < (painted.std(0) / spread).mean() < 1.05


def test_repaint_keeps_known_pixels_exactly_and_paints_the_others():
    image, mask = images(3), hole().expand(3, -1, -1, -1)
    model = Gaussian(0.0, 0.25)
    found = repaint(model, image, mask, karras(5), keyed(3), resamplings=3)
    known = (mask == 0).expand_as(image)
    assert torch.equal(found[known], image[known])
    assert (found != image)[~known].all() and found.dtype == torch.float32
    assert model.evaluations == (5 - 1) * 3 + 1
    # What is in the hole counts for nothing.
    other = torch.where(known, image, -image)
    assert torch.equal(repaint(model, other, mask, karras(5), keyed(3), resamplings=3), found)


def test_sdedit_runs_from_the_source_to_the_target():
    source, each = images(4), Gaussian(0.3, 0.09)
    assert torch.equal(sdedit(each, source, 0.0, 20, keyed(4)), source)
    full = sdedit(each, source, 80.0, 20, keyed(4))
    assert largest(full - sdedit(each, -source, 80.0, 20, keyed(4))) < 0.02
    n, sigma = 4000, 0.4
    found = sdedit(each, source[:1].expand(n, *SHAPE), sigma, 40, keyed(n))
    shrink = math.sqrt(0.09 / (0.09 + sigma**2))  # the flow keeps quantiles
    expected = 0.3 + shrink * (source[0] - 0.3)
    assert largest(found.mean(0) - expected) < 0.03
    assert found.std(0).mean().item() == pytest.approx(shrink * sigma, rel=0.03)


def test_ddim_inversion_keeps_the_quantile():
    """From the highest level it maps one Gaussian onto the other."""
    source = images(4) * 0.5
    ours, theirs = Gaussian(-0.2, 0.04), Gaussian(0.3, 0.16)
    found = ddim_inversion(ours, theirs, source, 80.0, 150, 150)
    torch.testing.assert_close(found, 0.3 + 2 * (source + 0.2), atol=0.03, rtol=0)
    assert torch.equal(ddim_inversion(ours, theirs, source, 0.01, 20, 20), source)


@pytest.mark.parametrize("strength", [0.4, 1.0])
def test_flowedit_with_one_class_on_both_sides_returns_the_source_exactly(strength):
    source, model = images(4), Gaussian(0.1, correlated(0.4))
    assert torch.equal(flowedit(model, model, source, karras(10), strength, keyed(4)), source)


def test_flowedit_moves_by_the_difference_of_the_means():
    source, s, sigmas = images(4), 0.5, karras(200)
    ours, theirs = Gaussian(-0.2, s**2), Gaussian(0.3, s**2)
    full = flowedit(ours, theirs, source, sigmas, 1.0, keyed(4)) - source
    torch.testing.assert_close(full, torch.full_like(full, 0.5), atol=0.02, rtol=0)
    half = flowedit(ours, theirs, source, sigmas, 0.5, keyed(4)) - source
    share = 1 - s / math.sqrt(s**2 + sigmas[100] ** 2)  # the last half of the steps
    assert 0.1 < share < 0.9
    torch.testing.assert_close(half, torch.full_like(half, 0.5 * share), atol=0.02, rtol=0)


def test_a_batch_gives_what_its_images_give_alone(pipe):
    image, sigmas = images(3, PIXELS), noise_levels(pipe.scheduler, 5)
    ours, theirs = torch.tensor([0, 1, -1]), torch.tensor([1, 2, 0])
    column = (torch.arange(8) != 1).float()

    def run(rows, first):
        x, source = image[rows], generate_denoiser(pipe, ours[rows])
        target = generate_denoiser(pipe, theirs[rows], 2.0)
        random, mask = keyed(len(x), first), column.expand(len(x), 1, 8, 8)
        return [
            repaint(target, x, mask, sigmas, random, resamplings=3),
            sdedit(target, x, 1.5, 5, random),
            ddim_inversion(source, target, x, 1.5, 5, 3),
            flowedit(source, target, x, sigmas, 0.6, random),
        ]

    with evaluations_of(pipe.unet) as seen:
        batch = run(slice(None), 0)
    # Of five steps, of FlowEdit three at this strength; the target is guided: double.
    assert seen == [3 * (2 * 13 + 2 * 5 + (3 + 2 * 5) + (3 + 2 * 3))]
    for i in range(3):
        for alone, together in zip(run(slice(i, i + 1), i), batch, strict=True):
            assert not together.requires_grad and together.dtype == torch.float32
            torch.testing.assert_close(together[i : i + 1], alone, atol=1e-3, rtol=1e-3)
