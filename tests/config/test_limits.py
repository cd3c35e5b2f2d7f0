"""Values that are read and can't be meant: ranges, and contradictions between fields."""

import re

import pytest

from configs import argv, faults
from mtl_diffusion.config import ConfigError, TrainConfig, check, checked, from_dict
from mtl_diffusion.config.command_line import parse
from mtl_diffusion.config.fields import TYPES
from mtl_diffusion.config.network import with_network


def names(lines):
    return {line.partition(": found ")[0].removeprefix("--") for line in lines}


# Numbers below 0 are in order for these.
SIGNED = {"sigma_mean", "value_range", "teacher_guidance_interval"}


@pytest.mark.parametrize("value", ["-1", ".nan", "-.inf", "1" + "0" * 30])
def test_every_number_has_a_range(value):
    """A bad value of each field at once: a line for each, and none of another field."""
    kinds = {name: str(kind) for name, kind in TYPES.items()}
    numbers = {name for name, kind in kinds.items() if re.search(r"\b(int|float)\b", kind)}
    if value == "-1":
        numbers -= SIGNED
    elif value[0] == "1":  # whole numbers have an upper limit too
        numbers = {name for name in numbers if "float" not in kinds[name]}
    assert names(faults(*(f"--{name}={value}" for name in numbers))) == numbers


@pytest.mark.parametrize(
    "words",
    [
        "resolution=7 strength_levels=1 layers_per_block=1000 dropout=1 class_dropout=1.1",
        "resolution=[8] image_mode=0 value_range=[1,0] shown_bands=[0] lr_decay=0 ema_ramp=1.1",
        "image_mode=CMYK block_out_channels=[] attention_resolutions=[0] tasks={edit:.nan}",
        "max_train_minutes=1e300 tasks={edit:1e300} learning_rate=0 sigma_data=0 output_dir=",
        "block_out_channels=[-8,8] tasks={edit:-1} image_mode=true shown_bands=[-1,0,1]",
    ],
)
def test_ranges(words):
    assert names(faults(*argv(words))) == {word.partition("=")[0] for word in words.split()}


NEW = "pretrained_model_name_or_path=me/it"
ALONE = f"objective=matching {NEW} class_dropout=0"
MATCH = f"{ALONE} tasks={{generate:1}} feature_classifier=c"


@pytest.mark.parametrize(
    "words, fault",
    [
        ("resolution=18 block_out_channels=[8,8,8]", "resolution: found 18; must be a multiple of"),
        ("block_out_channels=[32,60] norm_num_groups=8", "norm_num_groups: found 8; must divide"),
        ("resolution=[8,10] block_out_channels=[8,8,8]", "a multiple of 4, such as [8, 12]"),
        ("resolution=65", "resolution: found 65; must halve to 32 pixels or less, such as 68"),
        ("attention_resolutions=[4]", "no feature map of side 4, only of 16, 8"),
        ("train_only=tokens", 'found "tokens"; must be "all", or set pretrained_model_name_or_'),
        (f"objective=distillation {NEW} alignment_classifier=c", 'found "c"; must be null, or set'),
        (f"{ALONE} tasks={{generate:1}}", "feature_classifier: found null; must be the folder"),
        (f"{ALONE} feature_classifier=c", "must be without edit, whose answer is a mean; or set"),
        (f"{MATCH} class_dropout=0.1", "class_dropout: found 0.1; must be 0"),
        (
            f"{MATCH} balance_classes",
            "balance_classes: found true; must be false, or set objective",
        ),
        (f"{MATCH} teacher_model_name_or_path=a", "must be null, or set objective to distillation"),
        ("feature_classifier=c", "must be null, or set objective to distillation or matching"),
        ("streaming", 'streaming: found true; must be false: "shapes" is drawn in memory'),
        ("tasks={}", "tasks: found {}; must have at least one task above 0"),
        ("tasks={edti:1}", "no task is called edti, did you mean edit?; there are generate, inp"),
        ("image_dtype=float32", "value_range: found null; must be the lowest and highest number"),
        ("image_dtype=uint16 value_range=[0,70000]", "must be in 0 to 65535"),
        ("value_range=[0,1]", "value_range: found [0.0, 1.0]; must be null, or set image_dtype"),
        ("image_mode=5 shown_bands=[1,2,5]", "shown_bands: found [1, 2, 5]; must be below 5"),
        ("condition_columns={from_map:map}", "must have a share in tasks for each of from_map"),
        ("condition_columns={edit:map}", "edit is a task already; give another name"),
        ("image_mode=L tasks={colorize:1}", 'image_mode: found "L"; must be RGB or RGBA'),
        ("total_batch_size=2", "found 2; gives generate less than one sample; use 3 or more"),
        ("tasks={generate:0.9,edit:0.01}", "gives edit less than one sample; use 91 or more"),
        ("sigma_min=80", "sigma_min: found 80.0; must be below sigma_max, which is 80.0"),
        ("per_device_batch_size=33", "found 33; must be at most total_batch_size"),
        ("lr_warmup_steps=1201", "lr_warmup_steps: found 1201.0; must be at most max_train_steps"),
        ("max_train_steps=null", "max_train_steps: found null; must be a number of steps, or set"),
    ],
)
def test_contradictions(words, fault):
    (found,) = faults(*argv(words))
    assert fault in found


@pytest.mark.parametrize(
    "words",
    [
        "tasks={generate:1,inpaint:0,edit:1} total_batch_size=2",  # 0 leaves a task out
        f"objective=distillation train_only=tokens {NEW} revision=main",
        f"resolution=32 attention_resolutions=[4] {NEW}",  # compared when that model is loaded
        "attention_resolutions=[] resolution=[16,24]",  # the middle block still has it
        "total_batch_size=3 lr_warmup_steps=1200",  # thirds do not round up
    ],
)
def test_what_is_allowed(words):
    assert parse(argv(words)) != TrainConfig()  # accepted, and heard


def test_every_side_has_a_network_or_is_told_the_next_that_has():
    refused = []
    for side in range(8, 257):
        try:
            network = with_network(checked({"resolution": side}))
        except ConfigError as error:
            refused.append(side)
            side = int(re.search(r"such as (\d+); or", str(error))[1])
            network = with_network(checked({"resolution": side}))
        levels = len(network.block_out_channels)
        assert side % 2 ** (levels - 1) == 0 and side // 2 ** (levels - 1) <= 32
    assert refused[0] == 33 and not {64, 96, 100, 128, 200, 224, 256} & {*refused}
    (fault,) = faults("--resolution=[65,100]")
    assert "such as [68, 100]" in fault


def test_what_python_made_is_checked_too(monkeypatch):
    monkeypatch.setenv("HOME", "/home/me")
    config = check(TrainConfig(output_dir="~/runs", resume_from_checkpoint="none", lr_decay=1))
    assert (config.output_dir, config.resume_from_checkpoint) == ("/home/me/runs", None)
    assert config.given == {"output_dir", "resume_from_checkpoint", "lr_decay"}
    with pytest.raises(ConfigError) as caught:
        check(TrainConfig(resolution="16", sigma_min=90, tasks={"edti": 1}))
    assert names(caught.value.faults) == {"resolution", "sigma_min", "tasks"}
    # A checkpoint is read even if a rule has been added since.
    assert from_dict({"sigma_min": 90.0}).sigma_min == 90
