"""Before any work: can this run be done here, and is it the only one in its folder?"""

import errno
import fcntl
import importlib.util
import logging
import os
import shutil
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import torch
from accelerate import Accelerator, PartialState
from accelerate.utils import ProjectConfiguration, is_bf16_available, parse_flag_from_env
from huggingface_hub import HfApi
from huggingface_hub.errors import HfHubHTTPError
from torch.utils.flop_counter import FlopCounterMode

from ..checkpoints.resume import folder_of
from ..config import ConfigError, TrainConfig, resolved, to_dict
from ..publishing.upload import check_right_to_write
from ..tools.distributed import from_all_processes
from ..training.aggregation import REQUIRED
from ..training.run import Run
from .host import keep_freed_memory, use_all_cores

logger = logging.getLogger(__name__)

# gloo's threads need Python's lock to let go of their last tensors, and whoever destroys the group
# waits for them: with the lock in hand, if it is DDP, and then both wait for ever (seen in 2 of 6
# runs). Python's own handle gives the lock back first, so it has to be the last.
_groups: list[torch.distributed.ProcessGroup] = []


@contextmanager
def begin(config: TrainConfig) -> Iterator[Accelerator]:
    """The accelerator of this run, after everything that can be checked without data is.

    Inside, the run's folder is its own.

    Raises:
        ConfigError: every fault of every process at once, each naming the field.
    """
    use_all_cores(config.num_threads)
    keep_freed_memory()
    state = PartialState(cpu=parse_flag_from_env("ACCELERATE_USE_CPU"))
    output_dir = Path(config.output_dir)
    with ExitStack() as held:
        faults = [
            *_process_faults(config, state.num_processes),
            *_precision_faults(config, state.device),
            *_tracker_faults(config),
            *_aggregation_faults(config),
        ]
        if state.is_main_process:
            folder_faults = list(_folder_faults(output_dir))
            if not folder_faults and not config.dry_run:
                folder_faults += _lock_faults(output_dir, held)
            faults += folder_faults
            if config.push_to_hub and not config.dry_run:
                faults += _hub_faults(config)
        _refuse(faults)
        accelerator = Accelerator(
            mixed_precision=config.mixed_precision,
            log_with=None if config.report_to == "none" else config.report_to,
            project_config=ProjectConfiguration(config.output_dir, str(output_dir / "logs")),
        )
        if not config.dry_run:
            # Trackers take flat tables of plain values.
            table = to_dict(config).items()
            plain = {k: v if isinstance(v, int | float) else str(v) for k, v in table}
            accelerator.init_trackers(config.tracker_project_name, config=plain)
        if accelerator.num_processes > 1:
            _groups.append(torch.distributed.group.WORLD)
        yield accelerator


def check_room(run: Run) -> None:
    """Two checkpoints must fit: the last one, and the one that is being written.

    Raises:
        ConfigError: they don't.
    """
    faults = []
    if run.accelerator.is_main_process:
        trained = sum(p.nbytes for group in run.optimizer.param_groups for p in group["params"])
        modules = [run.unet, run.weighting, *([run.ema.module] if run.ema else [])]
        size = 2 * trained + sum(t.nbytes for m in modules for t in m.state_dict().values())
        folder = folder_of(run)
        there = any(folder.glob("step-*"))
        needed, free = (1 if there else 2) * size, shutil.disk_usage(run.config.output_dir).free
        if free < needed:
            faults.append(
                f"output_dir: found {run.config.output_dir}, with {free / 1e6:,.0f} MB free; "
                f"{needed / 1e6:,.0f} MB are needed, a checkpoint being {size / 1e6:,.1f} MB"
            )
    _refuse(faults)


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
            f"{config.total_batch_size * config.max_train_steps:,} images",
        ]
    )


def _refuse(faults: list[str]) -> None:
    """Raises on all processes what was found on any of them."""
    if faults := from_all_processes(faults):
        raise ConfigError(faults)


def _process_faults(config: TrainConfig, processes: int) -> Iterator[str]:
    if config.num_processes not in (None, processes):
        yield f"num_processes: found {config.num_processes}; {processes} were started"
    elif (
        # `accelerate launch --cpu --num_processes 2` sets an address for its processes to meet at,
        # and then starts one.
        config.num_processes is None
        and processes == 1
        and {"ACCELERATE_MIXED_PRECISION", "MASTER_ADDR"} <= os.environ.keys()
        and "WORLD_SIZE" not in os.environ
    ):
        yield (
            "num_processes: accelerate launch was told of several processes and started one; "
            "on CPUs, launch with ACCELERATE_USE_CPU=true and --multi_gpu in place of --cpu, or "
            "set num_processes to 1"
        )
    if config.total_batch_size < processes:
        yield (
            f"total_batch_size: found {config.total_batch_size}; there are {processes} processes, "
            "and each needs a sample or more"
        )


def _precision_faults(config: TrainConfig, device: torch.device) -> Iterator[str]:
    if config.mixed_precision == "no" or device.type == "cpu":
        return
    if device.type == "cuda":  # emulation is slower than float32
        possible = torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        possible = is_bf16_available(ignore_tpu=True)
    if not possible:
        yield f"mixed_precision: found bf16, which this {device.type} device can't do; use no"


def _tracker_faults(config: TrainConfig) -> Iterator[str]:
    if config.report_to != "none" and importlib.util.find_spec(config.report_to) is None:
        yield (
            f"report_to: found {config.report_to!r}, which is not installed; "
            f"pip install {config.report_to}, or choose another one, or none"
        )


def _aggregation_faults(config: TrainConfig) -> Iterator[str]:
    if config.gradient_aggregation == "sum":
        return
    if missing := [name for name in REQUIRED if importlib.util.find_spec(name) is None]:
        yield (
            f"gradient_aggregation: found {config.gradient_aggregation!r}, which needs "
            f"{', '.join(missing)}; pip install 'mtl_diffusion[torchjd]', or choose sum"
        )


def _folder_faults(output_dir: Path) -> Iterator[str]:
    try:
        output_dir.mkdir(parents=True, exist_ok=True)
        probe = output_dir / ".writable"
        probe.touch()
        probe.unlink()
    except OSError as error:
        yield f"output_dir: found {output_dir}; can't write there: {error}"


def _lock_faults(output_dir: Path, held: ExitStack) -> Iterator[str]:
    """Takes the folder's lock, which the system releases when the process ends, however it does."""
    lock = os.open(output_dir / ".lock", os.O_WRONLY | os.O_CREAT)
    held.callback(os.close, lock)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in (errno.EAGAIN, errno.EACCES):
            yield f"output_dir: found {output_dir}; another run is writing there: wait or change it"
        else:  # some network file systems have no locks
            logger.warning("%s can't be locked: %s. Start no second run there", output_dir, error)


def _hub_faults(config: TrainConfig) -> Iterator[str]:
    """Creates the repository, unless it is there, and asks whether this account may write to it."""
    repository = config.hub_model_id or Path(config.output_dir).name
    api = HfApi()
    try:
        api.whoami()
        created = api.create_repo(repository, private=config.hub_private_repo, exist_ok=True)
        try:
            check_right_to_write(created.repo_id)
        except HfHubHTTPError as error:
            if error.response.status_code != 404:  # a Hub that can't be asked, since it is there
                raise
    except HfHubHTTPError as error:
        code = error.response.status_code
        meaning = {401: "log in with `hf auth login`", 403: "use a token that may write there"}
        yield (
            f"push_to_hub: {api.endpoint} refuses to write {repository} with HTTP {code}; "
            f"{meaning.get(code, 'try again later')}, or turn push_to_hub off"
        )
    except Exception as error:  # no token, no network; its HTTP library depends on its version
        reason = " ".join(str(error).split())
        yield f"push_to_hub: can't write {repository} on {api.endpoint}: {reason}"
