"""Whether a model listens to its task token, and the measurement that says so."""

import pytest
import torch

from mtl_diffusion import loop as train_module
from mtl_diffusion.config import TrainConfig
from mtl_diffusion.data.images import ImageDataset, load_images
from mtl_diffusion.data.shapes import shapes
from mtl_diffusion.loop import train
from mtl_diffusion.pipeline.pipeline import TASKS, MultiTaskPipeline
from mtl_diffusion.training import validation
from mtl_diffusion.training.validation import held_out_loss


def dataset(n=12, seed=0):
    random = torch.Generator().manual_seed(seed)
    images = torch.randint(0, 256, (n, 3, 8, 8), generator=random, dtype=torch.uint8)
    return ImageDataset.of(images, torch.arange(n) % 3, ("cat", "dog", "ship"))


def measure(pipe, data=None, names=tuple(TASKS), num_images=12, **options):
    tasks = [TASKS[name] for name in names]
    data = dataset() if data is None else data
    return held_out_loss(
        pipe.unet, pipe.scheduler, tasks, pipe.vocabulary, data, num_images, **options
    )


def test_ranks_add_up_to_the_whole(pipe):
    whole = measure(pipe, num_images=11)
    parts = [measure(pipe, num_images=11, rank=rank, world=3) for rank in range(3)]
    for name in ("by_image", "zero_by_image"):
        values = torch.stack([getattr(part, name) for part in parts])
        assert ((values != 0).sum(0) == 1).all()  # each image belongs to one rank
        torch.testing.assert_close(values.sum(0), getattr(whole, name), rtol=1e-5, atol=1e-6)


def test_it_is_the_same_each_time_and_a_function_of_the_seed(pipe):
    one, two = measure(pipe), measure(pipe)
    assert torch.equal(one.by_image, two.by_image)
    assert not torch.equal(one.by_image, measure(pipe, seed=1).by_image)
    # The batches it is computed in, and the other tasks, change nothing.
    torch.testing.assert_close(measure(pipe, batch_size=5).by_image, one.by_image)
    alone = measure(pipe, names=["edit"])
    edit = one.tasks.index("edit")
    torch.testing.assert_close(alone.by_image[0], one.by_image[edit])


def test_each_module_is_left_in_its_mode(build_pipe):
    pipe = build_pipe()
    unet = pipe.unet.train()
    unet.mid_block.resnets[0].training = False
    before = [module.training for module in unet.modules()]
    measure(pipe, names=["generate"])
    assert [module.training for module in unet.modules()] == before and unet.training


def test_the_token_is_all_that_a_wrong_token_changes(pipe, monkeypatch):
    inputs = {}
    predict = validation.predict
    for token in ("right", "generate", None):
        seen = inputs[token] = []

        def watch(unet, scheduler, noisy, sigma, conditioning, seen=seen):
            seen.append((noisy, sigma, conditioning))
            return predict(unet, scheduler, noisy, sigma, conditioning)

        monkeypatch.setattr(validation, "predict", watch)
        measure(pipe, names=["edit"], task_token=token)
    words = pipe.vocabulary
    expected = {
        "right": words.tasks["edit"],
        "generate": words.tasks["generate"],
        None: words.null,
    }
    for token, seen in inputs.items():
        for (x, s, c), (x0, s0, c0) in zip(seen, inputs["right"], strict=True):
            assert torch.equal(x, x0) and torch.equal(s, s0) and torch.equal(c.image, c0.image)
            assert torch.equal(c.mask, c0.mask) and torch.equal(c.tokens[:, 1:], c0.tokens[:, 1:])
            assert c.tokens[:, 0].argmax(-1).unique().tolist() == [expected[token]]


@pytest.mark.slow
def test_a_trained_model_needs_its_task_token(tmp_path, monkeypatch):
    """docs/log.md has the same with more steps. Half a minute on a core."""
    for name, share in {"half_grey": 0.5, "grey": 1, "colour": 0}.items():
        (tmp_path / name).mkdir()
        splits = shapes(8, 3200, 400, grey_share=share, class_hues=True)
        for split, rows in splits.items():
            rows.to_parquet(tmp_path / name / f"{split}.parquet")
    monkeypatch.setattr(train_module, "validate", lambda run, step, **options: None)
    config = TrainConfig(
        dataset_name=str(tmp_path / "half_grey"),
        tasks={"edit": 1, "colorize": 1},
        resolution=8,
        block_out_channels=[16, 32],
        attention_resolutions=[4],
        token_dim=32,
        total_batch_size=64,
        max_train_steps=350,
        learning_rate=4e-3,
        num_threads=1,
        report_to="none",
        output_dir=str(tmp_path / "run"),
    )
    train(config)
    pipe = MultiTaskPipeline.from_pretrained(tmp_path / "run/pipeline")
    for task, other, name in (("edit", "colorize", "grey"), ("colorize", "edit", "colour")):
        data = load_images(str(tmp_path / name), split="test", resolution=8)

        def losses(token, task=task, data=data):
            result = measure(pipe, data, [task], 400, alike=True, task_token=token)
            return result.by_image[0, -3:]  # sigma from 1 to 30, where the picture doesn't tell

        right = losses("right")
        for token in (other, None):
            excess = losses(token) - right  # (3, 400)
            error = excess.std(1) / 400**0.5
            assert (excess.mean(1) > 3 * error).all(), (task, token, excess.mean(1), error)
            assert excess.mean() > 0.005 * right.mean()
