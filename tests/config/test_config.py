"""The configuration: strict, with all faults in one message, documented by its own fields."""

import json
import os
import re
import subprocess
import sys
import time
from dataclasses import FrozenInstanceError, fields
from itertools import pairwise
from pathlib import Path
from types import NoneType
from typing import get_args

import pytest
import yaml

from mtl_diffusion.config import (
    TYPES,
    ConfigError,
    TrainConfig,
    command_line,
    differences,
    limits,
    resolved,
    to_dict,
)
from mtl_diffusion.config.command_line import from_dict, parse

ROOT = Path(__file__).parents[2]
TASKS = ["generate", "inpaint", "edit", "colorize"]


@pytest.fixture(autouse=True)
def tasks(monkeypatch):
    """The tasks there are, without importing torch for their names."""
    monkeypatch.setattr(command_line, "known_tasks", lambda: TASKS)


@pytest.fixture
def write(tmp_path):
    def write(text: str) -> str:
        path = tmp_path / "config.yaml"
        path.write_text(text)
        return str(path)

    return write


def faults(*argv: str) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        parse(argv)
    assert str(caught.value).splitlines()[1:] == [f"  {line}" for line in caught.value.faults]
    return caught.value.faults


def flags(words: str) -> list[str]:
    return [f"--{word.replace(':', ': ')}" for word in words.split()]


# --- reading ------------------------------------------------------------------------------------


def test_nothing_given_is_the_defaults():
    assert parse([]) == TrainConfig()
    assert limits.faults(TrainConfig(), TASKS) == []


def test_a_config_is_frozen():
    with pytest.raises(FrozenInstanceError):
        TrainConfig().seed = 1


@pytest.mark.parametrize("order", [slice(None), slice(None, None, -1)])
def test_flags_beat_the_file_wherever_they_stand(write, order):
    path = write("seed: 1\nlearning_rate: 1e-3\ntasks: {edit: 1}")
    given = [["--seed", "2"], [f"--config={path}"], ["--tasks.generate", "3"]]
    config = parse([word for flag in given[order] for word in flag])
    assert config.seed == 2
    assert config.learning_rate == 1e-3
    assert config.tasks == {"edit": 1, "generate": 3}


def test_a_later_file_beats_an_earlier_one(tmp_path):
    (tmp_path / "a.yaml").write_text("seed: 1\ntoken_dim: 8")
    (tmp_path / "b.yaml").write_text("seed: 2")
    config = parse(["--config", str(tmp_path / "a.yaml"), "--config", str(tmp_path / "b.yaml")])
    assert (config.seed, config.token_dim) == (2, 8)


def test_a_mapping_in_the_file_replaces_the_default_one(write):
    assert parse(["--config", write("tasks: {edit: 2}")]).tasks == {"edit": 2}


@pytest.mark.parametrize("text", ["2e-3", "2.0e-3", "0.002", "2E-3", ".2e-2", "+2e-3"])
def test_every_way_to_write_a_number(write, text):
    assert parse(["--config", write(f"learning_rate: {text}")]).learning_rate == 2e-3
    assert parse(["--learning_rate", text]).learning_rate == 2e-3


def test_no_and_none_are_words(write):
    config = parse(["--config", write("mixed_precision: no\nreport_to: none")])
    assert (config.mixed_precision, config.report_to) == ("no", "none")
    assert parse(["--mixed_precision", "no"]).mixed_precision == "no"


@pytest.mark.parametrize("text", ["null", "none"])
def test_starting_anew_has_one_spelling_inside(write, text):
    assert parse(["--resume_from_checkpoint", text]).resume_from_checkpoint is None
    path = write(f"resume_from_checkpoint: {text}")
    assert parse(["--config", path]).resume_from_checkpoint is None


@pytest.mark.parametrize("name", ["dry_run", "use_ema", "push_to_hub"])
def test_a_switch_stands_bare_or_takes_a_value(name):
    for argv, value in [
        ([f"--{name}"], True),
        ([f"--{name}", "--seed", "1"], True),
        ([f"--{name}", "true"], True),
        ([f"--{name}", "false"], False),
        ([f"--{name}=false"], False),
    ]:
        assert to_dict(parse(argv))[name] is value


def test_lists_and_mappings_as_flags():
    given = "block_out_channels=[8,16] norm_num_groups=4 sigma_mean=-0.5 tasks={generate:1,edit:1}"
    weights = "task_weighting=fixed task_weights.generate=1 task_weights.edit=0.5"
    config = parse(flags(f"{given} {weights}"))
    assert config.block_out_channels == [8, 16]
    assert config.sigma_mean == -0.5
    assert config.tasks == {"generate": 1, "edit": 1}
    assert config.task_weights == {"generate": 1, "edit": 0.5}
    assert parse(["--tasks", '{"generate": 1}']).tasks == {"generate": 1}
    assert parse(["--attention_resolutions+", "16"]).attention_resolutions == [8, 16]
    assert parse([]) == TrainConfig()  # no default was written to


def test_null_unsets_an_optional_field(write):
    path = write("checkpoints_total_limit: 3\nhub_model_id: me/it")
    config = parse(["--config", path, "--checkpoints_total_limit", "null"])
    assert config.checkpoints_total_limit is None
    assert config.hub_model_id == "me/it"


# --- what cannot be read ------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text, fault",
    [
        ("learning_rat: 1", "learning_rat (F): unknown field, did you mean learning_rate?"),
        ("qqq: 1", "qqq (F): unknown field"),
        ("3: 1", "3 (F): unknown field"),
        ("config: x.yaml", "config (F): unknown field"),
        ("seed: x", 'seed (F): found "x"; must be a whole number'),
        ("seed: 1.5", "seed (F): found 1.5; must be a whole number"),
        ("seed: true", "seed (F): found true; must be a whole number"),
        ("seed: null", "seed (F): found null; must be a whole number"),
        ("learning_rate: true", "learning_rate (F): found true; must be a number"),
        ("use_ema: 1", "use_ema (F): found 1; must be true or false"),
        ("dataset_name: 12", "dataset_name (F): found 12; must be a text"),
        ("revision: 12", "revision (F): found 12; must be a text"),
        ("block_out_channels: 8", "block_out_channels (F): found 8; must be a list of whole"),
        ("block_out_channels: [8, x]", 'block_out_channels (F): found [8, "x"]; must be a list'),
        ("tasks: [edit]", 'tasks (F): found ["edit"]; must be names with numbers'),
        ("tasks: {edit: x}", 'tasks (F): found {"edit": "x"}; must be names with numbers'),
        ("tasks: null", "tasks (F): found null; must be names with numbers"),
        ("report_to: paper", 'report_to (F): found "paper"; must be one of tensorboard, trackio'),
        ("per_device_batch_size: x", 'found "x"; must be a whole number or null'),
        ("seed: 1\nseed: 2", "seed (F): found more than once; keep one"),
        ("tasks: {edit: 1, edit: 2}", "edit (F): found more than once; keep one"),
        ("- seed", "--config: found F; must hold lines such as seed: 1"),
        ("", "--config: found F; must hold lines such as seed: 1"),
        ("seed: [", "--config: found F; must be a readable YAML file (while parsing"),
    ],
)
def test_what_is_wrong_in_a_file(write, text, fault):
    path = write(text)
    (found,) = faults("--config", path)
    assert fault in found.replace(json.dumps(path), "F").replace(path, "F")


@pytest.mark.parametrize(
    "argv, fault",
    [
        (["--sead", "1"], "--sead: unknown flag, did you mean --seed?"),
        (["--learning-rate=1"], "--learning-rate: unknown flag, did you mean --learning_rate?"),
        (["--see", "1"], "--see: unknown flag, did you mean --seed?"),
        (["--qqq"], "--qqq: unknown flag"),
        (["--seed.x", "1"], "--seed.x: unknown flag"),
        (["--tasks.edit.x", "1"], "--tasks.edit.x: unknown flag"),
        (["--seed", "x"], '--seed: found "x"; must be a whole number'),
        (["--seed"], "--seed: found no value; write --seed VALUE"),
        (["--seed", "--dry_run"], "--seed: found no value; write --seed VALUE"),
        (["--config"], "--config: found no value"),
        (["--dry_run", "x"], '--dry_run: found "x"; must be true or false'),
        (["--learning_rate", "null"], '--learning_rate: found "null"; must be a number'),
        (["--learning_rate", "nan"], '--learning_rate: found "nan"; must be a number'),
        (["--tasks.edit", "x"], '--tasks.edit: found "x"; must be a number'),
        (["--tasks", "{edit: 1, edit: 2}"], "must be names with numbers"),
        (["--mixed_precision", "fp16"], '--mixed_precision: found "fp16"; must be one of no, bf16'),
        (["seed=1"], 'command line: found "seed=1"; must be --name value'),
        (["--config", "/none.yaml"], '--config: found "/none.yaml"; must be a readable YAML file'),
        (["--config", "/"], '--config: found "/"; must be a readable YAML file'),
    ],
)
def test_what_is_wrong_on_the_command_line(argv, fault):
    (found,) = faults(*argv)
    assert fault in found


BOMB = "a: &a [1, 1]\n" + "".join(f"{b}: &{b} [*{a}, *{a}]\n" for a, b in pairwise("abcdefghi"))


@pytest.mark.parametrize(
    "text, fault",
    [
        (BOMB, "must be a readable YAML file (*a stands for a list or a mapping; write it out)"),
        ("tasks: &t {edit: 1}\ntask_weights: *t", "*t stands for a list or a mapping"),
        ("tasks: &t [*t]", "*t stands for a list or a mapping"),
        ("tasks: &t {edit: *t}", "*t stands for a list or a mapping"),
        ("tasks: " + "[" * 5000, "more than 10 lists or mappings inside one another"),
        ("tasks: " + "[" * 5000 + "]" * 5000, "more than 10 lists or mappings inside"),
        ("tasks: " + "{a: " * 5000, "more than 10 lists or mappings inside one another"),
        ("seed: " + "9" * 5000, "a number of 5000 digits"),
        ("seed: 0x" + "f" * 100_000, "a number of 100002 digits"),
        ("seed: " + "9" * 350, "9... (350 characters); must be finite, and 0 or more, and at most"),
        ("dataset_name: [" + "x, " * 500 + "x]", "... (2,505 characters); must be a text"),
        ('output_dir: "a\\0b"', 'output_dir: found "a\\u0000b"; must be without a NUL'),
        ('output_dir: "~\\0b"', "must be without a NUL"),
        ("seed: 1\0", "must be a readable YAML file"),
    ],
)
def test_a_file_that_means_harm_is_refused_at_once(write, text, fault):
    began = time.perf_counter()
    (found,) = faults("--config", write(text))
    assert fault in found and len(found) < 1000
    assert time.perf_counter() - began < 5


def test_what_means_harm_on_the_command_line():
    began = time.perf_counter()
    for value in ("9" * 5000, "[" * 5000):
        (found,) = faults("--seed", value)
        assert "characters); must be a whole number" in found
    assert "must be a readable YAML file (embedded null" in faults("--config", "a\0b")[0]
    assert time.perf_counter() - began < 5


def test_an_alias_may_stand_for_a_number(write):
    config = parse(["--config", write("validation_steps: &n 50\ncheckpointing_steps: *n")])
    assert (config.validation_steps, config.checkpointing_steps) == (50, 50)


@pytest.mark.parametrize(
    "text, value", [("010", 10), ("0o10", 8), ("0x10", 16), ("+7", 7), ("007", 7)]
)
def test_whole_numbers_are_those_of_yaml_1_2(write, text, value):
    assert parse(["--config", write(f"seed: {text}")]).seed == value
    assert parse(["--seed", text]).seed == value


@pytest.mark.parametrize("text", ["1:30", "1_000", "0b11", "1e2", "2001-01-01"])
def test_what_only_yaml_1_1_takes_for_a_number_is_refused(write, text):
    (found,) = faults("--config", write(f"seed: {text}"))
    assert "must be a whole number" in found
    assert "must be a whole number" in faults("--seed", text)[0]
    if text != "1e2":
        assert parse(["--config", write(f"dataset_name: {text}")]).dataset_name == text


@pytest.mark.parametrize("name", [n for n, kind in TYPES.items() if NoneType in get_args(kind)])
def test_none_is_what_the_help_calls_it(write, name):
    extra = ["--max_train_minutes", "1"] if name == "max_train_steps" else []
    assert getattr(parse([f"--{name}", "None", *extra]), name) is None
    assert getattr(parse(["--config", write(f"{name}: None"), *extra]), name) is None


def test_the_home_directory_is_found(write, monkeypatch):
    monkeypatch.setenv("HOME", "/home/me")
    path = write("output_dir: ~/runs/a\ndataset_name: ~/data")
    config = parse(["--config", path, "--pretrained_model_name_or_path=~/model"])
    assert (config.output_dir, config.dataset_name) == ("/home/me/runs/a", "/home/me/data")
    assert config.pretrained_model_name_or_path == "/home/me/model"
    assert parse(["--resume_from_checkpoint=~/a/step-3"]).resume_from_checkpoint.startswith("/home")
    assert parse(["--output_dir=a/~"]).output_dir == "a/~"
    (found,) = faults("--output_dir=~nobody-here/runs")
    assert "no user has that home directory; write the path in full" in found


@pytest.mark.parametrize(
    "name, fault",
    [
        ("num_epochs", "unknown flag; set max_train_steps: an epoch is the number of images / tot"),
        ("gradient_accumulation_steps", "unknown flag; set per_device_batch_size, the most samp"),
        ("train_batch_size", "unknown flag; set total_batch_size, the samples of a step over all"),
        ("bf16", "unknown flag; set mixed_precision, to no or bf16"),
    ],
)
def test_names_of_other_trainers_say_what_ours_is_called(write, name, fault):
    assert fault in faults(f"--{name}", "8")[0]
    assert fault.replace("flag", "field") in faults("--config", write(f"{name}: 8"))[0]


# --- what cannot be meant -----------------------------------------------------------------------

NUMBERS = [name for name, kind in TYPES.items() if re.search(r"\b(int|float)\b", str(kind))]


def test_every_number_has_a_range():
    assert set(NUMBERS) == set(limits.ALLOWED)


@pytest.mark.parametrize("name", [n for n in NUMBERS if "float" in str(TYPES[n])])
@pytest.mark.parametrize("value", [".nan", ".inf", "-.inf"])
def test_numbers_are_finite(name, value):
    value = f"{{generate: {value}}}" if name in ("tasks", "task_weights") else value
    extra = ["--task_weighting", "fixed"] if name == "task_weights" else []
    (found,) = faults(f"--{name}", value, *extra)
    assert found.startswith(f"{name}: found ") and "must be finite" in found


@pytest.mark.parametrize(
    "name, value",
    [
        (name, value)
        for names, *values in [
            ("resolution", "7", "-8", "10000"),
            ("strength_levels", "1", "1000000"),
            ("block_out_channels", "[0]", "[-8, 8]", "[]"),
            ("attention_resolutions", "[0]"),
            ("layers_per_block num_attention_heads norm_num_groups token_dim", "0", "-1"),
            ("max_train_steps total_batch_size per_device_batch_size", "0", "-1"),
            ("checkpointing_steps validation_steps logging_steps validation_images", "0"),
            ("checkpoints_total_limit num_threads", "0"),
            ("num_threads total_batch_size reserved_tokens token_dim", "1000000000"),
            ("layers_per_block", "1000"),
            ("max_train_steps seed shuffle_buffer_size num_processes", "1" + "0" * 30),
            ("max_train_minutes", "1e300"),
            ("reserved_tokens seed", "-1"),
            ("lr_warmup_steps adam_weight_decay", "-0.1"),
            ("sigma_std sigma_data sigma_min sigma_max", "0", "-1"),
            ("learning_rate adam_epsilon max_grad_norm max_train_minutes", "0", "-1"),
            ("dropout adam_beta1 adam_beta2", "-0.1", "1"),
            ("class_dropout task_dropout", "-0.1", "1.1"),
            ("ema_half_life ema_ramp", "0", "1.1"),
            ("tasks", "{edit: -1}", "{edit: 1e300}"),
            ("dataset_name train_split output_dir tracker_project_name image_column", ""),
            ("hub_model_id", ""),
        ]
        for name in names.split()
        for value in values
    ],
)
def test_ranges(name, value):
    (found, *rest) = faults(f"--{name}", value)
    assert found.startswith(f"{name}: found ")
    assert not [line for line in rest if not line.startswith(name)]


@pytest.mark.parametrize(
    "argv, fault",
    [
        (
            "resolution=18 block_out_channels=[8,8,8]",
            "resolution: found 18; must be a multiple of 4",
        ),
        ("block_out_channels=[32,60]", "norm_num_groups: found 8; must divide block_out_channels"),
        ("num_attention_heads=3", "num_attention_heads: found 3; must divide block_out_channels"),
        ("attention_resolutions=[4]", "no feature map of side 4, only of 16, 8"),
        ("train_only=tokens", 'train_only: found "tokens"; must be all, or set pretrained_model'),
        ("revision=main", 'revision: found "main"; must be null, or set pretrained_model_name'),
        (
            "objective=distillation",
            'objective: found "distillation"; must be denoising, or set pre',
        ),
        (
            "objective=distillation pretrained_model_name_or_path=me/it alignment_classifier=c",
            'alignment_classifier: found "c"; must be null, or set objective to denoising',
        ),
        ("tasks={}", "tasks: found {}; must have at least one task above 0"),
        ("tasks={edit:0}", 'tasks: found {"edit": 0.0}; must have at least one task above 0'),
        ("tasks={edti:1}", "no task is called edti, did you mean edit?; there are generate, inp"),
        ("tasks={7:1}", "no task is called 7; there are"),
        ("tasks.paint=1", "no task is called paint, did you mean inpaint?"),
        (
            "total_batch_size=3",
            "total_batch_size: found 3; gives inpaint less than one sample; use 4",
        ),
        ("tasks={generate:0.9,edit:0.01}", "gives edit less than one sample; use 91 or more"),
        (
            "task_weighting=fixed",
            "task_weights: found null; must have a weight for each of generate",
        ),
        ("task_weights={edit:1}", 'task_weights: found {"edit": 1.0}; must be null, or set task_w'),
        (
            "task_weighting=fixed task_weights={edit:1}",
            "must have a weight for each of generate, inp",
        ),
        (
            "tasks={edit:1} task_weighting=fixed task_weights={edit:1,inpaint:1}",
            "must have a weight for each of edit, and no other",
        ),
        ("tasks={edit:1} task_weighting=fixed task_weights={edit:-1}", "must be finite, and 0, or"),
        (
            "gradient_aggregation=mgda task_weighting=fixed"
            " task_weights={generate:1,inpaint:1,edit:0}",
            "must be above 0 for each of generate, inpaint, edit, or set gradient_aggregation to",
        ),
        (
            "tasks={edit:1} task_weighting=fixed task_weights={edit:0}",
            "at least one weight above 0",
        ),
        ("sigma_min=80", "sigma_min: found 80.0; must be below sigma_max, which is 80.0"),
        (
            "per_device_batch_size=33",
            "per_device_batch_size: found 33; must be at most total_batch",
        ),
        ("lr_warmup_steps=1201", "lr_warmup_steps: found 1201.0; must be at most max_train_steps"),
        ("lr_warmup_steps=1.5", "lr_warmup_steps: found 1.5; must be whole steps, or a share"),
        *[
            (f"hub_model_id={name}", f'hub_model_id: found "{name}"; must be user/name')
            for name in ["it", "a/b/c", "/it", "me/", "me/a--b", "me/a..b", "me/-a", "me/x.git"]
        ],
        ("push_to_hub output_dir=runs/a..b", 'output_dir: found "runs/a..b"; must end in a name'),
        ("push_to_hub output_dir=/", 'output_dir: found "/"; must end in a name'),
    ],
)
def test_contradictions(argv, fault):
    (found,) = faults(*flags(argv))
    assert fault in found


@pytest.mark.parametrize(
    "argv",
    [
        "hub_model_id=me/it.v-1_0",  # may be set long before it is published
        "tasks.inpaint=0 total_batch_size=3",  # 0 leaves a task out
        "tasks.inpaint=0 task_weighting=fixed task_weights={generate:1,inpaint:1,edit:1}",
        "train_only=tokens pretrained_model_name_or_path=me/it revision=main",
        "objective=distillation pretrained_model_name_or_path=me/it",
        "attention_resolutions=[]",  # the middle block still has it
        "tasks={generate:1,inpaint:1,edit:1} total_batch_size=3",  # thirds do not round up
        "lr_warmup_steps=1200",
        "lr_warmup_steps=0",
        "push_to_hub",
        "per_device_batch_size=32",
        "block_out_channels=[8] attention_resolutions=[16]",
    ],
)
def test_what_is_allowed(argv):
    assert parse(flags(argv)) != TrainConfig()  # accepted, and heard


def test_all_faults_come_together(write):
    path = write("learning_rat: 1\nseed: x\nseed: y\nsigma_min: 90\ntasks: {edti: 1}")
    found = faults("--config", path, "--sead", "1", "--token_dim", "x", "--dropout", "2", "stray")
    assert [re.match(r"[\w -]+", line)[0].strip() for line in found] == [
        "command line",
        "seed",
        "learning_rat",
        "seed",
        "--sead",
        "--token_dim",
        "dropout",
        "tasks",
        "sigma_min",
    ]


def test_the_message_counts_and_lists():
    with pytest.raises(ConfigError, match=r"^1 fault in the configuration:\n  seed: found -1; "):
        parse(["--seed", "-1"])
    assert issubclass(ConfigError, ValueError)


def test_one_mistake_gives_one_line():
    # Whether 48 is too many cannot be said without a total_batch_size.
    assert len(faults("--total_batch_size", "x", "--per_device_batch_size", "48")) == 1
    assert len(faults("--norm_num_groups", "0")) == 1
    assert len(faults("--resolution", "x", "--attention_resolutions", "[64]")) == 1
    assert len(faults("--tasks", "x", "--task_weighting", "sum")) == 1


# --- what follows from a config -----------------------------------------------------------------


def test_shares_are_normalised_and_leave_out_zero():
    shares = TrainConfig(tasks={"generate": 3, "inpaint": 0, "edit": 1}).shares
    assert shares == {"generate": 0.75, "edit": 0.25}


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
    assert list(yaml.safe_load(resolved(config))) == list(to_dict(config))


def test_a_config_goes_through_json():
    config = parse(["--tasks.colorize", "1", "--resume_from_checkpoint", "none"])
    assert from_dict(json.loads(json.dumps(to_dict(config)))) == config


def test_from_dict_is_strict_but_takes_defaults():
    assert from_dict({"seed": 3}) == TrainConfig(seed=3)
    with pytest.raises(ConfigError) as caught:
        from_dict({"sede": 3, "token_dim": "x"})
    assert len(caught.value.faults) == 2


def test_differences_name_the_field_and_both_values():
    old, new = to_dict(TrainConfig()), to_dict(TrainConfig(seed=1, tasks={"edit": 1}))
    assert differences(old, old) == []
    assert differences(old, new, allowed={"tasks"}) == [
        "seed: the checkpoint has 0, this run has 1"
    ]
    assert len(differences(old, new)) == 2
    del old["token_dim"]
    assert differences(old, to_dict(TrainConfig())) == [
        "token_dim: the checkpoint has nothing, this run has 64"
    ]


# --- the files and the script -------------------------------------------------------------------


@pytest.mark.parametrize("path", sorted(ROOT.glob("configs/*.yaml")), ids=lambda path: path.name)
def test_every_config_is_sound_and_says_why(path):
    config = parse(["--config", str(path), "--dry_run"])
    assert config.dry_run and config.output_dir != TrainConfig().output_dir
    for line in path.read_text().splitlines():
        assert "# " in line


def script(*argv: str) -> subprocess.CompletedProcess:
    command = [sys.executable, "scripts/train.py", *argv]
    environ = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=environ)


def test_help_has_the_text_of_every_field():
    shown = script("--help")
    assert shown.returncode == 0
    words = " ".join(shown.stdout.split())
    source = (ROOT / "mtl_diffusion/config/fields.py").read_text()
    for f in fields(TrainConfig):
        text = re.search(rf'\n    {f.name}: (?:.|\n)*?\n    """((?:.|\n)*?)"""\n', source)[1]
        assert f"--{f.name} " in words
        assert " ".join(text.split()) in words, f.name


def test_help_is_quick_and_needs_no_torch():
    code = (
        "import sys\n"
        "from mtl_diffusion.config.command_line import parse\n"
        "try: parse(['--help'])\n"
        "except SystemExit as stop: assert stop.code == 0\n"
        "slow = {'torch', 'numpy', 'diffusers', 'transformers', 'accelerate', 'datasets'}\n"
        "assert not slow & set(sys.modules), slow & set(sys.modules)"
    )
    began = time.perf_counter()
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT, stdout=subprocess.DEVNULL)
    # Half a second on an idle core; the rest is room for a busy machine.
    assert time.perf_counter() - began < 5


def test_the_package_itself_is_light():
    code = "import sys, mtl_diffusion; mtl_diffusion.__version__; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)


@pytest.mark.slow
def test_the_script_turns_faults_into_exit_2():
    done = script("--seed", "x", "--token_dim", "0")
    assert done.returncode == 2
    assert done.stdout == "" and "Traceback" not in done.stderr
    assert "2 faults in the configuration:" in done.stderr
