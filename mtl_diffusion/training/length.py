"""The length of a run in steps, given in steps or in minutes, and what it costs."""

import json
import logging
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list

from ..config import ConfigError, TrainConfig, resolved, show
from ..config.network import NETWORK
from ..tools.files import write_text
from ..tools.flops import bytes_of_unet, flops_of_unet
from .run import Run
from .schedule import same_steps, shortest_length

logger = logging.getLogger(__name__)


def with_length(
    config: TrainConfig,
    accelerator: Accelerator,
    seconds_per_step: Callable[[TrainConfig, Accelerator], float],
) -> TrainConfig:
    """The configuration with max_train_steps, computed from max_train_minutes if it has none.

    The schedules are functions of the step, so the rate is measured once, before the run, and
    saved in <output_dir>/length.json: a resumed run has the same length, on any machine. With
    another max_train_minutes the length changes in proportion.

    Args:
        seconds_per_step: how long a step takes on this machine.
    """
    if config.max_train_steps is not None:
        return config
    noted = Path(config.output_dir) / "length.json"
    # All processes take the reading of one, so that they agree on the number of steps.
    seconds = broadcast_object_list([_read(noted)])[0]
    if seconds is None:
        seconds = broadcast_object_list([seconds_per_step(config, accelerator)])[0]
        if accelerator.is_main_process and not config.dry_run:
            write_text(noted, json.dumps({"seconds_per_step": seconds}) + "\n")
    steps = max(1, round(60 * config.max_train_minutes / seconds))
    if accelerator.is_main_process:
        logger.warning(
            "%.4g s a step: %g minutes are %d steps, or %d images",
            *(seconds, config.max_train_minutes, steps, steps * config.total_batch_size),
        )
    return replace(config, max_train_steps=steps)


def other_length(old: TrainConfig, new: TrainConfig, free: list[int], where: str) -> str:
    """Why a run of the configuration `old` can't have the length of `new`; the lengths it can have.

    Args:
        free: steps of the checkpoints from before the decay. where: words for where these are.
    """
    has, asked = old.max_train_steps, new.max_train_steps
    if old.lr_scheduler in ("cosine", "linear"):
        return (
            f"max_train_steps: found {asked}; {where} is of a run of {has} steps, on which all "
            f"learning rates of lr_scheduler {old.lr_scheduler} depend. Give {has}; or train its "
            "exported pipeline further: another output_dir, and pretrained_model_name_or_path; "
            "or begin again with lr_scheduler warmup_stable_decay, whose runs can be lengthened"
        )
    can_have = f"{shortest_length(new, min(free))} steps or more" if free else f"{has} steps"
    return (
        f"max_train_steps: found {asked}; {where} has no checkpoint from step "
        f"{same_steps(old, new)} or before, up to which runs of {has} and of {asked} steps are the "
        f"same. With what is there it can have {can_have}; or choose another output_dir"
    )


def describe(run: Run, asked: TrainConfig, seconds: float) -> str:
    """The resolved configuration, the number of parameters, and the cost of a step.

    Args:
        asked: the configuration before its network was chosen.
        seconds: that a step has taken.
    """
    config, parameters = run.config, list(run.unet.parameters())
    forward, both = flops_of_unet(run.unet)
    total = sum(p.numel() for p in parameters)
    trained = sum(p.numel() for p in parameters if p.requires_grad)
    size, steps = config.total_batch_size, config.max_train_steps
    lines = [resolved(config)]
    chosen = [name for name in NETWORK if getattr(asked, name) is None]
    if chosen and config.pretrained_model_name_or_path is None:
        words = ", ".join(f"{name} {show(getattr(config, name))}" for name in chosen)
        lines.append(f"chosen for resolution {show(config.resolution)}: {words}")
    lines += [
        f"parameters: {total / 1e6:.2f}M, of which {trained / 1e6:.2f}M are trained",
        f"forward pass: {forward / 1e9:.3f} GFLOP an image",
        f"step: {both * size / 1e9:.1f} GFLOP over {size} images, "
        f"on {run.accelerator.num_processes} process(es)",
        f"run: {both * size * steps / 1e15:.3f} PFLOP over {size * steps:,} images",
        f"memory of a process: an estimate of {memory(run) / 1e9:.2f} GB besides the data",
        f"rate: {size / seconds:.4g} images a second, measured on steps of this run",
    ]
    return "\n".join(lines)


def memory(run: Run) -> float:
    """Bytes that a process needs for a step, about: weights with what is kept for each, and what
    the forward pass of a microbatch keeps for the backward pass."""
    config = run.config
    mine = -(-config.total_batch_size // run.accelerator.num_processes)
    images = min(mine, config.per_device_batch_size or mine)
    dtype = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(config.mixed_precision)
    fixed, of_image = bytes_of_unet(run.unet, dtype, config.gradient_checkpointing)
    weights = sum(p.nbytes for p in run.unet.parameters())
    trained = sum(p.nbytes for p in run.unet.parameters() if p.requires_grad)
    copies = 1 + (run.ema is not None) + (run.teacher is not None)
    # A gradient, and two moments of AdamW or a momentum and an update of Muon.
    return copies * weights + 3 * trained + fixed + images * of_image


def _read(noted: Path) -> float | None:
    """The saved seconds per step; None: there is no file."""
    if not noted.exists():
        return None
    try:
        seconds = json.loads(noted.read_text())["seconds_per_step"]
        if 0 < seconds < math.inf:
            return seconds
    except (ValueError, LookupError, TypeError, RecursionError):
        pass
    raise ConfigError(
        f'output_dir: found {noted}, which does not hold {{"seconds_per_step": NUMBER}}: mend it, '
        "or delete it to measure the rate anew, with which the length of the run changes"
    )
