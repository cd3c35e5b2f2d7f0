import pytest
import torch
from drawing import randn

from mtl_diffusion.pipeline.denoiser import (
    CHANNELS,
    CLASS,
    STRENGTH,
    TASK,
    Conditioning,
    LocalGuidance,
    build_conditioning,
    predict,
    predict_guided,
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
    assert seen.shape[1] == CHANNELS
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


@torch.no_grad()
@pytest.mark.parametrize(
    "s_C, s_I, evaluations",
    [
        (1.0, 1.0, 1),  # F(I, c)
        (0.0, 1.0, 1),  # F(I, 0)
        (0.0, 0.0, 1),  # F(0, 0)
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
    guided = predict_guided(unet, pipe.scheduler, x, sigma, given, null, s_C, s_I)
    torch.testing.assert_close(guided, expected, atol=1e-5, rtol=1e-4)
    assert unet.batches == [3 * evaluations]
    assert (nothing - image).abs().max() > 1e-2 and (F() - image).abs().max() > 1e-2


@torch.no_grad()
@pytest.mark.parametrize("s_I", [1.0, 1.5])
def test_another_task_guides_each_pixel(pipe, s_I):
    given, sigma, x = conditioning(pipe), sigmas(0.1, 1.0, 10.0), randn(3, 3, 8, 8)
    null, unet = pipe.vocabulary.null, Counting(pipe.unet)
    guide, base = given[[1, 2, 0]], given[[2, 0, 1]]
    local = LocalGuidance(base, guide, 2 * torch.rand(3, 1, 8, 8))

    def F(conditioning, **dropped):
        return predict(pipe.unet, pipe.scheduler, x, sigma, without(conditioning, null, **dropped))

    def guided(scale, local):
        return predict_guided(unet, pipe.scheduler, x, sigma, given, null, scale, s_I, local)

    nothing, direction = F(base, image=True, word=True), F(guide) - F(guide, word=True)
    expected = nothing + s_I * (F(base) - nothing) + 3 * local.weight * direction
    torch.testing.assert_close(guided(3.0, local), expected, atol=1e-5, rtol=1e-4)
    assert unet.batches == [3 * (3 if s_I == 1 else 4)] and direction.abs().max() > 1e-2
    for off in (0.0, 1.0):
        torch.testing.assert_close(guided(off, local), guided(off, None))


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
