"""The length of a run in steps, given in steps or in minutes."""

import json
import logging
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from accelerate import Accelerator
from accelerate.utils import broadcast_object_list

from ..config import ConfigError, TrainConfig
from ..tools.files import write_text

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
