"""The loss on held-out images."""

import torch

from mtl_diffusion.data.images import ImageDataset
from mtl_diffusion.pipeline.pipeline import TASKS
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
    values = torch.stack([part.by_image for part in parts])
    assert ((values != 0).sum(0) == 1).all()  # each image belongs to one rank
    torch.testing.assert_close(values.sum(0), whole.by_image, rtol=1e-5, atol=1e-6)


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
