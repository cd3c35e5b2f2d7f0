"""What a configuration is read from, in every spelling, and what follows from it."""

import json
from dataclasses import replace
from types import NoneType
from typing import get_args

import pytest

from configs import argv
from mtl_diffusion.config import TrainConfig, differences, from_dict, resolved, to_dict
from mtl_diffusion.config.command_line import parse
from mtl_diffusion.config.fields import OF_MODEL, TYPES
from mtl_diffusion.tools.yaml_reader import load_strictly


@pytest.mark.parametrize("order", [slice(None), slice(None, None, -1)])
def test_flags_beat_the_file_wherever_they_stand(write, order):
    path = write("seed: 1\nlearning_rate: 1e-3\ntasks: {edit: 1}")
    given = [["--seed", "2"], [f"--config={path}"], ["--token_dim=8"]]
    config = parse([word for flag in given[order] for word in flag])
    assert (config.seed, config.token_dim, config.learning_rate) == (2, 8, 1e-3)
    assert config.tasks == {"edit": 1}  # a mapping replaces the default


@pytest.mark.parametrize(
    "name, text, value",
    [
        *[("learning_rate", text, 2e-3) for text in ("2e-3", ".2e-2")],
        *[("seed", text, 10) for text in ("010", "0xA", "+10")],
        *[("mixed_precision", "no", "no"), ("report_to", "none", "none")],
        *[("dataset_name", text, text) for text in ("1:30", "on")],
        *[("resume_from_checkpoint", "none", None), ("sigma_mean", "-0.5", -0.5)],
    ],
)
def test_values_are_those_of_yaml_1_2(write, name, text, value):
    for given in (["--config", write(f"{name}: {text}")], [f"--{name}", text]):
        assert getattr(parse(given), name) == value


def test_switches_lists_and_mappings_as_flags():
    config = parse(["--dry_run", "--push_to_hub", "true", "--use_ema=false"])
    assert config.dry_run and config.push_to_hub and not config.use_ema
    config = parse(argv("block_out_channels=[8,16] norm_num_groups=4 tasks={generate:1,edit:1}"))
    assert config.block_out_channels == [8, 16] and config.tasks == {"generate": 1, "edit": 1}
    assert parse(["--tasks", '{"edit": 1}']).tasks == {"edit": 1}


def test_null_or_none_unsets_every_optional_field(write):
    optional = {name for name, kind in TYPES.items() if NoneType in get_args(kind)}
    optional -= {"max_train_steps"}  # one of it and max_train_minutes is needed
    for text in ("null", "None"):
        lines = "\n".join(f"{name}: {text}" for name in optional)
        flags = [f"--{name}={text}" for name in optional]
        for config in (parse(flags), parse(["--config", write(lines)])):
            assert {getattr(config, name) for name in optional} == {None}


def test_the_home_directory_is_found(write, monkeypatch):
    monkeypatch.setenv("HOME", "/home/me")
    path = write("output_dir: ~/runs/a\ndataset_name: ~/data")
    config = parse(["--config", path, "--pretrained_model_name_or_path=~/model"])
    assert (config.output_dir, config.dataset_name) == ("/home/me/runs/a", "/home/me/data")
    assert config.pretrained_model_name_or_path == "/home/me/model"
    assert parse(["--resume_from_checkpoint=~/a"]).resume_from_checkpoint == "/home/me/a"
    assert parse(["--output_dir=a/~"]).output_dir == "a/~"


@pytest.mark.parametrize("given, steps", [(0, 0), (0.04, 48), (1, 1), (100, 100)])
def test_warmup_is_a_share_or_steps(given, steps):
    assert TrainConfig(max_train_steps=1200, lr_warmup_steps=given).warmup_steps == steps


def test_the_repository_is_called_as_the_folder_is(tmp_path, monkeypatch):
    (tmp_path / "disk-3").mkdir()
    (tmp_path / "flowers").symlink_to(tmp_path / "disk-3")
    monkeypatch.chdir(tmp_path)
    for given in ("flowers", "flowers/", "./flowers", "x/../flowers", str(tmp_path / "flowers")):
        assert TrainConfig(output_dir=given).repository == "flowers"
    assert TrainConfig(output_dir=".").repository == tmp_path.name
    assert TrainConfig(output_dir="flowers", hub_model_id="me/it").repository == "me/it"


def test_resolved_reads_back(write):
    config = parse(["--mixed_precision", "no", "--learning_rate", "1e-8", "--seed", "3"])
    assert parse(["--config", write(resolved(config))]) == config
    assert list(load_strictly(resolved(config))) == list(to_dict(config))
    config = parse(["--tasks={colorize: 1}", "--resume_from_checkpoint", "none"])
    assert from_dict(json.loads(json.dumps(to_dict(config)))) == config


def test_what_is_given_is_known(write):
    config = parse(["--config", write("seed: 0\ndropout: 0"), "--tasks={edit: 2}", "--compile"])
    assert not parse([]).given
    assert config.given == {"seed", "dropout", "tasks", "compile"}
    assert replace(config, token_dim=8).given == config.given | {"token_dim"}
    # What is a trained model's is not resolved before that model is loaded.
    config = replace(config, pretrained_model_name_or_path="me/it")
    assert TYPES.keys() - load_strictly(resolved(config)).keys() == OF_MODEL - {"dropout"}


def test_differences_name_the_field_and_both_values():
    old, new = to_dict(TrainConfig()), to_dict(TrainConfig(seed=1, tasks={"edit": 1}))
    assert differences(old, old) == []
    assert differences(old, new, allowed={"tasks"}) == [
        "seed: the checkpoint has 0, this run has 1"
    ]
    assert len(differences(old, new)) == 2
    del old["token_dim"]  # a younger field
    (line,) = differences(old, to_dict(TrainConfig(token_dim=8)))
    assert line == "token_dim: the checkpoint has 64, this run has 8"


def test_checkpoints_of_older_versions_are_read():
    new = to_dict(TrainConfig())
    # The smaller of the two half-lives counted.
    assert not differences({**new, "ema_half_life": 0.05}, new)
    (line,) = differences({**new, "ema_half_life": 0.03}, new)
    assert line == "ema_half_life: the checkpoint has 0.03, this run has nothing"
    gone = {"task_weights": None, "gradient_aggregation": "sum", "perceptual_weight": 0.0}
    gone |= {"perceptual_images": 0.15, "adam_beta1": 0.9, "adam_beta2": 0.99}
    assert not differences({**new, **gone}, new) and from_dict({**new, **gone}) == TrainConfig()
    (line,) = differences({**new, **gone, "perceptual_weight": 2.0}, new)
    assert line == "perceptual_weight: the checkpoint has 2.0, this run has nothing"
    # A run that started from a trained model stored defaults which had no effect.
    new["pretrained_model_name_or_path"] = "me/it"
    assert not differences(new, {**new, "token_dim": 128, "sigma_max": 40.0})
