import pytest
import torch
from drawing import randn

from mtl_diffusion.pipeline.denoiser import (
    CLASS,
    STRENGTH,
    TASK,
    Conditioning,
    Denoiser,
    Guidance,
    build_conditioning,
    predict,
)
from mtl_diffusion.pipeline.pipeline import TASKS
from mtl_diffusion.pipeline.task import Hint

SIGMA_DATA = 0.5


def conditioning(pipe, n=3, strength=0.4):
    mask = (randn(n, 1, 8, 8, seed=5) > 0).float()
    hint = Hint(randn(n, 3, 8, 8, seed=6), mask, torch.full((n,), strength))
    return build_conditioning(hint, TASKS["edit"], torch.arange(n) % 3, pipe.vocabulary)


def sigmas(*values):
    return torch.tensor(values).view(-1, 1, 1, 1)


class Counting(torch.nn.Module):
    """The pipeline's UNet, writing down how many samples each call has."""

    def __init__(self, unet):
        super().__init__()
        self.unet, self.batches = unet, []

    @property
    def dtype(self):
        return self.unet.dtype

    def forward(self, channels, *args, **kwargs):
        self.batches.append(len(channels))
        return self.unet(channels, *args, **kwargs)


def test_conditioning_has_task_class_and_strength(pipe):
    vocabulary = pipe.vocabulary
    hint = Hint(randn(2, 3, 8, 8), torch.ones(2, 1, 8, 8), torch.tensor([1.0, torch.nan]))
    given = build_conditioning(hint, TASKS["inpaint"], torch.tensor([2, -1]), vocabulary)
    null = vocabulary.null
    assert given.tokens.argmax(-1).tolist() == [
        [vocabulary.tasks["inpaint"], vocabulary.classes["ship"], vocabulary.strengths[-1]],
        [vocabulary.tasks["inpaint"], null, null],
    ]
    assert given.image is hint.image and given.mask is hint.mask and len(given) == 2


@torch.no_grad()
def test_predict_is_the_network_of_edm(pipe):
    """Table 1 of Karras et al. 2022, written out; D from F as in their equation 7."""
    given, sigma = conditioning(pipe), sigmas(0.01, 0.7, 50.0)
    clean, eps = randn(3, 3, 8, 8, seed=1) * SIGMA_DATA, randn(3, 3, 8, 8, seed=2)
    x = clean + sigma * eps
    c_in = 1 / (sigma**2 + SIGMA_DATA**2) ** 0.5
    c_noise = sigma.log() / 4
    c_skip = SIGMA_DATA**2 / (sigma**2 + SIGMA_DATA**2)
    c_out = sigma * SIGMA_DATA / (sigma**2 + SIGMA_DATA**2) ** 0.5

    shown = given.image / SIGMA_DATA
    painted = given.mask * c_in * x + (1 - given.mask) * shown
    seen = torch.cat([painted, shown, given.mask], dim=1)
    assert seen.shape[1] == 7
    expected = pipe.unet(
        seen, c_noise.flatten(), given.tokens, class_labels=given.tokens.flatten(1)
    ).sample
    F = predict(pipe.unet, pipe.scheduler, x, sigma, given)
    torch.testing.assert_close(F, expected)
    torch.testing.assert_close(
        pipe.scheduler.precondition_outputs(x, F, sigma), c_skip * x + c_out * expected
    )


@torch.no_grad()
@pytest.mark.parametrize("part", ["image", "mask", "task", "class", "strength", "sigma", "noisy"])
def test_everything_it_is_told_reaches_the_output(pipe, part):
    given, sigma, x = conditioning(pipe), sigmas(0.5, 0.5, 0.5), randn(3, 3, 8, 8)
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


@pytest.mark.parametrize("shape", [(8,), (8, 3, 8, 8), ()])
def test_sigma_of_another_shape_is_refused(pipe, shape):
    """(B,) would broadcast along the width where B is the width, as it is here."""
    given = conditioning(pipe, 8)
    with pytest.raises(ValueError, match=r"sigma has shape .* must be \(8, 1, 1, 1\)"):
        predict(pipe.unet, pipe.scheduler, randn(8, 3, 8, 8), torch.ones(shape), given)


def without(given, null, image=False, word=False):
    """The conditioning of F(I, 0) and F(0, 0), built by hand."""
    shown, tokens = given.image.clone(), given.tokens.clone()
    if image:
        shown[given.mask.expand_as(shown) == 1] = 0
        tokens[:, 2] = torch.eye(tokens.shape[-1])[null]
    if word:
        tokens[:, 1] = torch.eye(tokens.shape[-1])[null]
    return Conditioning(shown, given.mask, tokens)


def guidance(pipe, unet, given):
    return Guidance.of(unet, pipe.scheduler, given, pipe.vocabulary.null)


@torch.no_grad()
@pytest.mark.parametrize(
    "s_C, s_I, evaluations",
    [
        (1.0, 1.0, 1),  # D(I, c)
        (0.0, 1.0, 1),  # D(I, 0)
        (0.0, 0.0, 1),  # D(0, 0)
        (3.0, 1.0, 2),
        (0.5, 1.0, 2),
        (2.0, 2.0, 2),
        (1.0, 0.0, 3),
        (1.0, 1.5, 3),
        (3.0, 1.5, 3),
    ],
)
def test_guidance_is_its_formula_in_one_call(pipe, s_C, s_I, evaluations):
    given, sigma, x = conditioning(pipe), sigmas(0.1, 1.0, 10.0), randn(3, 3, 8, 8)
    null = pipe.vocabulary.null

    def F(**dropped):
        return predict(pipe.unet, pipe.scheduler, x, sigma, without(given, null, **dropped))

    nothing, image = F(image=True, word=True), F(word=True)
    expected = nothing + s_I * (image - nothing) + s_C * (F() - image)
    unet = Counting(pipe.unet)
    guided = guidance(pipe, unet, given).denoiser(s_C, s_I).output(x, sigma)
    torch.testing.assert_close(guided, expected, atol=1e-5, rtol=1e-4)
    assert unet.batches == [3 * evaluations]
    assert (nothing - image).abs().max() > 1e-2 and (F() - image).abs().max() > 1e-2


@torch.no_grad()
@pytest.mark.parametrize("which", ["class", "image"])
@pytest.mark.parametrize("scale", [0.0, 1.0, 2.5])
def test_guidance_is_continuous_in_each_scale(pipe, which, scale):
    """Also at 0 and at 1, where a branch is left out."""
    given, x = guidance(pipe, pipe.unet, conditioning(pipe)), randn(3, 3, 8, 8)

    def D(scale):
        scales = (scale, 1.5) if which == "class" else (2.0, scale)
        return given.denoiser(*scales)(x, 0.7)

    slope = (D(scale + 1) - D(scale)).abs().max().item()
    step = (D(scale + 1e-3) - D(scale)).abs().max().item()
    assert slope > 1e-3 and step == pytest.approx(1e-3 * slope, rel=0.1)


@torch.no_grad()
def test_weights_intervals_and_levels_may_be_each_samples_own(pipe):
    """As of a batch of one sample each, with numbers; what has no weight is not evaluated."""
    given, sigma, x = conditioning(pipe), sigmas(0.1, 1.0, 10.0), randn(3, 3, 8, 8)
    scale, low, high = sigmas(3.0, 1.0, 2.0), sigmas(0.0, 0.0, 20.0), sigmas(9.0, 9.0, 30.0)
    unet = Counting(pipe.unet)
    found = guidance(pipe, unet, given).denoiser(scale, interval=(low, high))(x, sigma)
    assert unet.batches == [3 + 1]  # the second has the scale 1, the third is outside
    for i in range(3):
        numbers = (low[i].item(), high[i].item())
        alone = guidance(pipe, pipe.unet, given[[i]])
        alone = alone.denoiser(scale[i].item(), interval=numbers)(x[[i]], sigma[i].item())
        torch.testing.assert_close(found[[i]], alone, atol=1e-5, rtol=1e-4)
        part = guidance(pipe, pipe.unet, given)[[i]].denoiser(
            scale[[i]], 1.0, (low[[i]], high[[i]])
        )
        torch.testing.assert_close(part(x[[i]], sigma[[i]]), alone, atol=1e-5, rtol=1e-4)


@torch.no_grad()
def test_another_task_may_guide_each_pixel(pipe):
    given, sigma, x = conditioning(pipe), sigmas(0.1, 1.0, 10.0), randn(3, 3, 8, 8)
    toward, away = given[[1, 2, 0]], given[[1, 2, 0]].without(CLASS, pipe.vocabulary.null)
    weight, unet = 2 * torch.rand(3, 1, 8, 8), Counting(pipe.unet)

    def denoiser(conditioning, unet=pipe.unet):
        return Denoiser.of(unet, pipe.scheduler, conditioning)

    def composed(unet):
        return denoiser(given, unet) + weight * (denoiser(toward, unet) - denoiser(away, unet))

    direction = denoiser(toward)(x, sigma) - denoiser(away)(x, sigma)
    expected = denoiser(given)(x, sigma) + weight * direction
    torch.testing.assert_close(composed(unet)(x, sigma), expected, atol=1e-5, rtol=1e-4)
    assert unet.batches == [9] and direction.abs().max() > 1e-3


def test_a_dropped_image_is_hidden_in_the_mask_and_its_strength_with_it(pipe):
    given, null = conditioning(pipe), pipe.vocabulary.null
    image = given.image.clone()
    rows = torch.tensor([True, False, True])
    for dropped, gone in (
        (given.without_image(null), torch.ones(3).bool()),
        (given.without_image(null, rows), rows),
    ):
        hole = (given.mask == 1).expand_as(image)
        hidden = hole & gone[:, None, None, None]
        assert (dropped.image[hidden] == 0).all()
        assert torch.equal(dropped.image[~hidden], image[~hidden])
        assert (dropped.tokens[gone, STRENGTH].argmax(-1) == null).all()
        assert torch.equal(dropped.tokens[~gone], given.tokens[~gone])
        assert torch.equal(dropped.tokens[:, :2], given.tokens[:, :2])
    assert torch.equal(given.image, image)
