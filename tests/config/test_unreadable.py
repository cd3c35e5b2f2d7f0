"""What can't be read: every fault in one message, each with its field and what to do."""

import json
import re
import time
from itertools import pairwise

import pytest

from configs import faults
from mtl_diffusion.config import (
    ConfigError,
)
from mtl_diffusion.config.command_line import parse


@pytest.mark.parametrize(
    "text, fault",
    [
        ("learning_rat: 1", "learning_rat (F): unknown field, did you mean learning_rate?"),
        ("qqq: 1", "qqq (F): unknown field"),
        ("config: x.yaml", "config (F): unknown field"),
        ("seed: x", 'seed (F): found "x"; must be a whole number'),
        ("seed: 1.5", "seed (F): found 1.5; must be a whole number"),
        ("seed: null", "seed (F): found null; must be a whole number"),
        ("learning_rate: true", "learning_rate (F): found true; must be a number"),
        ("use_ema: 1", "use_ema (F): found 1; must be true or false"),
        ("dataset_name: 12", "dataset_name (F): found 12; must be a text"),
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
        (["--seed.x", "1"], "--seed.x: unknown flag"),
        (["--tasks.edit.x", "1"], "--tasks.edit.x: unknown flag"),
        (["--seed", "x"], '--seed: found "x"; must be a whole number'),
        (["--seed"], "--seed: found no value; write --seed VALUE"),
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
    began = time.process_time()
    (found,) = faults("--config", write(text))
    assert fault in found and len(found) < 1000
    assert time.process_time() - began < 5


def test_what_means_harm_on_the_command_line():
    began = time.process_time()
    for value in ("9" * 5000, "[" * 5000):
        (found,) = faults("--seed", value)
        assert "characters); must be a whole number" in found
    assert "must be a readable YAML file (embedded null" in faults("--config", "a\0b")[0]
    assert time.process_time() - began < 5


@pytest.mark.parametrize("text", ["1:30", "1_000", "0b11", "1e2", "2001-01-01"])
def test_what_only_yaml_1_1_takes_for_a_number_is_refused(write, text):
    (found,) = faults("--config", write(f"seed: {text}"))
    assert "must be a whole number" in found
    assert "must be a whole number" in faults("--seed", text)[0]
    if text != "1e2":
        assert parse(["--config", write(f"dataset_name: {text}")]).dataset_name == text


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
