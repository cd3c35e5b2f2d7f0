"""Augmentation with its amounts as a condition: what it does to images, and what a run leaves."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from mtl_diffusion.config import ConfigError, check
from mtl_diffusion.data.images import FRAME, MASK
from mtl_diffusion.data.loader import Batch
from mtl_diffusion.loop import train
from mtl_diffusion.pipeline.denoiser import TASK
from mtl_diffusion.pipeline.format import ImageFormat
from mtl_diffusion.pipeline.pipeline import TASKS, MultiTaskPipeline
from mtl_diffusion.pipeline.tokens import Vocabulary
from mtl_diffusion.training.augment import AMOUNTS, augmented, draw_amounts
from mtl_diffusion.training.mixture import Mixture
from mtl_diffusion.training.model import build_tokenizer, extend_tokenizer

CPU, SIZE = torch.device("cpu"), (8, 12)


@pytest.fixture(scope="module")
def mixture():
    tokenizer = extend_tokenizer(build_tokenizer(TASKS, ("cat",), 3, 7), (), (), AMOUNTS)
    return Mixture(
        tasks=tuple(TASKS.values()),
        proportions=tuple(1.0 for _ in TASKS),
        vocabulary=Vocabulary.of(tokenizer.get_vocab()),
        images=ImageFormat(*SIZE),
        class_dropout=0.3,
        task_dropout=0.3,
        augmentation=0.4,
    )


def batch_of(n):
    images = torch.rand(n, 3, *SIZE) * 2 - 1
    layers = {
        MASK: torch.randint(0, 2, (n, 1, *SIZE), dtype=torch.uint8),
        "map": torch.randint(0, 65536, (n, 3, *SIZE), dtype=torch.int32).to(torch.uint16),
        "values": torch.randn(n, 3, *SIZE),
    }
    return Batch(images, torch.zeros(n, dtype=torch.int64), layers)


def warped(image, flip, scale, cosine, sine, right, down):
    """Pixel by pixel, in pixels: each shows the place of the source that comes to lie there."""
    height, width = image.shape[1:]
    rows, columns = (np.pad(np.arange(n), 60, "symmetric") for n in (height, width))
    result = np.zeros_like(image)
    angle, factor = math.atan2(sine, cosine + 1), 2 ** (0.2 * scale)
    for y in range(height):
        for x in range(width):
            place = complex(x + 0.5 - width / 2 - right * width / 8, 0)
            place += 1j * (y + 0.5 - height / 2 - down * height / 8)
            place *= complex(math.cos(angle), -math.sin(angle)) / factor
            across = (-place.real if flip else place.real) + width / 2 - 0.5
            along = place.imag + height / 2 - 0.5
            for j in (math.floor(along), math.floor(along) + 1):
                for i in (math.floor(across), math.floor(across) + 1):
                    share = (1 - abs(along - j)) * (1 - abs(across - i))
                    result[:, y, x] += share * image[:, rows[j + 60], columns[i + 60]]
    return result


def test_each_image_is_changed_by_its_amounts():
    batch = batch_of(24)
    amounts = draw_amounts(24, 0.7, torch.Generator().manual_seed(1))
    found = augmented(batch, amounts)
    for image, ours, own in zip(batch.images, found.images, amounts.tolist(), strict=True):
        torch.testing.assert_close(
            ours, torch.from_numpy(warped(image.numpy(), *own)), atol=1e-4, rtol=0
        )
    assert torch.equal(found.labels, batch.labels)


def test_nothing_changes_where_all_amounts_are_zero_and_layers_keep_their_numbers():
    batch = batch_of(60)
    amounts = draw_amounts(60, 0.3, torch.Generator().manual_seed(0))
    found = augmented(batch, amounts)
    same = (amounts == 0).all(1)
    assert 5 < same.sum() < 40
    before, after = ({"images": b.images, **b.layers} for b in (batch, found))
    for name, pixels in before.items():
        assert after[name].dtype == pixels.dtype and torch.equal(after[name][same], pixels[same])
        for one, other in zip(after[name][~same], pixels[~same], strict=True):
            if name == "images":
                assert not torch.equal(one, other)
            else:
                assert {*one.flatten().tolist()} <= {*other.flatten().tolist()}, name


def test_layers_move_with_the_images():
    """A picture of one bright half, and its mask."""
    images = -torch.ones(40, 1, 16, 16)
    images[:, :, :8] = 1
    amounts = draw_amounts(40, 1.0, torch.Generator().manual_seed(0))
    layers = {FRAME: (images > 0).to(torch.uint8)}
    found = augmented(Batch(images, torch.zeros(40), layers), amounts)
    inside = found.images[found.layers[FRAME] > 0]
    assert inside.min() >= -1e-4 and found.images[found.layers[FRAME] == 0].max() <= 1e-4


def test_the_four_changes_are_drawn_as_often_as_they_should_be():
    n = 20000
    amounts = draw_amounts(n, 0.3, torch.Generator().manual_seed(0))
    flip, scale, cosine, sine, right, down = amounts.double().T
    for drawn, share in ((flip, 0.15), (scale, 0.3), (sine, 0.3), (right, 0.3), (down, 0.3)):
        assert abs((drawn != 0).double().mean() - share) < 0.015
    assert torch.equal(right != 0, down != 0) and {*flip.tolist()} == {0.0, 1.0}
    torch.testing.assert_close((cosine + 1) ** 2 + sine**2, torch.ones(n).double())
    for drawn in (scale, right, down):
        assert abs(drawn[drawn != 0].std() - 1) < 0.05
    assert not draw_amounts(n, 0.0, torch.Generator()).any()


def test_the_amounts_are_told_beside_the_task_and_nothing_else_is_drawn_otherwise(mixture):
    batch, plain = batch_of(50), replace(mixture, augmentation=0.0)
    draw, usual = mixture.draw(0, 3, 50, CPU), plain.draw(0, 3, 50, CPU)
    assert usual.amounts is None and draw.amounts.any() and not draw.amounts.any(1).all()
    target, found = mixture.condition(batch, draw)
    _, expected = plain.condition(augmented(batch, draw.amounts), usual)
    words = [mixture.vocabulary.augments[name] for name in AMOUNTS]
    assert torch.equal(target, augmented(batch, draw.amounts).images)
    assert torch.equal(found.image, expected.image) and torch.equal(found.mask, expected.mask)
    assert torch.equal(found.tokens[:, TASK, words], draw.amounts)
    assert not expected.tokens[:, :, words].any()  # as sampling has it
    found.tokens[:, TASK, words] = 0
    assert torch.equal(found.tokens, expected.tokens)


def test_a_model_of_such_a_run_is_trained_on_with_augmentation_and_without(config):
    with pytest.raises(ConfigError, match=r"4 reserved tokens, and 6 new words .*augment:flip"):
        train(replace(config, augmentation=0.5))
    config = replace(config, augmentation=0.5, reserved_tokens=6)
    train(check(config))
    folder = f"{config.output_dir}/pipeline"
    pipe = MultiTaskPipeline.from_pretrained(folder)
    assert tuple(pipe.vocabulary.augments) == AMOUNTS and not pipe.vocabulary.reserved
    further = {"pretrained_model_name_or_path": folder, "reserved_tokens": 0}
    for augmentation in (0.0, 0.5):
        more = {"augmentation": augmentation, "output_dir": f"{config.output_dir}-{augmentation}"}
        train(check(replace(config, **further, **more)))
