"""Where the denoiser answers differently with a class: the mask, and the guidance of an edit."""

import pytest
import torch
from diffusers import EDMEulerScheduler
from gaussian import keyed
from scipy.ndimage import gaussian_filter

from mtl_diffusion.evaluation.bulk import evaluations_of
from mtl_diffusion.evaluation.denoise import generate_denoiser
from mtl_diffusion.pipeline import solver
from mtl_diffusion.pipeline.chains import default_chains
from mtl_diffusion.pipeline.class_mask import relevance
from mtl_diffusion.pipeline.denoiser import CLASS, TASK
from mtl_diffusion.pipeline.pipeline import TASKS, MultiTaskPipeline


@pytest.fixture(scope="module")
def sources():
    return torch.rand(2, 3, 8, 8, generator=keyed(1)[0])


def test_it_is_where_the_class_changes_the_denoised_image_most(pipe, sources):
    with evaluations_of(pipe.unet) as seen:
        mask = pipe.generate_mask(sources, ["cat", "ship"], share=0.25, generator=keyed(2, 3))
    assert seen == [4 * 2]
    generators, squares = keyed(2, 3), []
    with_class = generate_denoiser(pipe, torch.tensor([0, 2]))
    without = generate_denoiser(pipe, torch.tensor([-1, -1]))
    for _ in range(2):
        noise = torch.cat([torch.randn(1, 3, 8, 8, generator=g) for g in generators])
        noisy = 2 * sources - 1 + noise
        with torch.no_grad():
            squares.append((with_class(noisy, 1.0) - without(noisy, 1.0)).square().sum(1))
    for found, one in zip(mask[:, 0], torch.stack(squares).mean(0), strict=True):
        smooth = torch.from_numpy(gaussian_filter(one.double().numpy(), 0.4, mode="reflect"))
        assert found.sum() == 16
        # scipy samples the kernel in space, and the mask's is exact: the edge may differ.
        assert smooth[found == 1].mean() > smooth[found == 0].mean()
        assert (found == (smooth >= smooth.quantile(0.75))).double().mean() > 0.9


def test_an_edit_inside_it_keeps_the_rest(pipe, sources):
    mask = pipe.generate_mask(sources[:1], "ship", generator=keyed(1, 3))
    assert mask.shape == (1, 1, 8, 8) and {*mask.unique().tolist()} == {0.0, 1.0}
    edited = pipe(
        task="edit",
        image=sources[:1],
        class_label="ship",
        mask_image=mask,
        num_inference_steps=2,
        generator=keyed(1, 5),
        output_type="pt",
    ).images
    changed = (edited != sources[:1]).any(1)
    assert torch.equal(changed & (mask[:, 0] == 0), torch.zeros_like(changed)) and changed.any()


def test_each_image_has_a_mask_of_its_own(pipe, sources):
    both = pipe.generate_mask(sources, "cat", generator=keyed(2, 3))
    alone = pipe.generate_mask(sources[1:], "cat", generator=keyed(1, 4))
    assert torch.equal(both[1:], alone)
    one = pipe.generate_mask(sources[0], ["cat", "ship"], share=1, generator=keyed(2, 3))
    assert one.shape == (2, 1, 8, 8) and one.all()


def test_a_model_of_few_steps_compares_at_a_level_that_it_knows(pipe, sources, monkeypatch):
    chains = default_chains(80.0)
    few = MultiTaskPipeline(
        pipe.unet, pipe.tokenizer, pipe.scheduler, [[3 * s for s in levels] for levels in chains]
    )
    seen = []
    monkeypatch.setattr(
        MultiTaskPipeline,
        "_difference",
        lambda self, noisy, sigma, conditioning: seen.append(sigma) or noisy[:, :1],
    )
    few.generate_mask(sources, "cat", generator=keyed(2, 3))
    assert seen == pytest.approx([0.72] * 2)


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"share": 0}, "share is 0; it must be above 0"),
        ({"share": "half"}, "share is 'half'; it must be a number from 0 to 1"),
        ({"class_label": [None]}, "class_label has None in it; a mask needs a class"),
        ({"class_label": "horse"}, "horse"),
        ({"image": torch.rand(3, 4, 4)}, "image"),
    ],
)
def test_faults_name_the_argument(pipe, sources, arguments, message):
    with pytest.raises(ValueError, match=message):
        pipe.generate_mask(**{"image": sources, "class_label": "cat"} | arguments)


def test_a_model_that_does_not_generate_is_refused(build_pipe, sources):
    with pytest.raises(ValueError, match="task is 'generate'; this model knows edit"):
        build_pipe(tasks=("edit",)).generate_mask(sources, "cat")


def test_relevance_is_1_where_the_difference_is_its_mean_over_the_painted_pixels():
    difference = torch.tensor([[2.0, 6.0, 4.0, 100.0], [0.0, 0.0, 0.0, 5.0]]).view(2, 1, 2, 2)
    painted = torch.tensor([1.0, 1.0, 1.0, 0.0]).view(1, 1, 2, 2).expand(2, 1, 2, 2)
    found = relevance(difference, painted)
    assert found[0].flatten().tolist() == pytest.approx([4 / 6, 12 / 10, 1, 200 / 104])
    # Where the class makes no difference at all, nothing is divided by zero.
    assert found[1].flatten().tolist() == [0, 0, 0, 2]


@pytest.fixture
def passed(monkeypatch):
    """The guidance scale and the local guidance of each evaluation of the solver."""
    seen, own = [], solver.predict_guided

    def guided(unet, scheduler, x, sigma, conditioning, null, scale, image_scale, local):
        seen.append((scale, local))
        return own(unet, scheduler, x, sigma, conditioning, null, scale, image_scale, local)

    monkeypatch.setattr(solver, "predict_guided", guided)
    return seen


def edit(pipe, sources, strength=0.5, seeds=(5, 6), **arguments):
    return pipe(
        task="edit",
        image=sources,
        class_label="ship",
        strength=strength,
        num_inference_steps=2,
        generator=[keyed(1, seed)[0] for seed in seeds],
        output_type="latent",
        **arguments,
    ).images


def test_an_edit_is_guided_where_the_class_makes_a_difference(pipe, sources, passed):
    edit(pipe, sources)
    assert [scale for scale, _ in passed] == [TASKS["edit"].default_guidance_scale] * 2
    weight = passed[0][1].weight
    assert weight.shape == (2, 1, 8, 8) and torch.equal(weight, passed[1][1].weight)
    assert (weight >= 0).all() and (weight < 2).all() and weight.std() > 0.01


def test_generate_guides_it_towards_the_class_and_away_from_that_of_the_source(
    pipe, sources, passed
):
    vocabulary = pipe.vocabulary
    for source_class, base in (("cat", vocabulary.classes["cat"]), (None, vocabulary.null)):
        passed.clear()
        edit(pipe, sources, source_class=source_class)
        for _, local in passed:
            for part, task, label in (
                (local.guide, "generate", vocabulary.classes["ship"]),
                (local.base, "edit", base),
            ):
                assert part.tokens[:, TASK].argmax(-1).tolist() == [vocabulary.tasks[task]] * 2
                assert part.tokens[:, CLASS].argmax(-1).tolist() == [label] * 2
            # Generate knows nothing of the source, and paints everything.
            assert (local.guide.image == 0).all() and (local.guide.mask == 1).all()
            assert local.base.image.std() > 0.1


def test_the_class_of_the_source_is_one_for_each_image_or_none(pipe, sources):
    both = edit(pipe, sources, source_class=["cat", "ship"])
    for i, name in enumerate(("cat", "ship")):
        alone = edit(pipe, sources[i : i + 1], seeds=(5 + i,), source_class=name)
        torch.testing.assert_close(both[i : i + 1], alone)
    assert torch.equal(edit(pipe, sources), edit(pipe, sources, source_class=[None, None]))
    assert (both - edit(pipe, sources)).abs().mean() > 1e-3


def test_it_depends_on_an_image_and_its_noise_alone(pipe, sources, passed):
    both = edit(pipe, sources)
    alone = edit(pipe, sources[1:], seeds=(6,))
    torch.testing.assert_close(both[1:], alone)
    torch.testing.assert_close(passed[0][1].weight[1:], passed[-1][1].weight)


def test_noise_alone_is_guided_everywhere(pipe, sources, passed):
    edit(pipe, sources, strength=[0.5, 1.0])
    by_strength = {bool((local.weight == 1).all()) for _, local in passed}
    assert by_strength == {False, True}


@pytest.mark.parametrize("scale", [0, 1])
def test_without_guidance_nothing_is_compared(pipe, sources, passed, scale):
    edit(pipe, sources, guidance_scale=scale)
    assert passed == [(scale, None)] * 2


def test_noise_alone_is_not_compared(pipe, sources, passed):
    with evaluations_of(pipe.unet) as seen:
        edit(pipe, sources, strength=1)
    assert seen[0] == 2 * 2 * 3  # images, steps, branches
    assert all((local.weight == 1).all() for _, local in passed) and len(passed) == 2


def test_a_callback_can_turn_guidance_off(pipe, sources, passed):
    def callback(pipe, i, timestep, tensors):
        pipe._guidance_scale = 1.0
        return tensors

    edit(pipe, sources, callback_on_step_end=callback)
    assert passed[0][0] > 1 and passed[1][0] == 1


def test_a_model_that_does_not_generate_guides_itself_everywhere(build_pipe, sources, passed):
    edit(build_pipe(tasks=("edit",)), sources)
    assert passed == [(TASKS["edit"].default_guidance_scale, None)] * 2


def test_a_model_of_few_steps_takes_no_class_of_the_source(pipe, sources):
    few = MultiTaskPipeline(pipe.unet, pipe.tokenizer, pipe.scheduler, default_chains(80.0))
    few.scheduler = EDMEulerScheduler.from_config(pipe.scheduler.config)
    with pytest.raises(ValueError, match="source_class is given; a model of few steps"):
        edit(few, sources, source_class="cat")
