import pytest
import torch
from drawing import randn

from mtl_diffusion.pipeline.denoiser import (
    CLASS,
    STRENGTH,
    TASK,
    Conditioning,
    Denoiser,
    build_conditioning,
    guided,
    predict,
)
from mtl_diffusion.pipeline.pipeline import TASKS
from mtl_diffusion.pipeline.task import Hint


def column(*values: float) -> torch.Tensor:
    return torch.tensor(values).float().view(-1, 1, 1, 1)


SIGMA_DATA = 0.5
X, SIGMA = randn(3, 3, 8, 8), column(0.1, 1, 10)
assert_close = torch.testing.assert_close


def conditioning(pipe, n=3):
    mask = (randn(n, 1, 8, 8, seed=5) > 0).float()
    hint = Hint(randn(n, 3, 8, 8, seed=6), mask, torch.full((n,), 0.4))
    return build_conditioning(hint, TASKS["edit"], torch.arange(n) % 3, pipe.vocabulary)


def guidance(pipe, given, *scales):
    return guided(pipe.unet, pipe.scheduler, given, pipe.vocabulary.null, *scales)


@torch.no_grad()
def test_predict_is_the_network_of_edm(pipe):
    """Table 1 of Karras et al. 2022, written out; D from F as in their equation 7."""
    given = conditioning(pipe)
    x = randn(3, 3, 8, 8, seed=1) * SIGMA_DATA + SIGMA * randn(3, 3, 8, 8, seed=2)
    c_in = 1 / (SIGMA**2 + SIGMA_DATA**2) ** 0.5
    c_noise = SIGMA.log() / 4
    c_skip = SIGMA_DATA**2 / (SIGMA**2 + SIGMA_DATA**2)
    c_out = SIGMA * SIGMA_DATA / (SIGMA**2 + SIGMA_DATA**2) ** 0.5

    shown = given.image / SIGMA_DATA
    painted = given.mask * c_in * x + (1 - given.mask) * shown
    seen = torch.cat([painted, shown, given.mask], dim=1)
    assert seen.shape[1] == 7
    tokens = {"encoder_hidden_states": given.tokens, "class_labels": given.tokens.flatten(1)}
    expected = pipe.unet(seen, c_noise.flatten(), **tokens).sample
    assert_close(predict(pipe.unet, pipe.scheduler, x, SIGMA, given), expected)
    D = Denoiser.of(pipe.unet, pipe.scheduler, given)(x, SIGMA)
    assert_close(D, c_skip * x + c_out * expected)


@torch.no_grad()
@pytest.mark.parametrize("part", ["image", "mask", "task", "class", "strength", "sigma", "noisy"])
def test_everything_it_is_told_reaches_the_output(pipe, part):
    given, sigma, x = conditioning(pipe), torch.full_like(SIGMA, 0.5), X
    before = predict(pipe.unet, pipe.scheduler, x, sigma, given)
    places = {"task": TASK, "class": CLASS, "strength": STRENGTH}
    if part in places:
        given = given.without(places[part], pipe.vocabulary.null)
    elif part == "sigma":
        sigma = sigma * 2
    elif part == "noisy":
        x = -x
    else:
        changed = {"image": given.image, "mask": given.mask} | {part: 1 - getattr(given, part)}
        given = Conditioning(**changed, tokens=given.tokens)
    after = predict(pipe.unet, pipe.scheduler, x, sigma, given)
    assert ((after - before).abs().amax((1, 2, 3)) > 1e-4).all()


def test_sigma_of_another_shape_is_refused(pipe):
    """(B,) would broadcast along the width where B is the width, as it is here."""
    given = conditioning(pipe, 8)
    with pytest.raises(ValueError, match=r"sigma has shape .* must be \(8, 1, 1, 1\)"):
        predict(pipe.unet, pipe.scheduler, randn(8, 3, 8, 8), torch.ones(8), given)


def without(given, null, image=False, word=False):
    """The conditioning of F(I, 0) and F(0, 0), built by hand."""
    shown, tokens = given.image.clone(), given.tokens.clone()
    if image:
        shown[given.mask.expand_as(shown) == 1] = 0
        tokens[:, 2] = torch.eye(tokens.shape[-1])[null]
    if word:
        tokens[:, 1] = torch.eye(tokens.shape[-1])[null]
    return Conditioning(shown, given.mask, tokens)


def test_an_image_may_be_dropped_from_some_samples(pipe):
    given, null = conditioning(pipe), pipe.vocabulary.null
    rows, dropped = torch.tensor([True, False, True]), without(given, null, image=True)
    found = given.without_image(null, rows)
    for name in ("image", "tokens"):
        assert torch.equal(getattr(found, name)[rows], getattr(dropped, name)[rows])
        assert torch.equal(getattr(found, name)[~rows], getattr(given, name)[~rows])


@torch.no_grad()
@pytest.mark.parametrize(
    "s_C, s_I, evaluations",
    [
        (1.0, 1.0, 1),  # D(I, c)
        (0.0, 1.0, 1),  # D(I, 0)
        (0.0, 0.0, 1),  # D(0, 0)
        (3.0, 1.0, 2),
        (2.0, 2.0, 2),
        (1.0, 0.0, 3),
        (3.0, 1.5, 3),
    ],
)
def test_guidance_is_its_formula_in_one_call(pipe, batches, s_C, s_I, evaluations):
    given, null = conditioning(pipe), pipe.vocabulary.null

    def F(**dropped):
        return predict(pipe.unet, pipe.scheduler, X, SIGMA, without(given, null, **dropped))

    nothing, image = F(image=True, word=True), F(word=True)
    expected = nothing + s_I * (image - nothing) + s_C * (F() - image)
    batches.clear()
    found = guidance(pipe, given, s_C, s_I).output(X, SIGMA)
    assert_close(found, expected, atol=1e-5, rtol=1e-4)
    assert batches == [3 * evaluations]
    assert (nothing - image).abs().max() > 1e-2 and (F() - image).abs().max() > 1e-2


@torch.no_grad()
def test_weights_intervals_and_levels_may_be_each_samples_own(pipe, batches):
    """As of a batch of one sample each, with numbers; what has no weight is not evaluated."""
    given = conditioning(pipe)
    scale, low, high = column(3, 1, 2), column(0, 0, 20), column(9, 9, 30)
    found = guidance(pipe, given, scale, 1.0, (low, high))(X, SIGMA)
    assert batches == [3 + 1]  # the second has the scale 1, the third is outside
    for i in range(3):
        one = given[[i]]
        numbers = guidance(pipe, one, scale[i].item(), 1.0, (low[i].item(), high[i].item()))
        expected = numbers(X[[i]], SIGMA[i].item())
        assert_close(found[[i]], expected, atol=1e-5, rtol=1e-4)
        tensors = guidance(pipe, one, scale[[i]], 1.0, (low[[i]], high[[i]]))
        assert_close(tensors(X[[i]], SIGMA[[i]]), expected, atol=1e-5, rtol=1e-4)


@torch.no_grad()
def test_another_task_may_guide_each_pixel(pipe, batches):
    given = conditioning(pipe)
    toward, away = given[[1, 2, 0]], given[[1, 2, 0]].without(CLASS, pipe.vocabulary.null)
    base, to, from_ = (
        Denoiser.of(pipe.unet, pipe.scheduler, each) for each in (given, toward, away)
    )
    weight, direction = 2 * torch.rand(3, 1, 8, 8), to(X, SIGMA) - from_(X, SIGMA)
    batches.clear()
    found = (base + weight * (to - from_))(X, SIGMA)
    assert batches == [9] and direction.abs().max() > 1e-3
    assert_close(found, base(X, SIGMA) + weight * direction, atol=1e-5, rtol=1e-4)
