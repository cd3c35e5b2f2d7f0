"""What can't be read: every fault in one message, each with its field and what to do."""

import json
import re
from itertools import pairwise

import pytest

from configs import faults


@pytest.mark.parametrize(
    "text, fault",
    [
        ("learning_rat: 1", "learning_rat (F): unknown field, did you mean learning_rate?"),
        ("seed: x", 'seed (F): found "x"; must be a valid integer'),
        ("use_ema: on", 'use_ema (F): found "on"; must be a valid boolean'),
        ("block_out_channels: 8", "found 8; must be a valid list, such as [32, 64]"),
        ("tasks: [edit]", 'found ["edit"]; must be a valid dictionary, such as {generate: 1, '),
        ("report_to: paper", "must be 'tensorboard', 'trackio', 'wandb' or 'none'"),
        ("per_device_batch_size: x", 'found "x"; must be a valid integer, or null'),
        ("seed: 1\nseed: 2", 'readable YAML file (while constructing a mapping in "<unicode '),
        ("", "must be a readable YAML file (it must hold lines such as seed: 1)"),
        ("seed: [", "--config: found F; must be a readable YAML file (while parsing"),
        ("seed: !!python/name:os.system", "must be a readable YAML file (could not determine a"),
        ('output_dir: "a\\0b"', 'found "a\\u0000b"; must match pattern'),
        ("resolution: [8]", "must be a valid integer, or have at least 2 items"),
        ("image_mode: CMYK", "must be 'L', 'RGB' or 'RGBA', or be a valid integer"),
        ("value_range: [1, 0]", "found [1, 0]; must be the lower number first, or null"),
        ("condition_columns: {A: map}", "must match pattern '^[a-z][a-z0-9_]*$', or null"),
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
        (["--seed"], "--seed: found no value; write --seed=VALUE"),
        (["--tasks.edit", "1"], "--tasks.edit: unknown flag, did you mean --tasks?"),
        (["seed=1"], 'command line: found "seed=1"; must be --name value'),
        (["--config", "/none.yaml"], '--config: found "/none.yaml"; must be a readable YAML file'),
        (["--config", "a\0b"], "must be a readable YAML file (embedded null"),
    ],
)
def test_what_is_wrong_on_the_command_line(argv, fault):
    (found,) = faults(*argv)
    assert fault in found


BOMB = "".join(f"- &{b} [*{a}, *{a}, *{a}, *{a}]\n" for a, b in pairwise("abcdefghijklmnopqrst"))


@pytest.mark.parametrize(
    "text, fault",
    [
        (f"seed:\n- &a [1, 1]\n{BOMB}", "...; must be a valid integer"),
        ("tasks: &t [*t]", "must be a valid dictionary"),
        ("tasks: " + "[" * 600, "too many lists or mappings inside one another"),
        ("seed: 0x" + "f" * 100_000, "must be less than or equal to 1000000000000"),
    ],
    ids=lambda text: text[:20],
)
def test_a_file_that_means_harm_is_refused_at_once(write, text, fault):
    (found,) = faults("--config", write(text))
    assert fault in found and len(found) < 1000


@pytest.mark.parametrize(
    "name, fault",
    [
        ("num_epochs", "unknown flag; set max_train_steps: an epoch is the number of images / tot"),
        ("gradient_accumulation_steps", "unknown flag; set per_device_batch_size: what exceeds"),
        ("bf16", "unknown flag; set mixed_precision, to no, bf16 or fp16"),
        ("ema_half_life", "unknown flag; set ema_ramp: the half-life is that share of the images"),
        ("adam_beta2", "unknown flag; leave it out: it is always 0.99"),
        ("hub_strategy", "unknown flag; leave it out: publish a checkpoint with mtl-diffusion pub"),
    ],
)
def test_other_and_former_names_say_what_ours_is_called(write, name, fault):
    assert fault in faults(f"--{name}", "8")[0]
    assert fault.replace("flag", "field") in faults("--config", write(f"{name}: 8"))[0]


def test_all_faults_come_together(write):
    path = write("learning_rat: 1\nseed: x\ntasks: {edti: 1}\nsigma_min: 90")
    found = faults("--config", path, "--sead", "1", "--token_dim", "x", "--dropout", "2", "stray")
    assert sorted(re.match(r"[\w -]+", line)[0].strip() for line in found) == [
        *("--dropout", "--sead", "--token_dim", "command line"),
        *("learning_rat", "seed", "sigma_min", "tasks"),
    ]


def test_one_mistake_gives_one_line():
    # Whether 48 is too many cannot be said without a total_batch_size.
    assert len(faults("--total_batch_size", "x", "--per_device_batch_size", "48")) == 1
    assert len(faults("--norm_num_groups", "0")) == 1
    assert len(faults("--resolution", "x", "--attention_resolutions", "[64]")) == 1
    assert len(faults("--tasks", "x", "--task_weighting", "sum")) == 1
