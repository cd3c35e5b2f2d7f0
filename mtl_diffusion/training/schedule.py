"""Schedules of a run: the learning rate, and the weight of the perceptual loss."""

import math

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
    """The step at which the decay of warmup_stable_decay begins.

    Up to there a longer run of the same configuration takes the same steps.
    """
    decay = round(config.lr_decay * config.max_train_steps)
    return max(config.warmup_steps, config.max_train_steps - decay)


def perceptual_weight(config: TrainConfig, step: int) -> float:
    """perceptual_weight for the first half of perceptual_images, then linearly down to zero."""
    length = config.perceptual_images
    if length < 1:
        length *= config.max_train_steps * config.total_batch_size
    done = step * config.total_batch_size / max(length, 1)
    return config.perceptual_weight * min(1.0, max(0.0, 2 * (1 - done)))


def lengthening_steps(config: TrainConfig) -> tuple[int, ...]:
    """Steps whose checkpoints are kept, because a longer run would continue from there."""
    return (decay_start(config),) if config.lr_scheduler == "warmup_stable_decay" else ()
