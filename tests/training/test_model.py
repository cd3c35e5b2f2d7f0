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

CONFIGS = {
    path.stem: parse(["--config", str(path)])
    for path in sorted(Path(__file__).parents[2].glob("configs/*.yaml"))
}
# Millions of parameters that the README states.
PARAMETERS = {"cifar10_cpu": 1.5, "cifar10_15min": 7.7}

TINY = TrainConfig(**MODEL)
WORDS = 10


def conditioning(n):
    tokens = torch.eye(WORDS)[torch.randint(WORDS, (n, 3))]
    return Conditioning(torch.randn(n, 3, 8, 8), torch.ones(n, 1, 8, 8), tokens)


@pytest.mark.parametrize(
    "name", [name for name, c in CONFIGS.items() if c.pretrained_model_name_or_path is None]
)
def test_every_config_builds_at_its_size(name):
    config = with_network(CONFIGS[name])
    with torch.device("meta"):
        unet = build_unet(config, 64)
    millions = sum(p.numel() for p in unet.parameters()) / 1e6
    assert millions == pytest.approx(PARAMETERS.get(name, millions), abs=0.1)
    assert unet.config.sample_size == config.resolution
    sides = [config.resolution // 2**i for i in range(len(config.block_out_channels))]
    attends = ["CrossAttn" in kind for kind in unet.config.down_block_types]
    assert [s for s, a in zip(sides, attends, strict=True) if a] == config.attention_resolutions
    if name in ("quickstart", "mnist", "cifar10_cpu"):  # of 16, 28 and 32 pixels
        assert with_network(replace(config, **dict.fromkeys(NETWORK))) == config


@pytest.mark.parametrize("size", [9, 10, 31, 64, 100, 256, [16, 24], [96, 64]])
def test_a_network_for_other_resolutions(size):
    config = parse([f"--resolution={size}"])
    with torch.device("meta"):
        unet, tokens = build_unet(config, 20), torch.zeros(1, 3, 20)
        images = torch.zeros(1, unet.config.in_channels, *config.size)
        output = unet(images, torch.zeros(1), tokens, class_labels=tokens.flatten(1)).sample
    assert output.shape == (1, 3, *config.size)
    assert sum("CrossAttn" in kind for kind in unet.config.down_block_types) == 1


def test_the_network_starts_as_zero_and_still_learns():
    unet, noisy, sigma = build_unet(TINY, WORDS), torch.randn(4, 3, 8, 8), torch.rand(4, 1, 1, 1)
    output = predict(unet, build_scheduler(TINY), noisy, sigma + 0.1, conditioning(4))
    assert output.abs().max() == 0
    (output - 1).square().mean().backward()
    assert unet.conv_out.weight.grad.abs().max() > 0


def test_tokens_reach_the_network_by_attention_and_with_the_time():
    """Each path is cut in turn: the output changes."""
    unet = build_unet(TINY, WORDS)
    torch.nn.init.normal_(unet.conv_out.weight)
    freeze(unet, "all")
    assert [n for n, p in unet.named_parameters() if not p.requires_grad] == ["time_proj.weight"]
    tokens = conditioning(4).tokens
    nothing = torch.zeros_like(tokens)

    @torch.no_grad()
    def output(attended, embedded):
        inputs = (torch.ones(4, unet.config.in_channels, 8, 8), torch.ones(4))
        return unet(*inputs, attended, class_labels=embedded.flatten(1)).sample

    for cut in ((nothing, tokens), (tokens, nothing)):
        assert not torch.equal(output(*cut), output(tokens, tokens))


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
    config = replace(TINY, block_out_channels=[8, 16], dropout=0.5)  # of 16: with a shortcut
    unet = build_unet(config, WORDS).to(memory_format=torch.channels_last)
    torch.nn.init.normal_(unet.conv_out.weight)
    given = conditioning(2)
    noisy = torch.randn(2, 3, 8, 8).to(memory_format=torch.channels_last)
    blocks = [module for module in unet.modules() if isinstance(module, ResnetBlock2D)]
    row_major = []
    for block in blocks:
        if block.conv_shortcut is not None:
            block.conv_shortcut.register_forward_pre_hook(
                lambda _, given: row_major.append(given[0].is_contiguous())
            )
    outputs, copies = [], []
    for mode in (unet.train, lambda: train_mode(unet)):
        mode()
        assert unet.training and all(block.dropout.training for block in blocks)
        row_major.clear()
        torch.manual_seed(0)
        scheduler, sigma = build_scheduler(config), torch.ones(2, 1, 1, 1)
        outputs.append(predict(unet, scheduler, noisy, sigma, given))
        copies.append(sum(row_major))
    assert copies[0] > 0 and copies[1] == 0
    torch.testing.assert_close(*outputs, rtol=1e-4, atol=1e-5)
