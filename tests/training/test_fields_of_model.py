"""Fields that a run takes from the trained model that it starts from."""

import re
from dataclasses import replace

import pytest
from tiny import MODEL

from mtl_diffusion.config import ConfigError, TrainConfig, resolved, to_dict
from mtl_diffusion.config.command_line import parse
from mtl_diffusion.config.fields import OF_MODEL
from mtl_diffusion.config.network import with_network
from mtl_diffusion.training.model import build_scheduler, build_unet
from mtl_diffusion.training.pretrained import fields_of, with_model

SOURCE = ["--pretrained_model_name_or_path=me/it", "--resolution=8"]
# build_pipe's.
KEPT = {**MODEL, "strength_levels": 5, "reserved_tokens": 3}
OTHERS = {
    "image_fit": "pad",
    "image_mode": 4,
    "image_dtype": "uint16",
    "value_range": [0, 4095],
    "shown_bands": [2, 1, 0],
    "block_out_channels": [16, 16],
    "layers_per_block": 2,
    "attention_resolutions": [8],
    "num_attention_heads": 1,
    "norm_num_groups": 8,
    "dropout": 0.5,
    "token_dim": 64,
    "token_paths": "attention",
    "strength_levels": 9,
    "reserved_tokens": 16,
    "sigma_data": 1.0,
    "sigma_min": 0.1,
    "sigma_max": 40.0,
}


def test_what_a_model_has_is_what_it_was_built_with(pipe):
    fields = fields_of(pipe)
    assert fields.keys() == OF_MODEL == OTHERS.keys()
    built = to_dict(with_network(TrainConfig(**KEPT)))
    assert fields == {name: built[name] for name in fields}


@pytest.mark.parametrize("paths", ["both", "attention", "embedding"])
def test_each_field_of_a_model_is_read_from_it(build_pipe, paths):
    pipe = build_pipe()
    config = TrainConfig(resolution=8, **OTHERS | {"token_paths": paths})
    pipe.unet = build_unet(config, pipe.vocabulary.size)
    pipe.scheduler = build_scheduler(config)
    words = {"strength_levels": 5, "reserved_tokens": 3}
    assert fields_of(pipe) == OTHERS | {"token_paths": paths} | words


def test_what_is_not_given_is_the_models(pipe):
    config = with_model(parse(SOURCE), pipe)
    expected = with_network(TrainConfig(**KEPT))
    assert all(getattr(config, name) == getattr(expected, name) for name in OF_MODEL)
    text = resolved(config)  # the dry run prints that
    assert all(re.search(f"^{name}: ", text, re.MULTILINE) for name in OF_MODEL)
    assert "\ntoken_dim: 8\n" in text
    assert with_model(config, pipe) == config  # a run is built twice where its rate is measured


def test_what_is_given_and_kept_otherwise_is_refused(pipe):
    flags = [f"--{name}={value}" for name, value in OTHERS.items()]
    with pytest.raises(ConfigError) as caught:
        with_model(parse(SOURCE + flags), pipe)
    assert [line.partition(":")[0] for line in caught.value.faults] == sorted(OTHERS)
    with pytest.raises(ConfigError, match=r"dropout: found 0\.5; the run starts from me/it"):
        with_model(replace(parse(SOURCE), dropout=0.5), pipe)
    # The defaults of the fields are not the model's: given, they are refused, too.
    with pytest.raises(ConfigError, match="token_dim: found 64"):
        with_model(parse([*SOURCE, "--token_dim=64"]), pipe)


def test_the_models_values_may_be_given(build_pipe):
    pipe = build_pipe()
    wide = TrainConfig(**KEPT | {"attention_resolutions": [4, 8]})
    pipe.unet = build_unet(wide, pipe.vocabulary.size)
    flags = [f"--{name}={value}" for name, value in KEPT.items() if name != "gallery"]
    config = with_model(parse([*SOURCE, *flags, "--attention_resolutions=[4, 8]"]), pipe)
    assert config.attention_resolutions == [8, 4] and config.token_dim == 8
