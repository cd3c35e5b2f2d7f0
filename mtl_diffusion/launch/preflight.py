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
from accelerate.state import AcceleratorState, is_initialized
from accelerate.utils import (
    ProjectConfiguration,
    get_int_from_env,
    is_bf16_available,
    parse_flag_from_env,
)
from filelock import FileLock, Timeout

from ..checkpoints.resume import folder_of, modules_of
from ..config import ConfigError, TrainConfig, to_dict
from ..publishing.export import PIPELINE, check_target
from ..publishing.upload import UploadError, check_right_to_write
from ..tools.distributed import from_all_processes
from ..tools.memory import keep_freed_memory
from ..training.optimizers import trained_parameters
from ..training.run import Run
from .host import choose_threads

logger = logging.getLogger(__name__)

# gloo's threads need Python's lock to release their last tensors, and whoever destroys the group
# waits for those threads. DDP would destroy it with the lock held, and both would wait for ever
# (seen in 2 of 6 runs). Python's own handle releases the lock first, so it has to be the last one.
_groups: list[torch.distributed.ProcessGroup] = []
# Each launcher that accelerate knows sets one of these to the number of processes it has started.
_WORLD_SIZES = ["WORLD_SIZE", "PMI_SIZE", "OMPI_COMM_WORLD_SIZE", "MV2_COMM_WORLD_SIZE"]
_SMALL_FILES = 1_000_000  # bytes of an export beside its weights: sources, tokenizer, pictures
# Features of accelerate that this package does not support.
_PLUGINS = ("FSDP", "DEEPSPEED", "MEGATRON_LM", "PARALLELISM_CONFIG")


@contextmanager
def begin(config: TrainConfig) -> Iterator[Accelerator]:
    """Checks all that can be checked without data, and yields the accelerator of the run.

    Inside the context, the run holds the lock of output_dir.

    Raises:
        ConfigError: every fault of every process at once, each naming the field.
    """
    keep_freed_memory()
    ours = not is_initialized()
    try:
        started = get_int_from_env(_WORLD_SIZES, 1)
        several_on_cpu = started > 1 and not torch.accelerator.is_available()
        state = PartialState(cpu=parse_flag_from_env("ACCELERATE_USE_CPU") or several_on_cpu)
    except ValueError as error:  # a variable that is no number, or that is missing
        given = "the launcher's variables can't be used"
        raise ConfigError(f"num_processes: {given}: {error}") from error
    choose_threads(config.num_threads)  # after accelerate, which sets a number too
    with ExitStack() as held:
        faults = [
            *_process_faults(config, state.num_processes, started),
            *_launcher_faults(config, os.environ),
            *_precision_faults(config, state.device, None if ours else AcceleratorState()),
        ]
        if state.is_main_process:
            of_folders, dry = list(_folder_faults(config)), config.dry_run
            faults += of_folders or ([] if dry else _lock_faults(Path(config.output_dir), held))
            faults += _hub_faults(config) if config.push_to_hub and not dry else []
        _refuse(faults)
        accelerator = Accelerator(
            mixed_precision=config.mixed_precision,
            log_with=None if config.report_to == "none" else config.report_to,
            project_config=ProjectConfiguration(config.output_dir, f"{config.output_dir}/logs"),
        )
        if accelerator.num_processes > 1:
            _groups.append(torch.distributed.group.WORLD)
        elif ours:  # accelerate keeps its state for the process: the next run has another precision
            held.callback(AcceleratorState._reset_state)
        yield accelerator


def start_trackers(run: Run, first: int) -> None:
    """Starts to log; entries after step `first`, of a process that was killed, are replaced.

    Raises:
        ConfigError: the tracker can't be started: it wants a key, for example.
    """
    config, accelerator, faults = run.config, run.accelerator, []
    # Trackers take flat tables of plain values.
    plain = {k: v if isinstance(v, int | float) else str(v) for k, v in to_dict(config).items()}
    try:
        accelerator.init_trackers(
            "mtl_diffusion",  # the project
            # accelerate would make two new folders for it at each start of the run.
            config=None if config.report_to == "tensorboard" else plain,
            init_kwargs={"tensorboard": {"purge_step": first + 1}},
        )
        main = accelerator.is_main_process  # the others have no trackers
        if main and config.report_to != "none" and not accelerator.trackers:
            raise RuntimeError("accelerate passes it over")  # with a warning only
    except Exception as error:  # each tracker has its own
        reason = " ".join(str(error).split()) or type(error).__name__
        fault = f"report_to: found {config.report_to!r}, which could not be started: {reason}"
        faults = [f"{fault}; correct that, or choose another one, or none"]
    _refuse(faults)


def check_room(run: Run) -> None:
    """Checks that the disk has room for two checkpoints, the newest and the next, and the export.

    Raises:
        ConfigError: it has not.
    """
    faults = []
    if run.accelerator.is_main_process:
        modules = modules_of(run).values()
        size = sum(t.nbytes for module in modules for t in module.state_dict().values())
        for parameter in trained_parameters(run.optimizer):
            state = run.optimizer.state.get(parameter, {}).values()
            # AdamW makes its two moments in the first step.
            size += sum(t.nbytes for t in state) if state else 2 * parameter.nbytes
        export = sum(t.nbytes for t in run.best_unet.state_dict().values()) + _SMALL_FILES
        needed = (1 if any(folder_of(run).glob("step-*")) else 2) * size + export
        free = shutil.disk_usage(run.config.output_dir).free
        if free < needed:
            has = f"output_dir: found {run.config.output_dir}, with {free / 1e6:,.0f} MB free"
            parts = f"a checkpoint being {size / 1e6:,.1f} MB and the exported pipeline"
            faults = [f"{has}; {needed / 1e6:,.0f} MB are needed, {parts} {export / 1e6:,.1f} MB"]
    _refuse(faults)


def _refuse(faults: list[str]) -> None:
    """Raises the faults of all processes, on all processes."""
    if faults := from_all_processes(faults):
        raise ConfigError(faults)


def _process_faults(config: TrainConfig, processes: int, started: int) -> Iterator[str]:
    asked, batch = config.num_processes, config.total_batch_size
    several = "launch with ACCELERATE_USE_CPU=true, and accelerate with --multi_gpu, not --cpu"
    if started != processes:
        joins = f"{started} processes were started, and accelerate joins {processes}"
        yield f"num_processes: {joins}. To train on CPUs, {several}; or start one process"
    elif asked not in (None, processes):
        yield f"num_processes: found {asked}; {processes} were started"
    elif (
        # `accelerate launch --cpu --num_processes 2` sets an address for its processes to meet at,
        # and then starts one.
        (asked, processes) == (None, 1)
        and {"ACCELERATE_MIXED_PRECISION", "MASTER_ADDR", "MASTER_PORT"} <= os.environ.keys()
        and "WORLD_SIZE" not in os.environ
    ):
        one = "accelerate launch started one process, and set MASTER_ADDR and MASTER_PORT as for"
        means = f"for several on CPUs, {several}; if one is meant, set num_processes to 1"
        yield f"num_processes: found null; {one} several: {means}"
    if batch < processes:
        yield f"total_batch_size: found {batch}; each of {processes} processes needs one or more"


def _launcher_faults(config: TrainConfig, environ: Mapping[str, str]) -> Iterator[str]:
    """Settings of the launcher that contradict those of this run, and a tracker that is missing."""
    if (tracker := config.report_to) != "none" and importlib.util.find_spec(tracker) is None:
        missing = f"which is not installed; pip install {tracker}"
        yield f"report_to: found {tracker!r}, {missing}, or choose another one, or none"
    precision = (
        f"set it here (found {config.mixed_precision}), and give the launcher the same or no"
    )
    share = "unset it. A process accumulates what exceeds per_device_batch_size"
    for field, name, allowed, cure in (
        ("mixed_precision", "MIXED_PRECISION", ("no", config.mixed_precision), precision),
        ("compile", "DYNAMO_BACKEND", ("no",), "give it no, and set compile to true"),
        ("per_device_batch_size", "GRADIENT_ACCUMULATION_STEPS", ("1",), share),
        *(
            ("num_processes", f"USE_{plugin}", ("false",), "unset it. Training is DDP only")
            for plugin in _PLUGINS
        ),
    ):
        given = environ.get(f"ACCELERATE_{name}", allowed[0]).lower()
        if given not in allowed:
            yield f"{field}: the launcher sets ACCELERATE_{name} to {given!r}: {cure}"


def _precision_faults(
    config: TrainConfig, device: torch.device, others: AcceleratorState | None
) -> Iterator[str]:
    """others: accelerate's state, if this process had one before the run."""
    wanted = config.mixed_precision
    if others is not None and others.mixed_precision != wanted:
        used = f"accelerate is in use in this process with {others.mixed_precision!r}"
        yield f"mixed_precision: found {wanted!r}; {used}: set that, or train in another process"
    if wanted == "fp16" and device.type != "cuda":  # accelerate would train in float32, in silence
        what = f"which trains on CUDA GPUs, and this is a {device.type} device"
        yield f"mixed_precision: found fp16, {what}; use no or bf16"
    if wanted != "bf16":
        return
    if device.type == "cpu":
        # torch has no public questions to the processor before 2.12.
        if not (torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()):
            logger.warning("mixed_precision bf16 is slower than no on a CPU without AVX512_BF16")
        return
    cuda = device.type == "cuda"  # where emulation is slower than float32
    emulated = cuda and not torch.cuda.is_bf16_supported(including_emulation=False)
    if emulated or not is_bf16_available(ignore_tpu=True):
        use = "fp16 or no" if cuda else "no"
        yield f"mixed_precision: found bf16, which this {device.type} device can't do; use {use}"


def _folder_faults(config: TrainConfig) -> Iterator[str]:
    """Every folder that the run writes to, now or at its end."""
    output_dir, source = Path(config.output_dir), config.pretrained_model_name_or_path
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
    target = output_dir / PIPELINE
    if source is not None and Path(source).resolve() == target.resolve():
        replaced = f"its {PIPELINE}, which the export replaces, is {source}"
        yield f"output_dir: {replaced}, the pretrained model; choose another output_dir"
    try:
        check_target(target)
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
    try:
        check_right_to_write(config.repository, config.hub_private_repo)
    except UploadError as error:
        yield f"push_to_hub: {error}; or turn push_to_hub off"
