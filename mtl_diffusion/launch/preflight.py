"""Preflight checks, and the lock of output_dir."""

import importlib.util
import logging
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path

import torch
from accelerate import Accelerator, PartialState
from accelerate.utils import (
    ProjectConfiguration,
    get_int_from_env,
    is_bf16_available,
    parse_flag_from_env,
)
from filelock import FileLock, Timeout
from huggingface_hub import HfApi
from huggingface_hub.errors import HfHubHTTPError
from torch.utils.tensorboard.summary import hparams

from ..checkpoints.resume import folder_of
from ..config import ConfigError, TrainConfig, resolved, to_dict
from ..publishing.export import PIPELINE, PUBLISHED, check_target
from ..publishing.upload import check_right_to_write
from ..tools.distributed import from_all_processes
from ..tools.flops import flops_of_unet
from ..training.aggregation import REQUIRED
from ..training.optimizers import trained_parameters
from ..training.run import Run
from .host import choose_threads, keep_freed_memory

logger = logging.getLogger(__name__)

# gloo's threads need Python's lock to release their last tensors, and whoever destroys the group
# waits for those threads. DDP would destroy it with the lock held, and both would wait for ever
# (seen in 2 of 6 runs). Python's own handle releases the lock first, so it has to be the last one.
_groups: list[torch.distributed.ProcessGroup] = []
# Set by every launcher that accelerate knows: how many processes it has started.
_WORLD_SIZES = ["WORLD_SIZE", "PMI_SIZE", "OMPI_COMM_WORLD_SIZE", "MV2_COMM_WORLD_SIZE"]
_SMALL_FILES = 1_000_000  # bytes of an export beside its weights: sources, tokenizer, pictures
# Features of accelerate that this package does not support.
_PLUGINS = ("FSDP", "DEEPSPEED", "MEGATRON_LM", "PARALLELISM_CONFIG")


@contextmanager
def begin(config: TrainConfig) -> Iterator[Accelerator]:
    """The accelerator of this run, after everything that can be checked without data is.

    Inside the context, this run holds the lock of output_dir.

    Raises:
        ConfigError: every fault of every process at once, each naming the field.
    """
    keep_freed_memory()
    try:
        started = get_int_from_env(_WORLD_SIZES, 1)
        several_on_cpu = started > 1 and not torch.accelerator.is_available()
        state = PartialState(cpu=parse_flag_from_env("ACCELERATE_USE_CPU") or several_on_cpu)
    except ValueError as error:  # a variable that is no number, or that is missing
        fault = f"num_processes: the launcher's variables can't be used: {error}"
        raise ConfigError(fault) from error
    choose_threads(config.num_threads)  # after accelerate, which sets a number too
    output_dir = Path(config.output_dir)
    with ExitStack() as held:
        faults = [
            *_process_faults(config, state.num_processes, started),
            *_launcher_faults(config, os.environ),
            *_precision_faults(config, state.device),
            *_tracker_faults(config),
            *_aggregation_faults(config),
        ]
        if state.is_main_process:
            folder_faults = list(_folder_faults(config))
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
        if accelerator.num_processes > 1:
            _groups.append(torch.distributed.group.WORLD)
        yield accelerator


def start_trackers(run: Run, first: int) -> None:
    """Starts to log; entries after step `first`, of a process that was killed, are replaced.

    Raises:
        ConfigError: the tracker can't be started: it wants a key, for example.
    """
    config, accelerator, faults = run.config, run.accelerator, []
    # Trackers take flat tables of plain values.
    table = to_dict(config).items()
    plain = {k: v if isinstance(v, int | float) else str(v) for k, v in table}
    tensorboard = config.report_to == "tensorboard"
    try:
        accelerator.init_trackers(
            config.tracker_project_name,
            # accelerate would make two new folders for it at each start of the run.
            config=None if tensorboard else plain,
            init_kwargs={"tensorboard": {"purge_step": first + 1}},
        )
        main = accelerator.is_main_process  # the others have no trackers
        if main and config.report_to != "none" and not accelerator.trackers:
            raise RuntimeError("accelerate passes it over")  # with a warning only
        if main and tensorboard:
            writer = accelerator.get_tracker("tensorboard", unwrap=True).file_writer
            for summary in hparams(plain, {}):
                writer.add_summary(summary)
    except Exception as error:  # each tracker has its own
        reason = " ".join(str(error).split()) or type(error).__name__
        faults = [
            f"report_to: found {config.report_to!r}, which could not be started: {reason}; "
            "correct that, or choose another one, or none"
        ]
    _refuse(faults)


def check_room(run: Run) -> None:
    """Checks that two checkpoints, the last one and the next one, and the export fit on the disk.

    Raises:
        ConfigError: they don't.
    """
    faults = []
    if run.accelerator.is_main_process:
        modules = [run.unet, run.weighting, run.ema and run.ema.module, run.alignment]
        size = sum(t.nbytes for m in modules if m for t in m.state_dict().values())
        for parameter in trained_parameters(run.optimizer):
            state = run.optimizer.state.get(parameter, {}).values()
            # AdamW makes its two moments in the first step.
            size += sum(t.nbytes for t in state) if state else 2 * parameter.nbytes
        folder = folder_of(run)
        there = any(folder.glob("step-*"))
        export = sum(t.nbytes for t in run.best_unet.state_dict().values()) + _SMALL_FILES
        needed = (1 if there else 2) * size + export
        free = shutil.disk_usage(run.config.output_dir).free
        if free < needed:
            faults.append(
                f"output_dir: found {run.config.output_dir}, with {free / 1e6:,.0f} MB free; "
                f"{needed / 1e6:,.0f} MB are needed, a checkpoint being {size / 1e6:,.1f} MB and "
                f"the exported pipeline {export / 1e6:,.1f} MB"
            )
    _refuse(faults)


def describe(run: Run) -> str:
    """The resolved configuration, the number of parameters, and the cost of a step."""
    config, unet = run.config, run.unet
    forward, both = flops_of_unet(unet)
    total = sum(p.numel() for p in unet.parameters())
    trained = sum(p.numel() for p in unet.parameters() if p.requires_grad)
    step = both * config.total_batch_size
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
    """Raises the faults of all processes, on all processes."""
    if faults := from_all_processes(faults):
        raise ConfigError(faults)


def _process_faults(config: TrainConfig, processes: int, started: int) -> Iterator[str]:
    if started != processes:
        yield (
            f"num_processes: {started} processes were started, and accelerate joins {processes}; "
            "launch with ACCELERATE_USE_CPU=true to train on CPUs, or start one process"
        )
    elif config.num_processes not in (None, processes):
        yield f"num_processes: found {config.num_processes}; {processes} were started"
    elif (
        # `accelerate launch --cpu --num_processes 2` sets an address for its processes to meet at,
        # and then starts one.
        config.num_processes is None
        and processes == 1
        and {"ACCELERATE_MIXED_PRECISION", "MASTER_ADDR", "MASTER_PORT"} <= os.environ.keys()
        and "WORLD_SIZE" not in os.environ
    ):
        yield (
            "num_processes: found null; accelerate launch started one process, and MASTER_ADDR and "
            "MASTER_PORT are set, as it sets them for several. For several on CPUs, launch with "
            "ACCELERATE_USE_CPU=true and --multi_gpu in place of --cpu; if one is meant, set "
            "num_processes to 1"
        )
    if config.total_batch_size < processes:
        yield (
            f"total_batch_size: found {config.total_batch_size}; there are {processes} processes, "
            "and each needs a sample or more"
        )


def _launcher_faults(config: TrainConfig, environ: Mapping[str, str]) -> Iterator[str]:
    """Settings of the launcher that contradict those of this run."""
    name = "ACCELERATE_MIXED_PRECISION"  # accelerate launch always sets it
    if environ.get(name, "no").lower() not in ("no", config.mixed_precision):
        yield (
            f"mixed_precision: found {config.mixed_precision!r}; the launcher was given "
            f"{environ[name]!r} ({name}): set mixed_precision, to no or bf16, and give the "
            "launcher the same or no"
        )
    name = "ACCELERATE_DYNAMO_BACKEND"
    if environ.get(name, "no").lower() != "no":
        yield (
            f"compile: found {str(config.compile).lower()}; the launcher was given the dynamo "
            f"backend {environ[name]!r} ({name}): give it no, and set compile to true"
        )
    name = "ACCELERATE_GRADIENT_ACCUMULATION_STEPS"
    if environ.get(name, "1") != "1":
        yield (
            f"per_device_batch_size: {name} is {environ[name]!r}: unset it. A process accumulates "
            "what its share of total_batch_size has beyond per_device_batch_size"
        )
    for name in (f"ACCELERATE_USE_{plugin}" for plugin in _PLUGINS):
        if environ.get(name, "false").lower() == "true":
            yield f"num_processes: {name} is set: unset it. Training is data-parallel only (DDP)"


def _precision_faults(config: TrainConfig, device: torch.device) -> Iterator[str]:
    if config.mixed_precision == "no":
        return
    if device.type == "cpu":
        # torch's own questions to the processor are private; it has no public ones before 2.12.
        if not (torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()):
            logger.warning(
                "mixed_precision bf16 is slower than no on this CPU, which has neither AVX512_BF16 "
                "nor AMX"
            )
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


def _folder_faults(config: TrainConfig) -> Iterator[str]:
    """Every folder that the run writes to, now or at its end."""
    output_dir = Path(config.output_dir)
    parts = [output_dir / name for name in ("checkpoints", "validation", "logs")]
    for folder in [output_dir, *(part for part in parts if os.path.lexists(part))]:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            probe = folder / ".writable"
            probe.touch()
            probe.unlink()
        except OSError as error:
            yield f"output_dir: found {output_dir}; can't write to {folder}: {error}"
            return
    for name in (PIPELINE, PUBLISHED):
        try:
            check_target(output_dir / name)
        except (ValueError, OSError) as error:
            yield str(error)


def _lock_faults(output_dir: Path, held: ExitStack) -> Iterator[str]:
    """Takes the lock of the folder, which the system releases when the process ends."""
    lock = FileLock(output_dir / ".lock", timeout=0)
    try:
        lock.acquire()
        held.callback(lock.release)
    except Timeout:
        yield f"output_dir: found {output_dir}; another run is writing there: wait or change it"
    except (OSError, NotImplementedError) as error:  # some network file systems have no locks
        logger.warning("%s can't be locked: %s. Start no second run there", output_dir, error)


def _hub_faults(config: TrainConfig) -> Iterator[str]:
    """Creates the repository, unless it is there, and asks whether this account may write to it."""
    repository = config.repository
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
