"""Checks of the fields that depend on each other."""

import math
import re
from collections.abc import Collection, Iterable, Iterator, Sequence
from itertools import chain

from ..tools.fields import show
from .fields import TrainConfig, suggestion
from .network import LARGEST, next_size, with_network

# The Hub's own rule for repositories.
_REPO_NAME = re.compile(r"(?!.*(--|\.\.|\.git$))[A-Za-z0-9_](?:[\w.-]{0,94}[A-Za-z0-9_])?", re.A)

# Pairs: the name of the wrong field, followed by those of the fields that it depends on; and a
# sentence that says what is allowed, or what to do.
Faults = Iterator[tuple[str, str]]


def faults(
    config: TrainConfig, known_tasks: Sequence[str], wrong: Collection[str] = ()
) -> list[str]:
    """A line for each field that contradicts others.

    Args:
        wrong: fields that have a fault already. Nothing is compared with them.
    """
    wrong, lines = {*wrong}, []
    checks = (
        _data(config, known_tasks),
        _images(config),
        _model(config),
        _tasks(config, known_tasks),
        _run(config),
    )
    for names, what in chain(*checks):
        name, *others = names.split()
        if wrong.isdisjoint((name, *others)):
            wrong.add(name)
            lines.append(f"{name}: found {show(getattr(config, name))}; {what}")
    return lines


def _data(c: TrainConfig, known_tasks: Sequence[str]) -> Faults:
    if c.streaming and c.dataset_name == "shapes":
        yield "streaming dataset_name", 'must be false: "shapes" is drawn in memory'
    if c.streaming and c.mask_column is not None:
        what = "must be null, or set streaming to false: a stream has no masks of other images"
        yield "mask_column streaming", what
    if c.streaming and c.balance_classes:
        what = "must be false, or set streaming to false: a stream comes in its own order"
        yield "balance_classes streaming", what
    conditions = c.condition_columns or {}
    if c.streaming and conditions:
        yield "condition_columns streaming", "must be null, or set streaming to false"
    if odd := [name for name in conditions if not (name.isidentifier() and name.islower())]:
        what = f"{listed(odd)} must be lower-case letters, digits and _, such as from_mask"
        yield "condition_columns", what
    elif taken := [name for name in conditions if known_tasks.count(name) > 1]:
        yield "condition_columns", f"{listed(taken)} is a task already; give another name"
    elif missing := [name for name in conditions if name not in c.shares]:
        yield "condition_columns tasks", f"must have a share in tasks for each of {listed(missing)}"
    if c.mask_column is not None and "inpaint" not in c.shares:
        yield "mask_column tasks", "must be null, or give inpaint a share of tasks"
    for name in ("train_split", "validation_split"):
        if c.streaming and set("[+") & set(getattr(c, name)):
            what = "must be one whole split, or set streaming to false: a stream has no slices"
            yield f"{name} streaming", what


def _images(c: TrainConfig) -> Faults:
    """The channels and numbers of the images."""
    if c.image_dtype == "uint8" and c.value_range is not None:
        yield "value_range image_dtype", "must be null, or set image_dtype to uint16 or float32"
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
    source = "pretrained_model_name_or_path"
    if c.pretrained_model_name_or_path is None:
        network, depends = with_network(c), f"block_out_channels {source}"
        levels = len(network.block_out_channels)
        for name in ("norm_num_groups", "num_attention_heads"):
            whole = getattr(network, name)
            if odd := [width for width in network.block_out_channels if width % whole]:
                what = f"must divide block_out_channels, and does not divide {listed(odd)}"
                yield f"{name} {depends}", what
        if any(side % (step := 2 ** (levels - 1)) for side in c.size):
            height, width = (-(-side // step) * step for side in c.size)
            following = show([height, width] if isinstance(c.resolution, list) else height)
            what = f"must be a multiple of {step}, such as {following}"
            yield f"resolution {depends}", f"{what}: block_out_channels has {levels} levels"
        elif c.block_out_channels is None and min(c.size) // 2 ** (levels - 1) > LARGEST:
            height, width = next_size(c.size)
            following = show([height, width] if isinstance(c.resolution, list) else height)
            what = f"must halve to {LARGEST} pixels or less, such as {following}"
            yield f"resolution {depends}", f"{what}; or set block_out_channels"
        sizes = [min(c.size) // 2**level for level in range(levels)]
        if odd := [size for size in network.attention_resolutions if size not in sizes]:
            what = f"there is no feature map of side {listed(odd)}, only of {listed(sizes)}"
            yield f"attention_resolutions resolution {depends}", what
        if c.train_only != "all":
            yield f"train_only {source}", f"must be all, or set {source} to start from"
        if c.objective == "distillation":
            yield f"objective {source}", f"must be denoising, or set {source} to a teacher"
        if c.revision is not None:
            yield f"revision {source}", f"must be null, or set {source}, which it is of"
    if c.sigma_min >= c.sigma_max:
        yield "sigma_min sigma_max", f"must be below sigma_max, which is {show(c.sigma_max)}"


def _tasks(c: TrainConfig, known_tasks: Collection[str]) -> Faults:
    """The tasks and their proportions, and what a distillation has no use for."""
    unused = {"alignment_classifier": None, "sigma_mean": -1.2, "sigma_std": 1.2}
    for name, default in unused.items() if c.objective == "distillation" else ():
        if getattr(c, name) != default:
            yield f"{name} objective", f"must be {show(default)}, or set objective to denoising"
    for name in ("teacher_model_name_or_path", "edit_classifier"):
        if getattr(c, name) is not None and c.objective != "distillation":
            yield f"{name} objective", "must be null, or set objective to distillation"
    there = listed(known_tasks)
    if unknown := [name for name in c.tasks if name not in known_tasks]:
        hints = "".join(suggestion(name, known_tasks) for name in unknown)
        yield "tasks", f"no task is called {listed(unknown)}{hints}; there are {there}"
    if not any(c.tasks.values()):
        yield "tasks", f"must have at least one task above 0; there are {there}"
        return
    rarest = min(c.shares, key=c.shares.__getitem__)
    smallest = math.ceil(1 / c.shares[rarest] - 1e-9)
    if c.total_batch_size < smallest:
        what = f"gives {rarest} less than one sample; use {smallest} or more, or change tasks"
        yield "total_batch_size tasks", what


def _run(c: TrainConfig) -> Faults:
    steps, warmup = c.max_train_steps, c.lr_warmup_steps
    if (c.per_device_batch_size or 1) > c.total_batch_size:
        what = f"must be at most total_batch_size, which is {c.total_batch_size}"
        yield "per_device_batch_size total_batch_size", what
    if warmup >= 1 and warmup % 1:
        yield "lr_warmup_steps", "must be whole steps, or a share of the run below 1"
    if warmup >= 1 and steps is not None and warmup > steps:
        yield "lr_warmup_steps max_train_steps", f"must be at most max_train_steps, {steps}"
    if steps is None and c.max_train_minutes is None:
        what = "must be a number of steps, or set max_train_minutes"
        yield "max_train_steps max_train_minutes", what
    if c.hub_model_id and not all(map(_REPO_NAME.fullmatch, c.hub_model_id.partition("/")[::2])):
        yield "hub_model_id", "must be user/name, of letters, digits, '-', '_' and '.'"
    if c.push_to_hub and not c.hub_model_id and not _REPO_NAME.fullmatch(c.repository):
        what = "must end in a name that the Hub accepts, or set hub_model_id"
        yield "output_dir hub_model_id push_to_hub", what


def listed(values: Iterable) -> str:
    return ", ".join(map(str, values))
