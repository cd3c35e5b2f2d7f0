"""The learning rate of a run, and which steps two runs of different lengths share."""

import math
from dataclasses import replace

from ..config import TrainConfig


def learning_rate(config: TrainConfig, step: int) -> float:
    """The rate of the update that follows `step` finished ones: a function of the step alone."""
    warmup = config.warmup_steps
    if step < warmup:
        return config.learning_rate * (step + 1) / warmup
    last, start = config.max_train_steps, decay_start(config)
    done = (step - warmup) / max(1, last - warmup)  # 0 to 1
    left = (last - step) / (last - start) if start < step else 1.0  # of the decay
    shape = {
        "constant": 1.0,
        "linear": 1 - done,
        "cosine": 0.5 * (1 + math.cos(math.pi * done)),
        "warmup_stable_decay": left,
    }
    return config.learning_rate * shape[config.lr_scheduler]


def decay_start(config: TrainConfig) -> int:
    """The step from which on the learning rate depends on the length of the run."""
    last, warmup = config.max_train_steps, config.warmup_steps
    if config.lr_scheduler == "warmup_stable_decay":
        return max(warmup, last - round(config.lr_decay * last))
    return last if config.lr_scheduler == "constant" else warmup


def same_steps(one: TrainConfig, other: TrainConfig) -> int:
    """The step up to which two runs are the same, if they differ in nothing but their lengths."""
    if one.max_train_steps == other.max_train_steps:
        return one.max_train_steps
    if any(config.warmup_steps > config.max_train_steps for config in (one, other)):
        return 0
    return min(decay_start(one), decay_start(other))


def with_shares_of(config: TrainConfig, first_length: int) -> TrainConfig:
    """The configuration of a run that was first given another length, in steps.

    A warm-up that is a share of the run stays as long as it was. So the steps that were done are
    those of a run of the new length with that many steps of warm-up.
    """
    if config.max_train_steps == first_length:
        return config
    first = replace(config, max_train_steps=first_length)
    return replace(config, lr_warmup_steps=float(first.warmup_steps))


def lengthening_steps(config: TrainConfig) -> tuple[int, ...]:
    """Steps whose checkpoints are kept, because a longer run would continue from there."""
    return (decay_start(config),) if config.lr_scheduler == "warmup_stable_decay" else ()
