"""The length of a run in steps, given in steps or in minutes, and what it costs."""

import json
import logging
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import psutil
import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list

from ..config import ConfigError, TrainConfig, resolved, show
from ..config.network import NETWORK
from ..tools.files import write_text
from .run import Run
from .schedule import same_steps

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
    can_have = f"{has} steps or more" if free else f"{has} steps"
    return (
        f"max_train_steps: found {asked}; {where} has no checkpoint from step "
        f"{same_steps(old, new)} or before, up to which runs of {has} and of {asked} steps are the "
        f"same. With what is there it can have {can_have}; or choose another output_dir"
    )


def describe(run: Run, asked: TrainConfig, seconds: float) -> str:
    """The resolved configuration, the number of parameters, and the cost of the run.

    Args:
        run: that has taken some steps.
        asked: the configuration before its network was chosen.
        seconds: that a step has taken.
    """
    config, parameters = run.config, list(run.unet.parameters())
    total = sum(p.numel() for p in parameters)
    trained = sum(p.numel() for p in parameters if p.requires_grad)
    size, steps, device = config.total_batch_size, config.max_train_steps, run.accelerator.device
    if device.type == "cuda":
        memory = f"{torch.cuda.max_memory_allocated(device) / 1e9:.2f} GB of the GPU"
    else:  # freed memory is kept, see tools/memory.py: this is the peak
        memory = f"{psutil.Process().memory_info().rss / 1e9:.2f} GB"
    lines = [resolved(config)]
    chosen = [name for name in NETWORK if getattr(asked, name) is None]
    if chosen and config.pretrained_model_name_or_path is None:
        words = ", ".join(f"{name} {show(getattr(config, name))}" for name in chosen)
        lines.append(f"chosen for resolution {show(config.resolution)}: {words}")
    lines += [
        f"parameters: {total / 1e6:.2f}M, of which {trained / 1e6:.2f}M are trained",
        f"memory of a process: {memory} with its data, measured on steps of this run",
        f"rate: {size / seconds:.4g} images a second, measured on steps of this run",
        f"run: {size * steps:,} images, {steps * seconds / 60:.3g} minutes at this rate",
    ]
    return "\n".join(lines)


def _read(noted: Path) -> float | None:
    """The saved seconds per step; None: there is no file."""
    if not noted.exists():
        return None
    try:
        return float(json.loads(noted.read_text())["seconds_per_step"])
    except (ValueError, LookupError, TypeError) as error:
        cure = "delete it to measure the rate anew, with which the length of the run changes"
        raise ConfigError(f"output_dir: {noted} is damaged: {cure}") from error
