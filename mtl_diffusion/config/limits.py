"""Checks of the fields that depend on each other."""

import math
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from itertools import chain
from typing import Any

from .fields import TrainConfig, show, suggestion
from .network import LARGEST, with_network

SOURCE = "pretrained_model_name_or_path"

# Pairs: the name of the wrong field, followed by those of the fields that it depends on; and a
# sentence that says what is allowed, or what to do.
Faults = Iterator[tuple[str, str]]


def faults(
    config: TrainConfig, known_tasks: Sequence[str], wrong: Collection[str] = ()
) -> dict[str, str]:
    """What is wrong with each field that contradicts others.

    Args:
        wrong: fields that have a fault already. Nothing is compared with them.
    """
    found: dict[str, str] = {}
    for names, what in chain(
        _data(config, known_tasks),
        _images(config),
        _model(config),
        _tasks(config, known_tasks),
        _run(config),
    ):
        name, *others = names.split()
        if {*wrong, *found}.isdisjoint((name, *others)):
            found[name] = f"found {show(getattr(config, name))}; {what}"
    return found


def _only(c: TrainConfig, values: Mapping[str, Any], others: str, cure: str) -> Faults:
    """Each of some fields that has another value than the one that `others` allow."""
    for name, value in values.items():
        if getattr(c, name) != value:
            yield f"{name} {others}", f"must be {show(value)}, or {cure}"


def _data(c: TrainConfig, known_tasks: Sequence[str]) -> Faults:
    if c.streaming:
        if c.dataset_name == "shapes":
            yield "streaming dataset_name", 'must be false: "shapes" is drawn in memory'
        absent = {"mask_column": None, "condition_columns": None, "balance_classes": False}
        yield from _only(c, absent, "streaming", "set streaming to false")
    conditions = c.condition_columns or {}
    if taken := [name for name in conditions if known_tasks.count(name) > 1]:
        yield "condition_columns", f"{listed(taken)} is a task already; give another name"
    elif missing := [name for name in conditions if name not in c.shares]:
        yield "condition_columns tasks", f"must have a share in tasks for each of {listed(missing)}"
    if "inpaint" not in c.shares:
        yield from _only(c, {"mask_column": None}, "tasks", "give inpaint a share of tasks")


def _images(c: TrainConfig) -> Faults:
    """The channels and numbers of the images."""
    if c.image_dtype == "uint8":
        other = "set image_dtype to uint16 or float32"
        yield from _only(c, {"value_range": None}, "image_dtype", other)
    if c.image_dtype == "float32" and c.value_range is None:
        what = "must be the lowest and highest number, such as [0, 1]: image_dtype is float32"
        yield "value_range image_dtype", what
    low, high = c.value_range or (0, 1)
    if c.image_dtype == "uint16" and (low < 0 or high > 65535):
        yield "value_range image_dtype", "must be in 0 to 65535, or set image_dtype to float32"
    if c.shown_bands is not None and max(c.shown_bands) >= c.image_channels:
        what = f"must be below {c.image_channels}, the bands of image_mode, or null"
        yield "shown_bands image_mode", what
    if "colorize" in c.shares and c.image_mode not in ("RGB", "RGBA"):
        yield "image_mode tasks", "must be RGB or RGBA, or leave colorize out of tasks"


def _model(c: TrainConfig) -> Faults:
    """The shape of a new network, and the fields that need a trained one to start from."""
    if c.sigma_min >= c.sigma_max:
        yield "sigma_min sigma_max", f"must be below sigma_max, which is {show(c.sigma_max)}"
    if c.pretrained_model_name_or_path is not None:
        return
    new = {"train_only": "all", "objective": "denoising", "revision": None}
    yield from _only(c, new, SOURCE, f"set {SOURCE}")
    network, depends = with_network(c), f"block_out_channels {SOURCE}"
    for name in ("norm_num_groups", "num_attention_heads"):
        whole = getattr(network, name)
        if odd := [width for width in network.block_out_channels if width % whole]:
            what = f"must divide block_out_channels, and does not divide {listed(odd)}"
            yield f"{name} {depends}", what
    levels, what = len(network.block_out_channels), None
    step = 2 ** (levels - 1)
    if any(side % step for side in c.size):
        what = f"must be a multiple of {step}, such as {{}}: block_out_channels has {levels} levels"
    elif c.block_out_channels is None and min(c.size) // step > LARGEST:
        step = 2 ** math.ceil(math.log2(min(c.size) / LARGEST))
        what = f"must halve to {LARGEST} pixels or less, such as {{}}; or set block_out_channels"
    if what is not None:
        following = [-(-side // step) * step for side in c.size]
        following = show(following if isinstance(c.resolution, list) else following[0])
        yield f"resolution {depends}", what.format(following)
    sizes = [min(c.size) // 2**level for level in range(levels)]
    if odd := [size for size in network.attention_resolutions if size not in sizes]:
        what = f"there is no feature map of side {listed(odd)}, only of {listed(sizes)}"
        yield f"attention_resolutions resolution {depends}", what


def _tasks(c: TrainConfig, known_tasks: Collection[str]) -> Faults:
    """The tasks and their proportions, and what the objective has no use for."""
    if c.objective == "denoising":
        unused = {"feature_classifier": None}
        yield from _only(c, unused, "objective", "set objective to distillation or matching")
    else:
        unused = {"alignment_classifier": None, "sigma_mean": -1.2, "sigma_std": 1.2}
        unused["augmentation"] = 0.0
        yield from _only(c, unused, "objective", "set objective to denoising")
    to_distil = "set objective to distillation"
    if c.objective != "distillation":
        unused = {"teacher_model_name_or_path": None, "teacher_guidance_interval": None}
        yield from _only(c, unused, "objective", to_distil)
    if c.objective == "matching":
        if c.feature_classifier is None:
            what = "must be the folder of a classifier, whose features are matched"
            yield "feature_classifier objective", what
        if "edit" in c.shares:
            yield "tasks objective", "must be without edit, whose answer is a mean; or " + to_distil
        # The features are those of all images as they are, each of a class.
        unused = {"class_dropout": 0.0, "balance_classes": False}
        yield from _only(c, unused, "objective", to_distil)
    there = listed(known_tasks)
    if unknown := [name for name in c.tasks if name not in known_tasks]:
        hints = "".join(suggestion(name, known_tasks) for name in unknown)
        yield "tasks", f"no task is called {listed(unknown)}{hints}; there are {there}"
    if not any(c.tasks.values()):
        yield "tasks", f"must have at least one task above 0; there are {there}"
        return
    rarest = min(c.shares, key=c.shares.__getitem__)
    smallest = math.ceil(1 / max(c.shares[rarest], 1e-12) - 1e-9)
    if c.total_batch_size < smallest:
        what = f"gives {rarest} less than one sample; use {smallest} or more, or change tasks"
        yield "total_batch_size tasks", what


def _run(c: TrainConfig) -> Faults:
    steps, warmup = c.max_train_steps, c.lr_warmup_steps
    if (c.per_device_batch_size or 1) > c.total_batch_size:
        what = f"must be at most total_batch_size, which is {c.total_batch_size}"
        yield "per_device_batch_size total_batch_size", what
    if warmup >= 1 and steps is not None and warmup > steps:
        yield "lr_warmup_steps max_train_steps", f"must be at most max_train_steps, {steps}"
    if steps is None and c.max_train_minutes is None:
        what = "must be a number of steps, or set max_train_minutes"
        yield "max_train_steps max_train_minutes", what


def listed(values: Iterable) -> str:
    return ", ".join(map(str, values))
