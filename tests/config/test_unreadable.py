"""What can't be read: every fault in one message, each with its field and what to do."""

import json
import re
import time
from itertools import pairwise

import pytest

from configs import faults
from mtl_diffusion.config.command_line import parse


@pytest.mark.parametrize(
    "text, fault",
    [
        ("learning_rat: 1", "learning_rat (F): unknown field, did you mean learning_rate?"),
        ("config: x.yaml", "config (F): unknown field"),
        ("seed: x", 'seed (F): found "x"; must be a whole number'),
        ("seed: 1.5", "seed (F): found 1.5; must be a whole number"),
        ("learning_rate: true", "learning_rate (F): found true; must be a number"),
        ("use_ema: 1", "use_ema (F): found 1; must be true or false"),
        ("dataset_name: 12", "dataset_name (F): found 12; must be a text"),
        ("block_out_channels: [8, x]", 'block_out_channels (F): found [8, "x"]; must be a list'),
        ("tasks: {edit: x}", 'tasks (F): found {"edit": "x"}; must be names with numbers'),
        ("report_to: paper", 'report_to (F): found "paper"; must be one of tensorboard, trackio'),
        ("seed: 1\nseed: 2", "seed (F): found more than once; keep one"),
        ("- seed", "--config: found F; must hold lines such as seed: 1"),
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
        (["--seed.x", "1"], "--seed.x: unknown flag"),
        (["--seed", "x"], '--seed: found "x"; must be a whole number'),
        (["--seed"], "--seed: found no value; write --seed VALUE"),
        (["--dry_run", "x"], '--dry_run: found "x"; must be true or false'),
        (["--learning_rate", "nan"], '--learning_rate: found "nan"; must be a number'),
        (["--tasks.edit", "x"], '--tasks.edit: found "x"; must be a number'),
        (["--mixed_precision", "fp16"], '--mixed_precision: found "fp16"; must be one of no, bf16'),
        (["seed=1"], 'command line: found "seed=1"; must be --name value'),
        (["--config", "/none.yaml"], '--config: found "/none.yaml"; must be a readable YAML file'),
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
        ("tasks: &t {edit: *t}", "*t stands for a list or a mapping"),
        ("tasks: " + "[" * 5000 + "]" * 5000, "more than 10 lists or mappings inside"),
        ("tasks: " + "{a: " * 5000, "more than 10 lists or mappings inside one another"),
        ("seed: " + "9" * 5000, "a number of 5000 digits"),
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


@pytest.mark.parametrize("text", ["1:30", "1_000", "0b11", "0x10", "1e2", "2001-01-01"])
def test_what_is_no_plain_number_is_refused(write, text):
    (found,) = faults("--config", write(f"seed: {text}"))
    assert "must be a whole number" in found
    assert "must be a whole number" in faults("--seed", text)[0]
    if text != "1e2":
        assert parse(["--config", write(f"dataset_name: {text}")]).dataset_name == text


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


def test_one_mistake_gives_one_line():
    # Whether 48 is too many cannot be said without a total_batch_size.
    assert len(faults("--total_batch_size", "x", "--per_device_batch_size", "48")) == 1
    assert len(faults("--norm_num_groups", "0")) == 1
    assert len(faults("--resolution", "x", "--attention_resolutions", "[64]")) == 1
    assert len(faults("--tasks", "x", "--task_weighting", "sum")) == 1
