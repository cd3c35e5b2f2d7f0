"""Before any work: can this run be done here, and is it the only one in its folder?"""

import errno
import fcntl
import importlib.util
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.utils import ProjectConfiguration
from torch.utils.flop_counter import FlopCounterMode

from .config import ConfigError, TrainConfig, resolved, to_dict
from .run import Run, use_all_cores


def begin(config: TrainConfig) -> Accelerator:
    """The accelerator of this run, after everything that can be checked without data is.

    Raises:
        ConfigError: every fault at once, each naming the field.
    """
    use_all_cores(config.num_threads)
    if faults := [*_tracker_faults(config), *_folder_faults(config)]:
        raise ConfigError(faults)
    output_dir = Path(config.output_dir)
    accelerator = Accelerator(
        mixed_precision=config.mixed_precision,
        log_with=None if config.report_to == "none" else config.report_to,
        project_config=ProjectConfiguration(str(output_dir), logging_dir=str(output_dir / "logs")),
    )
    if config.total_batch_size < accelerator.num_processes:
        raise ConfigError(
            [
                f"total_batch_size: found {config.total_batch_size}; there are "
                f"{accelerator.num_processes} processes, and each needs a sample or more"
            ]
        )
    if not config.dry_run:
        # Trackers take flat tables of plain values.
        plain = {k: v if isinstance(v, int | float) else str(v) for k, v in to_dict(config).items()}
        accelerator.init_trackers(config.tracker_project_name, config=plain)
    return accelerator


@contextmanager
def only_run_in(output_dir: Path, accelerator: Accelerator) -> Iterator[None]:
    """Holds the folder's lock, which the system releases when the process ends, however it ends.

    Raises:
        ConfigError: another run holds it.
    """
    if not accelerator.is_main_process:
        yield
        return
    output_dir.mkdir(parents=True, exist_ok=True)
    with open(output_dir / ".lock", "w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno not in (errno.EAGAIN, errno.EACCES):
                raise
            raise ConfigError(
                [f"output_dir: found {output_dir}; another run is writing there: wait or change it"]
            ) from error
        yield


def describe(run: Run) -> str:
    """The resolved configuration, the number of parameters, and what a step costs."""
    config, unet = run.config, run.unet
    size, length = config.resolution, run.vocabulary.size
    device = run.accelerator.device
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        tokens = torch.zeros(1, 3, length, device=device)
        unet(
            torch.zeros(1, unet.config.in_channels, size, size, device=device),
            torch.zeros(1, device=device),
            encoder_hidden_states=tokens,
            class_labels=tokens.flatten(1),
        )
    forward = counter.get_total_flops()
    total = sum(p.numel() for p in unet.parameters())
    trained = sum(p.numel() for p in unet.parameters() if p.requires_grad)
    # The backward pass costs about twice the forward pass.
    step = 3 * forward * config.total_batch_size
    return "\n".join(
        [
            resolved(config),
            f"parameters: {total / 1e6:.2f}M, of which {trained / 1e6:.2f}M are trained",
            f"forward pass: {forward / 1e9:.3f} GFLOP an image",
            f"step: {step / 1e9:.1f} GFLOP over {config.total_batch_size} images, "
            f"on {run.accelerator.num_processes} process(es)",
            f"run: {step * config.max_train_steps / 1e15:.3f} PFLOP over "
            f"{config.total_batch_size * config.max_train_steps:,} images; "
            f"{len(run.train_data):,} training and {len(run.held_out):,} held-out images, "
            f"{len(run.vocabulary.classes)} classes",
        ]
    )


def _tracker_faults(config: TrainConfig) -> Iterator[str]:
    if config.report_to != "none" and importlib.util.find_spec(config.report_to) is None:
        yield (
            f"report_to: found {config.report_to!r}, which is not installed; "
            f"pip install {config.report_to}, or choose another one, or none"
        )


def _folder_faults(config: TrainConfig) -> Iterator[str]:
    output_dir = Path(config.output_dir)
    try:
        output_dir.mkdir(parents=True, exist_ok=True)
        probe = output_dir / ".writable"
        probe.touch()
        probe.unlink()
    except OSError as error:
        yield f"output_dir: found {output_dir}; can't write there: {error.strerror}"
