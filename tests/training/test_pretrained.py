"""Runs that start from a published model: what they take from it, what is new, what is trained."""

import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from datasets import ClassLabel
from safetensors.torch import load_file
from tables import IMAGE, encoded, write_parquet
from tiny import MODEL, own_state, unet_of

from mtl_diffusion import loop
from mtl_diffusion.config import ConfigError, TrainConfig, resolved
from mtl_diffusion.config.command_line import parse
from mtl_diffusion.config.fields import OF_MODEL
from mtl_diffusion.config.network import with_network
from mtl_diffusion.loop import train
from mtl_diffusion.pipeline.pipeline import MultiTaskPipeline
from mtl_diffusion.pipeline.tokens import Vocabulary
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
    "strength_levels": 9,
    "reserved_tokens": 16,
    "sigma_data": 1.0,
    "sigma_min": 0.1,
    "sigma_max": 40.0,
}


def test_each_field_of_a_model_is_read_from_it(build_pipe):
    pipe = build_pipe()
    config = TrainConfig(resolution=8, **OTHERS)
    pipe.unet = build_unet(config, pipe.vocabulary.size)
    pipe.scheduler = build_scheduler(config)
    words = {"strength_levels": 5, "reserved_tokens": 3}
    assert OTHERS.keys() == OF_MODEL
    assert fields_of(pipe) == OTHERS | words


def test_what_is_not_given_is_the_models(pipe):
    config = with_model(parse(SOURCE), pipe)
    expected = with_network(TrainConfig(**KEPT))
    assert all(getattr(config, name) == getattr(expected, name) for name in OF_MODEL)
    text = resolved(config)  # the dry run prints that
    assert all(re.search(f"^{name}: ", text, re.MULTILINE) for name in OF_MODEL)
    assert with_model(config, pipe) == config  # a run is built twice where its rate is measured


def test_what_is_given_and_kept_otherwise_is_refused(build_pipe, pipe):
    flags = [f"--{name}={value}" for name, value in OTHERS.items()]
    with pytest.raises(ConfigError) as caught:
        with_model(parse(SOURCE + flags), pipe)
    assert [line.partition(":")[0] for line in caught.value.faults] == sorted(OTHERS)
    # The defaults of the fields are not the model's: given, they are refused, too.
    with pytest.raises(ConfigError, match="token_dim: found 64"):
        with_model(parse([*SOURCE, "--token_dim=64"]), pipe)
    # Its own values are not, in any order.
    wide = build_pipe()
    fields = KEPT | {"attention_resolutions": [4, 8]}
    wide.unet = build_unet(TrainConfig(**fields), pipe.vocabulary.size)
    flags = [f"--{name}={KEPT[name]}" for name in OF_MODEL & KEPT.keys()]
    config = with_model(parse([*SOURCE, *flags, "--attention_resolutions=[4, 8]"]), wide)
    assert config.attention_resolutions == [8, 4] and config.token_dim == 8


def pictures(folder, *names):
    """24 training and 8 test images of noise, of classes with these names."""
    features = {"image": IMAGE, "label": ClassLabel(names=list(names))}
    for split, count in (("train", 24), ("test", 8)):
        images = encoded(count, first=100 * (split == "test"))
        rows = {"image": images, "label": [i % len(names) for i in range(count)]}
        write_parquet(folder, rows, features, split)
    return str(folder)


@pytest.fixture(scope="module")
def published(base, tmp_path_factory):
    """The folder of a pipeline of two tasks that knows cats and dogs, and has 4 reserved words."""
    folder = tmp_path_factory.mktemp("published")
    pets = {"dataset_name": pictures(folder / "pets", "cat", "dog"), "output_dir": str(folder)}
    with own_state(), pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "validate", lambda run, step, **options: None)
        train(replace(base, **pets, tasks={"generate": 1, "edit": 1}))
    return folder / "pipeline"


@pytest.fixture
def further(config, published, tmp_path):
    """A run that starts from it, with a new class in front and a new task."""
    return replace(
        config,
        dataset_name=pictures(tmp_path / "more", "bird", "dog", "cat"),
        tasks={"colorize": 1, "generate": 1},
        pretrained_model_name_or_path=str(published),
    )


def test_new_words_take_reserved_ids_and_old_ones_keep_theirs(
    further, published, monkeypatch, no_validation
):
    runs, run_loop = [], loop.loop
    monkeypatch.setattr(loop, "loop", lambda run, *rest: runs.append(run) or run_loop(run, *rest))
    train(further)
    before = MultiTaskPipeline.from_pretrained(published)
    after = MultiTaskPipeline.from_pretrained(Path(further.output_dir) / "pipeline")
    old, new = before.tokenizer.get_vocab(), after.tokenizer.get_vocab()
    assert sorted(old.values()) == sorted(new.values())
    kept = {word: index for word, index in old.items() if not word.startswith("<reserved")}
    reserved = Vocabulary.of(old).reserved
    taken = {"<task:colorize>": reserved[0], "<class:bird>": reserved[1]}
    assert (kept | taken).items() <= new.items()
    # Classes keep the numbers that they had; labels of the new data follow them.
    assert after.class_names == ("cat", "dog", "bird")
    assert set(after.tasks) == {"generate", "edit", "colorize"}
    data = runs[0].train_data
    names = [data.class_names[label] for label in data.labels[:6]]
    assert names == ["bird", "dog", "cat", "bird", "dog", "cat"]


@pytest.mark.parametrize(
    ("train_only", "moved"),
    [
        ("tokens", {"encoder_hid_proj", "class_embedding"}),
        ("tokens+condition", {"encoder_hid_proj", "class_embedding", "conv_in"}),
    ],
)
def test_train_only_changes_nothing_else(further, published, train_only, moved, steps_only):
    """The other weights are those that it starts from, and so are those of their average."""
    train(replace(further, train_only=train_only))
    before = load_file(published / "unet/diffusion_pytorch_model.safetensors")
    for name in ("unet", "ema"):
        after = unet_of(further.output_dir, name)
        changed = {name for name, w in before.items() if not torch.equal(w, after[name])}
        assert {name.split(".")[0] for name in changed} == moved
        assert {"encoder_hid_proj.weight", "class_embedding.linear_1.weight"} <= changed


def test_another_resolution_and_too_many_new_words_are_errors(further, tmp_path):
    with pytest.raises(ValueError, match=r"resolution 8, resolution is 16"):
        train(replace(further, resolution=16, attention_resolutions=[]))
    many = pictures(tmp_path / "many", *"abcdef")
    with pytest.raises(ValueError, match=r"4 reserved tokens, and 7 new words need one.*colorize"):
        train(replace(further, dataset_name=many))
    assert not Path(further.output_dir, "checkpoints").exists()
