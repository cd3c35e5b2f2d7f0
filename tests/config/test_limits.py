"""Values that are read and can't be meant: ranges, and contradictions between fields."""

import re

import pytest
from tiny import flags

from configs import TASKS, argv, faults
from mtl_diffusion.config import (
    TYPES,
    TrainConfig,
    limits,
)
from mtl_diffusion.config.command_line import parse

NUMBERS = [name for name, kind in TYPES.items() if re.search(r"\b(int|float)\b", str(kind))]


def test_every_number_has_a_range():
    assert set(NUMBERS) == set(limits.ALLOWED)


@pytest.mark.parametrize("value", [".nan", ".inf", "-.inf"])
def test_numbers_are_finite(value):
    floats = {name: value for name in NUMBERS if "float" in str(TYPES[name])}
    floats |= {name: f"{{generate: {value}}}" for name in ("tasks", "task_weights")}
    found = faults("--task_weighting=fixed", *flags(**floats))
    assert {line.partition(":")[0] for line in found} == floats.keys()
    assert all("must be finite" in line for line in found)


RANGES = {
    "resolution": ["7", "-8", "10000"],
    "strength_levels": ["1", "1000000"],
    "block_out_channels": ["[0]", "[-8, 8]", "[]"],
    "attention_resolutions": ["[0]"],
    "layers_per_block": ["0", "-1", "1000"],
    "num_attention_heads norm_num_groups per_device_batch_size": ["0", "-1"],
    "token_dim total_batch_size": ["0", "-1", "1000000000"],
    "max_train_steps num_processes": ["0", "-1", "1" + "0" * 30],
    "checkpointing_steps validation_steps logging_steps validation_images": ["0"],
    "num_threads checkpoints_total_limit shuffle_buffer_size": ["0", "1" + "0" * 30],
    "seed reserved_tokens": ["-1", "1" + "0" * 30],
    "lr_warmup_steps adam_weight_decay": ["-0.1"],
    "sigma_std sigma_data sigma_min sigma_max": ["0", "-1"],
    "learning_rate adam_epsilon max_grad_norm": ["0", "-1"],
    "max_train_minutes": ["0", "-1", "1e300"],
    "dropout adam_beta1 adam_beta2": ["-0.1", "1"],
    "class_dropout task_dropout": ["-0.1", "1.1"],
    "ema_half_life ema_ramp": ["0"],
    "tasks": ["{edit: -1}", "{edit: 1e300}"],
    "dataset_name train_split output_dir tracker_project_name image_column hub_model_id": [""],
}


@pytest.mark.parametrize("place", [0, 1, 2])
def test_ranges(place):
    """A bad value of each field at once: a line for each, and none of another field."""
    given = {
        name: values[place]
        for names, values in RANGES.items()
        for name in names.split()
        if place < len(values)
    }
    assert {line.partition(": found ")[0] for line in faults(*flags(**given))} == given.keys()


@pytest.mark.parametrize(
    "words, fault",
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
            "total_batch_size=2",
            "total_batch_size: found 2; gives generate less than one sample; use 3",
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
def test_contradictions(words, fault):
    (found,) = faults(*argv(words))
    assert fault in found


@pytest.mark.parametrize(
    "words",
    [
        "hub_model_id=me/it.v-1_0",  # may be set long before it is published
        "tasks.inpaint=0 total_batch_size=2",  # 0 leaves a task out
        "tasks.inpaint=0 task_weighting=fixed task_weights={generate:1,inpaint:1,edit:1}",
        "train_only=tokens pretrained_model_name_or_path=me/it revision=main",
        "objective=distillation pretrained_model_name_or_path=me/it",
        "attention_resolutions=[]",  # the middle block still has it
        "total_batch_size=3",  # thirds do not round up
        "lr_warmup_steps=1200",
        "lr_warmup_steps=0",
        "push_to_hub",
        "per_device_batch_size=32",
        "block_out_channels=[8] attention_resolutions=[16]",
    ],
)
def test_what_is_allowed(words):
    assert limits.faults(TrainConfig(), TASKS) == []
    assert parse(argv(words)) != TrainConfig()  # accepted, and heard
