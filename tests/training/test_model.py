"""The UNet that a configuration describes, and which of its weights learn."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from diffusers.models.resnet import ResnetBlock2D
from tiny import MODEL

from mtl_diffusion.config import TrainConfig
from mtl_diffusion.config.command_line import parse
from mtl_diffusion.config.network import NETWORK, with_network
from mtl_diffusion.pipeline.denoiser import Conditioning, predict
from mtl_diffusion.training.model import build_scheduler, build_unet, freeze, train_mode

ROOT = Path(__file__).parents[2]
# Millions of parameters, with 64 words.
PARAMETERS = {
    "quickstart": (1.0, 1.2),
    "cifar10_cpu": (1.5, 1.8),
    "cifar10_15min": (7, 9),
    "cifar100": (1.5, 1.8),
    "digits": (1, 1.5),
    "emoji": (4, 4.9),  # less than 10 MB in float16
    "fashion_mnist": (1.5, 1.8),
    "image_folder": (1.5, 1.8),
    "mnist": (1.5, 1.8),
    "cifar10": (20, 25),
    "cifar10_multi_gpu": (20, 25),
}

TINY = TrainConfig(**MODEL)
WORDS = 10


@pytest.fixture
def unet():
    torch.manual_seed(0)
    return build_unet(TINY, WORDS)


def conditioning(n, random):
    return Conditioning(
        image=torch.randn(n, 3, 8, 8, generator=random),
        mask=torch.ones(n, 1, 8, 8),
        tokens=torch.eye(WORDS)[torch.randint(WORDS, (n, 3), generator=random)],
    )


def test_every_config_has_its_size_stated_here():
    """But for those that start from a model, which has its size."""
    configs = {path.stem: parse([f"--config={path}"]) for path in ROOT.glob("configs/*.yaml")}
    new = {name for name, c in configs.items() if c.pretrained_model_name_or_path is None}
    assert new == set(PARAMETERS) and configs.keys() - new


@pytest.mark.parametrize("name", PARAMETERS)
def test_every_config_builds_at_its_size(name):
    config = with_network(parse(["--config", str(ROOT / f"configs/{name}.yaml")]))
    with torch.device("meta"):
        unet = build_unet(config, 64)
    millions = sum(p.numel() for p in unet.parameters()) / 1e6
    low, high = PARAMETERS[name]
    assert low < millions < high
    assert unet.config.sample_size == config.resolution
    sides = [config.resolution // 2**i for i in range(len(config.block_out_channels))]
    attends = ["CrossAttn" in kind for kind in unet.config.down_block_types]
    assert [s for s, a in zip(sides, attends, strict=True) if a] == config.attention_resolutions
    assert attends == ["CrossAttn" in kind for kind in reversed(unet.config.up_block_types)]


NAMES = ("digits", "quickstart", "mnist", "cifar10_cpu")  # of 8, 16, 28 and 32 pixels


@pytest.mark.parametrize("name", NAMES)
def test_a_network_that_is_not_given_is_that_of_the_small_configs(name):
    given = parse(["--config", str(ROOT / f"configs/{name}.yaml")])
    assert with_network(replace(given, **dict.fromkeys(NETWORK))) == with_network(given)


@pytest.mark.parametrize("size", [9, 10, 31, 64, 100, 256, [16, 24], [96, 64]])
def test_a_network_for_other_resolutions(size):
    config = parse([f"--resolution={size}"])
    with torch.device("meta"):
        unet, tokens = build_unet(config, 20), torch.zeros(1, 3, 20)
        images = torch.zeros(1, unet.config.in_channels, *config.size)
        output = unet(images, torch.zeros(1), tokens, class_labels=tokens.flatten(1)).sample
    assert output.shape == (1, 3, *config.size)
    assert sum("CrossAttn" in kind for kind in unet.config.down_block_types) == 1


@pytest.mark.parametrize("channels", [[8], [8, 8], [8, 16, 8]])
@pytest.mark.parametrize("attention", [[], [8], [8, 4]])
def test_other_shapes_run_too(channels, attention):
    sides = [8, 4, 2][: len(channels)]
    config = TrainConfig(
        resolution=8,
        block_out_channels=channels,
        attention_resolutions=[a for a in attention if a in sides],
        norm_num_groups=4,
        token_dim=8,
        layers_per_block=2,
    )
    random = torch.Generator().manual_seed(0)
    output = predict(
        build_unet(config, WORDS),
        build_scheduler(config),
        torch.randn(2, 3, 8, 8, generator=random),
        torch.ones(2, 1, 1, 1),
        conditioning(2, random),
    )
    assert output.shape == (2, 3, 8, 8)


def test_the_network_starts_as_zero_and_still_learns(unet):
    random = torch.Generator().manual_seed(0)
    noisy, sigma = torch.randn(4, 3, 8, 8, generator=random), torch.rand(4, 1, 1, 1) + 0.1
    output = predict(unet, build_scheduler(TINY), noisy, sigma, conditioning(4, random))
    assert output.abs().max() == 0
    (output - 1).square().mean().backward()
    assert unet.conv_out.weight.grad.abs().max() > 0


def learning(unet):
    return {name for name, p in unet.named_parameters() if p.requires_grad}


def test_what_learns(unet):
    every = {name for name, _ in unet.named_parameters() if not name.startswith("time_proj.")}
    freeze(unet, "tokens")
    tokens = learning(unet)
    assert {name.split(".")[0] for name in tokens} == {"encoder_hid_proj", "class_embedding"}
    assert {"encoder_hid_proj.weight", "class_embedding.linear_1.weight"} <= tokens
    freeze(unet, "tokens+condition")
    assert learning(unet) == tokens | {"conv_in.weight", "conv_in.bias"}
    freeze(unet, "all")
    assert learning(unet) == every


@pytest.mark.parametrize("paths", ["both", "attention", "embedding"])
def test_tokens_reach_the_network_by_the_paths_that_are_asked_for(paths):
    """A step of training, and then each path is cut in turn: does the output change?"""
    torch.manual_seed(0)
    unet = build_unet(replace(TINY, token_paths=paths), WORDS)
    torch.nn.init.normal_(unet.conv_out.weight)
    freeze(unet, "all", paths)
    noisy, sigma = torch.randn(4, 3, 8, 8), torch.rand(4, 1, 1, 1) + 0.1
    given = conditioning(4, torch.Generator().manual_seed(0))
    optimizer = torch.optim.SGD([p for p in unet.parameters() if p.requires_grad], lr=1e-3)
    predict(unet, build_scheduler(TINY), noisy, sigma, given).square().mean().backward()
    optimizer.step()
    tokens, nothing = given.tokens, torch.zeros_like(given.tokens)
    with torch.no_grad():

        def output(attended, embedded):
            inputs = (torch.cat([noisy, noisy, noisy[:, :1]], 1), sigma.flatten())
            return unet(*inputs, attended, class_labels=embedded.flatten(1)).sample

        whole = output(tokens, tokens)
        for name, cut in {"attention": (nothing, tokens), "embedding": (tokens, nothing)}.items():
            assert torch.equal(output(*cut), whole) == (paths not in ("both", name))


def test_a_word_weighs_as_much_whatever_the_number_of_words():
    """Else a token drowns in the time embedding: the default is scaled for a sum over all words."""
    for words in (10, 1000):
        torch.manual_seed(0)
        unet = build_unet(replace(TINY, token_dim=64), words)
        tokens = torch.eye(words)[torch.randint(words, (64, 3))]
        assert unet.encoder_hid_proj(tokens).std().item() == pytest.approx(1, abs=0.1)
        hidden = unet.class_embedding.linear_1(tokens.flatten(1))
        assert hidden.std().item() == pytest.approx(1, abs=0.15)


def test_training_mode_keeps_the_dropout_and_saves_the_copies():
    config = TrainConfig(
        resolution=8, block_out_channels=[8, 16], attention_resolutions=[4], norm_num_groups=4
    )
    unet = build_unet(replace(config, dropout=0.5), 40).to(memory_format=torch.channels_last)
    with torch.no_grad():
        torch.nn.init.normal_(unet.conv_out.weight)
    tokens = torch.rand(2, 3, 40)
    inputs = {
        "sample": torch.randn(2, 7, 8, 8).to(memory_format=torch.channels_last),
        "timestep": torch.zeros(2),
        "encoder_hidden_states": tokens,
        "class_labels": tokens.flatten(1),
    }
    blocks = [module for module in unet.modules() if isinstance(module, ResnetBlock2D)]
    row_major = []
    for block in blocks:
        if block.conv_shortcut is not None:
            block.conv_shortcut.register_forward_pre_hook(
                lambda _, given: row_major.append(given[0].is_contiguous())
            )
    gradients, copies = {}, {}
    for name, mode in (("plain", unet.train), ("ours", lambda: train_mode(unet))):
        mode()
        assert unet.training and all(block.dropout.training for block in blocks)
        row_major.clear()
        torch.manual_seed(0)
        unet(**inputs).sample.square().mean().backward()
        gradients[name] = torch.cat(
            [p.grad.flatten() for p in unet.parameters() if p.grad is not None]
        )
        copies[name] = sum(row_major)
        unet.zero_grad()
    assert copies["plain"] > 0 and copies["ours"] == 0
    assert gradients["plain"].abs().max() > 1e-2
    torch.testing.assert_close(gradients["ours"], gradients["plain"], rtol=1e-4, atol=1e-5)
