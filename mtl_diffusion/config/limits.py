"""What the values of a configuration may be: each by itself, and together."""

from __future__ import annotations

import math
import re
from collections.abc import Collection, Iterable, Iterator

from .fields import TYPES, TrainConfig, hint, listed, show

_RANGES = (
    ("resolution", lambda v: v >= 8, "8 or more"),
    ("strength_levels", lambda v: v >= 2, "2 or more, one for each end"),
    (
        "block_out_channels attention_resolutions layers_per_block num_attention_heads"
        " norm_num_groups token_dim max_train_steps total_batch_size per_device_batch_size"
        " num_threads num_processes checkpointing_steps checkpoints_total_limit validation_steps"
        " validation_images logging_steps shuffle_buffer_size",
        lambda v: v >= 1,
        "1 or more",
    ),
    (
        "reserved_tokens lr_warmup_steps adam_weight_decay seed alignment_weight"
        " perceptual_weight perceptual_images",
        lambda v: v >= 0,
        "0 or more",
    ),
    (
        "sigma_std sigma_data sigma_min sigma_max learning_rate adam_epsilon max_grad_norm"
        " max_train_minutes",
        lambda v: v > 0,
        "above 0",
    ),
    ("dropout adam_beta1 adam_beta2", lambda v: 0 <= v < 1, "0 or more, and below 1"),
    ("class_dropout task_dropout", lambda v: 0 <= v <= 1, "0 to 1"),
    ("ema_half_life ema_ramp lr_decay", lambda v: 0 < v <= 1, "above 0, and at most 1"),
    ("tasks task_weights", lambda v: v == 0 or 1e-6 <= v <= 1e6, "0, or 1e-6 to 1e6"),
    ("sigma_mean", lambda v: True, "any number"),
)
ALLOWED = {name: rule for names, *rule in _RANGES for name in names.split()}
# The Hub's own rule for repositories.
_REPO_NAME = re.compile(r"(?!.*(--|\.\.|\.git$))[A-Za-z0-9_](?:[\w.-]{0,94}[A-Za-z0-9_])?", re.A)

Faults = Iterator[tuple[str, str]]  # (field, what is allowed or what to do)


def faults(
    config: TrainConfig, known_tasks: Collection[str], unreadable: Iterable[str] = ()
) -> list[str]:
    """What is out of range or contradictory, a line each; empty if nothing is.

    Nothing is said of the fields in `unreadable`, nor of what depends on them, and a field
    that is wrong by itself is not compared with others: one mistake, one line.
    """
    lines, wrong = [], set(unreadable)
    for check in (_value_faults, _data_faults, _model_faults, _task_faults, _run_faults):
        found = [fault for fault in check(config, known_tasks, wrong) if fault[0] not in wrong]
        lines += [f"{name}: found {show(getattr(config, name))}; {what}" for name, what in found]
        wrong |= {name for name, _ in found}
    return lines


def _value_faults(config: TrainConfig, known_tasks: Collection[str], wrong: set[str]) -> Faults:
    """Each value by itself."""
    for name in TYPES:
        value = getattr(config, name)
        if value == "" or (name == "block_out_channels" and value == []):
            yield name, "must not be empty"
        if name not in ALLOWED or value is None:
            continue
        allowed, words = ALLOWED[name]
        if isinstance(value, dict):
            numbers, words = value.values(), f"{words}, every number"
        elif isinstance(value, list):
            numbers, words = value, f"{words}, every number"
        else:
            numbers = [value]
        if not all(abs(number) < math.inf and allowed(number) for number in numbers):
            yield name, f"must be finite, and {words}"


def _data_faults(config: TrainConfig, known_tasks: Collection[str], wrong: set[str]) -> Faults:
    """What can't be streamed."""
    if "streaming" in wrong or not config.streaming:
        return
    if config.dataset_name == "shapes":
        yield "streaming", 'must be false: "shapes" is drawn in memory'
    for name in ("train_split", "validation_split"):
        if set("[+") & set(getattr(config, name)):
            yield name, "must be one whole split, or set streaming to false: a stream has no slices"


def _model_faults(config: TrainConfig, known_tasks: Collection[str], wrong: set[str]) -> Faults:
    """The shapes of the UNet, and which of its weights are trained."""
    for name in ("norm_num_groups", "num_attention_heads"):
        divisor = getattr(config, name)
        if wrong.isdisjoint({"block_out_channels", name}):
            odd = [c for c in config.block_out_channels if c % divisor]
            if odd:
                yield name, f"must divide block_out_channels, and does not divide {listed(odd)}"
    if wrong.isdisjoint({"block_out_channels", "resolution"}):
        levels = len(config.block_out_channels)
        step = 2 ** (levels - 1)
        if config.resolution % step:
            what = f"must be a multiple of {step}: block_out_channels has {levels} levels"
            yield "resolution", what
        elif "attention_resolutions" not in wrong:
            sizes = [config.resolution // 2**level for level in range(levels)]
            if odd := [size for size in config.attention_resolutions if size not in sizes]:
                what = f"there is no feature map of side {listed(odd)}, only of {listed(sizes)}"
                yield "attention_resolutions", what
    if config.pretrained_model_name_or_path is None and (
        "pretrained_model_name_or_path" not in wrong
    ):
        if config.train_only != "all":
            yield "train_only", "must be all, or set pretrained_model_name_or_path to start from"
        if config.revision is not None:
            yield "revision", "must be null, or set pretrained_model_name_or_path, which it is of"


def _task_faults(config: TrainConfig, known_tasks: Collection[str], wrong: set[str]) -> Faults:
    """Which tasks, how often, how heavy."""
    if wrong.isdisjoint({"alignment_classifier", "perceptual_weight"}) and (
        config.alignment_classifier is None and config.perceptual_weight > 0
    ):
        yield "perceptual_weight", "must be 0, or set alignment_classifier, whose features it needs"
    if "tasks" in wrong:
        return
    unknown = [str(name) for name in config.tasks if name not in known_tasks]
    if unknown:
        hints = "".join(hint(name, known_tasks) for name in unknown)
        there = listed(known_tasks)
        yield "tasks", f"no task is called {listed(unknown)}{hints}; there are {there}"
        return
    if not any(config.tasks.values()):
        yield "tasks", f"must have at least one task above 0; there are {listed(known_tasks)}"
        return
    rarest = min(config.shares, key=config.shares.__getitem__)
    smallest = math.ceil(1 / config.shares[rarest] - 1e-9)
    if "total_batch_size" not in wrong and config.total_batch_size < smallest:
        what = f"gives {rarest} less than one sample; use {smallest} or more, or change tasks"
        yield "total_batch_size", what

    weights, needed = config.task_weights, listed(config.shares)
    aggregates = "gradient_aggregation" not in wrong and config.gradient_aggregation != "sum"
    if not wrong.isdisjoint({"task_weights", "task_weighting"}):
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


def _run_faults(config: TrainConfig, known_tasks: Collection[str], wrong: set[str]) -> Faults:
    """Pairs of fields that cannot both be right, and the name on the Hub."""
    if wrong.isdisjoint({"sigma_min", "sigma_max"}) and config.sigma_min >= config.sigma_max:
        yield "sigma_min", f"must be below sigma_max, which is {show(config.sigma_max)}"
    if wrong.isdisjoint({"per_device_batch_size", "total_batch_size"}) and (
        (config.per_device_batch_size or 1) > config.total_batch_size
    ):
        limit = config.total_batch_size
        yield "per_device_batch_size", f"must be at most total_batch_size, which is {limit}"
    if "lr_warmup_steps" not in wrong and config.lr_warmup_steps >= 1:
        if config.lr_warmup_steps % 1:
            yield "lr_warmup_steps", "must be whole steps, or a share of the run below 1"
        elif (
            "max_train_steps" not in wrong
            and config.max_train_steps is not None
            and config.lr_warmup_steps > config.max_train_steps
        ):
            yield "lr_warmup_steps", f"must be at most max_train_steps, {config.max_train_steps}"
    if wrong.isdisjoint({"max_train_steps", "max_train_minutes"}) and (
        config.max_train_steps is None and config.max_train_minutes is None
    ):
        yield "max_train_steps", "must be a number of steps, or set max_train_minutes"
    if config.hub_model_id is not None:
        user, _, name = config.hub_model_id.partition("/")
        if not (_REPO_NAME.fullmatch(user) and _REPO_NAME.fullmatch(name)):
            yield "hub_model_id", "must be user/name, of letters, digits, '-', '_' and '.'"
    elif (
        config.push_to_hub
        and "hub_model_id" not in wrong
        and not _REPO_NAME.fullmatch(config.repository)
    ):
        yield "output_dir", "must end in a name that the Hub accepts, or set hub_model_id"
