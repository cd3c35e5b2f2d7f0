"""Checks of a configuration's values: each by itself, and together."""

import math
import re
from collections.abc import Callable, Collection, Iterable, Iterator
from typing import Annotated, Any, get_args, get_origin, get_type_hints

from .fields import PATHS, TYPES, TrainConfig, listed, show, suggestion
from .ranges import LARGEST, Allowed


def _allowed(kind: Any) -> Allowed | None:
    """The rule for the numbers in a type; None: it has no numbers."""
    if get_origin(kind) is Annotated:
        return kind.__metadata__[0]
    return next((found for part in get_args(kind) if (found := _allowed(part))), None)


ALLOWED = {
    name: allowed
    for name, kind in get_type_hints(TrainConfig, include_extras=True).items()
    if (allowed := _allowed(kind))
}
# The Hub's own rule for repositories.
_REPO_NAME = re.compile(r"(?!.*(--|\.\.|\.git$))[A-Za-z0-9_](?:[\w.-]{0,94}[A-Za-z0-9_])?", re.A)

Faults = Iterator[tuple[str, str]]  # (field, what is allowed or what to do)
Right = Callable[..., bool]  # whether none of the fields named is wrong by itself


def faults(
    config: TrainConfig, known_tasks: Collection[str], unreadable: Iterable[str] = ()
) -> list[str]:
    """A line for each value that is out of range, or contradicts another one.

    The fields in `unreadable` are not checked, and a field that is wrong by itself is not compared
    with others: each mistake is reported once.
    """
    lines, wrong = [], set(unreadable)

    def right(*names: str) -> bool:
        return wrong.isdisjoint(names)

    for check in (_value_faults, _data_faults, _model_faults, _task_faults, _run_faults):
        found = [fault for fault in check(config, known_tasks, right) if right(fault[0])]
        lines += [f"{name}: found {show(getattr(config, name))}; {what}" for name, what in found]
        wrong |= {name for name, _ in found}
    return lines


def _value_faults(config: TrainConfig, known_tasks: Collection[str], right: Right) -> Faults:
    """Each value by itself."""
    for name in TYPES:
        value = getattr(config, name)
        if value == "" or (name == "block_out_channels" and value == []):
            yield name, "must not be empty"
        if isinstance(value, str) and "\0" in value:
            yield name, "must be without a NUL character"
        elif name in PATHS and value is not None and value.startswith("~"):
            yield name, "no user has that home directory; write the path in full"
        if name not in ALLOWED or value is None:
            continue
        allowed, words = ALLOWED[name], ALLOWED[name].words
        if isinstance(value, dict | list):
            numbers = value.values() if isinstance(value, dict) else value
            words = f"{words}, every number"
        else:
            numbers = [value]
            if isinstance(value, int) and value > LARGEST:
                words += f", and at most {LARGEST:,}"
        if not all(abs(number) < math.inf and allowed.test(number) for number in numbers):
            yield name, f"must be finite, and {words}"


def _data_faults(config: TrainConfig, known_tasks: Collection[str], right: Right) -> Faults:
    """Data that cannot be streamed."""
    if not (right("streaming") and config.streaming):
        return
    if config.dataset_name == "shapes":
        yield "streaming", 'must be false: "shapes" is drawn in memory'
    for name in ("train_split", "validation_split"):
        if set("[+") & set(getattr(config, name)):
            yield name, "must be one whole split, or set streaming to false: a stream has no slices"


def _model_faults(config: TrainConfig, known_tasks: Collection[str], right: Right) -> Faults:
    """The shapes of the UNet, and which of its weights are trained."""
    for name in ("norm_num_groups", "num_attention_heads"):
        divisor = getattr(config, name)
        if right("block_out_channels", name):
            odd = [c for c in config.block_out_channels if c % divisor]
            if odd:
                yield name, f"must divide block_out_channels, and does not divide {listed(odd)}"
    if right("block_out_channels", "resolution"):
        levels = len(config.block_out_channels)
        step = 2 ** (levels - 1)
        if config.resolution % step:
            what = f"must be a multiple of {step}: block_out_channels has {levels} levels"
            yield "resolution", what
        elif right("attention_resolutions"):
            sizes = [config.resolution // 2**level for level in range(levels)]
            if odd := [size for size in config.attention_resolutions if size not in sizes]:
                what = f"there is no feature map of side {listed(odd)}, only of {listed(sizes)}"
                yield "attention_resolutions", what
    if right("pretrained_model_name_or_path") and config.pretrained_model_name_or_path is None:
        if config.train_only != "all":
            yield "train_only", "must be all, or set pretrained_model_name_or_path to start from"
        if right("objective") and config.objective == "distillation":
            what = "must be denoising, or set pretrained_model_name_or_path to a teacher"
            yield "objective", what
        if config.revision is not None:
            yield "revision", "must be null, or set pretrained_model_name_or_path, which it is of"


def _task_faults(config: TrainConfig, known_tasks: Collection[str], right: Right) -> Faults:
    """The tasks, their proportions and their weights."""
    aligns = config.alignment_classifier is not None
    perceptual, distils = config.perceptual_weight > 0, config.objective == "distillation"
    if right("alignment_classifier", "perceptual_weight") and perceptual and not aligns:
        yield "perceptual_weight", "must be 0, or set alignment_classifier, whose features it needs"
    if right("alignment_classifier", "objective") and aligns and distils:
        yield "alignment_classifier", "must be null, or set objective to denoising"
    for name in ("teacher_model_name_or_path", "edit_classifier"):
        if right(name, "objective") and getattr(config, name) is not None and not distils:
            yield name, "must be null, or set objective to distillation"
    if not right("tasks"):
        return
    unknown = [str(name) for name in config.tasks if name not in known_tasks]
    if unknown:
        hints = "".join(suggestion(name, known_tasks) for name in unknown)
        there = listed(known_tasks)
        yield "tasks", f"no task is called {listed(unknown)}{hints}; there are {there}"
        return
    if not any(config.tasks.values()):
        yield "tasks", f"must have at least one task above 0; there are {listed(known_tasks)}"
        return
    rarest = min(config.shares, key=config.shares.__getitem__)
    smallest = math.ceil(1 / config.shares[rarest] - 1e-9)
    if right("total_batch_size") and config.total_batch_size < smallest:
        what = f"gives {rarest} less than one sample; use {smallest} or more, or change tasks"
        yield "total_batch_size", what

    weights, needed = config.task_weights, listed(config.shares)
    aggregates = right("gradient_aggregation") and config.gradient_aggregation != "sum"
    if not right("task_weights", "task_weighting"):
        return
    if config.task_weighting != "fixed":
        if weights is not None:
            yield "task_weights", "must be null, or set task_weighting to fixed"
    elif weights is None:
        yield "task_weights", f"must have a weight for each of {needed}: task_weighting is fixed"
    elif not config.shares.keys() <= weights.keys() <= config.tasks.keys():
        yield "task_weights", f"must have a weight for each of {needed}, and no other"
    elif not any(weights[name] for name in config.shares):
        yield "task_weights", "must have at least one weight above 0"
    elif aggregates and not all(weights[name] for name in config.shares):
        what = f"must be above 0 for each of {needed}, or set gradient_aggregation to sum"
        yield "task_weights", what


def _run_faults(config: TrainConfig, known_tasks: Collection[str], right: Right) -> Faults:
    """Pairs of fields that cannot both be right, and the name on the Hub."""
    if right("sigma_min", "sigma_max") and config.sigma_min >= config.sigma_max:
        yield "sigma_min", f"must be below sigma_max, which is {show(config.sigma_max)}"
    if right("per_device_batch_size", "total_batch_size"):
        limit = config.total_batch_size
        if (config.per_device_batch_size or 1) > limit:
            yield "per_device_batch_size", f"must be at most total_batch_size, which is {limit}"
    steps, minutes = config.max_train_steps, config.max_train_minutes
    if right("lr_warmup_steps") and config.lr_warmup_steps >= 1:
        if config.lr_warmup_steps % 1:
            yield "lr_warmup_steps", "must be whole steps, or a share of the run below 1"
        elif right("max_train_steps") and steps is not None and config.lr_warmup_steps > steps:
            yield "lr_warmup_steps", f"must be at most max_train_steps, {steps}"
    if right("max_train_steps", "max_train_minutes") and steps is None and minutes is None:
        yield "max_train_steps", "must be a number of steps, or set max_train_minutes"
    named = _REPO_NAME.fullmatch(config.repository)
    if config.hub_model_id is not None:
        user, _, name = config.hub_model_id.partition("/")
        if not (_REPO_NAME.fullmatch(user) and _REPO_NAME.fullmatch(name)):
            yield "hub_model_id", "must be user/name, of letters, digits, '-', '_' and '.'"
    elif right("hub_model_id") and config.push_to_hub and not named:
        yield "output_dir", "must end in a name that the Hub accepts, or set hub_model_id"
