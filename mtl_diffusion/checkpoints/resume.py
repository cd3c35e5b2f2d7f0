"""Conversion between the state of a run and a checkpoint, and the choice of a checkpoint."""

import json
import logging
import platform
from collections.abc import Callable, Collection
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from ..config import ConfigError, TrainConfig, differences, show, to_dict
from ..config.command_line import from_dict
from ..data.streaming_loader import ORDER, Position
from ..tools.distributed import from_all_processes
from ..tools.names import on_hub
from ..training.losses import Objective
from ..training.run import Run
from ..training.schedule import decay_start, learning_rate
from .store import Checkpoint, CheckpointError, load, load_latest

logger = logging.getLogger(__name__)

# Fields that may differ between a run and its continuation: locations, the length, logging and
# saving. The data may be at another path: its contents are compared.
MAY_CHANGE = frozenset(
    (
        *("output_dir", "dataset_name", "resume_from_checkpoint", "dry_run", "num_threads"),
        *("num_processes", "alignment_classifier", "mixed_precision", "compile_mode"),
        *("max_train_steps", "max_train_minutes", "checkpointing_steps", "checkpoints_total_limit"),
        *("validation_steps", "validation_images", "logging_steps", "report_to"),
        *("tracker_project_name", "push_to_hub", "hub_strategy", "hub_model_id"),
        *("hub_private_repo", "gallery"),
    )
)


# Fields with the sources of a run: names on the Hub, or paths.
SOURCES = ("dataset_name", "pretrained_model_name_or_path")


def folder_of(run: Run) -> Path:
    """The folder of the run's checkpoints."""
    return Path(run.config.output_dir) / "checkpoints"


def snapshot(run: Run, step: int, positions: list[Position] | None = None) -> Checkpoint:
    """The state of a run as a checkpoint. Its tensors are not copies: training changes them.

    Args:
        positions: how far each process has read, if the data is streamed.
    """
    tensors = {
        "unet": run.unet.state_dict(),
        "weighting": run.weighting.state_dict(),
        "optimizer": {
            f"{key} of {name}": value
            for name, parameter in _trained(run).items()
            for key, value in run.optimizer.state[parameter].items()
        },
    }
    if run.ema is not None:
        tensors["ema"] = run.ema.module.state_dict()
    if run.alignment is not None:
        tensors["alignment"] = run.alignment.state_dict()
    facts = {
        "config": to_dict(run.config),
        "words": run.tokenizer.get_vocab(),
        # Configurations of the components, so that a checkpoint can be published.
        "unet": _plain(run.unet),
        "scheduler": _plain(run.scheduler),
        "chains": run.chains,
        "data": {"train": run.train_data.fingerprint, "held_out": run.held_out.fingerprint},
        "stream": positions,
        "stream_order": ORDER if positions else None,
        "num_processes": run.accelerator.num_processes,
        "alignment": run.alignment.fingerprint if run.alignment else None,
        "teacher": _objective(run).teacher,
        "images_seen": step * run.config.total_batch_size,
        "learning_rate": learning_rate(run.config, step),
        "versions": _versions(),
        # For the model card. Elsewhere, a path can't be distinguished from a name on the Hub.
        "minutes": run.clock.read(),
        "on_hub": [name for name in SOURCES if on_hub(getattr(run.config, name) or "")],
    }
    return Checkpoint(step, tensors, facts)


def _is_mapping(value: Any, kind: type = object) -> bool:
    return isinstance(value, dict) and all(isinstance(entry, kind) for entry in value.values())


def _is_list_of(value: Any, allowed: Collection[str]) -> bool:
    return isinstance(value, list) and all(entry in allowed for entry in value)


def _is_stream(value: Any) -> bool:
    pairs = value if isinstance(value, list) else [None]
    return value is None or all(
        isinstance(pair, list) and [type(number) for number in pair] == [int, int] for pair in pairs
    )


# Name -> a check of a fact, and its description. Those that may be None are absent in old files.
_FACTS: dict[str, tuple[Callable[[Any], bool], str]] = {
    "config": (_is_mapping, "a mapping"),
    "words": (lambda value: _is_mapping(value, int), "words with their ids"),
    "unet": (lambda value: value is None or _is_mapping(value), "a mapping"),
    "scheduler": (lambda value: value is None or _is_mapping(value), "a mapping"),
    "data": (
        lambda value: _is_mapping(value, str) and {"train", "held_out"} <= value.keys(),
        "the fingerprints of train and held_out",
    ),
    "stream": (_is_stream, "null, or an epoch and a number of rows for each process"),
    "num_processes": (lambda value: type(value) is int and value > 0, "1 or more"),
    "versions": (_is_mapping, "libraries with their versions"),
    "minutes": (lambda value: value is None or _is_mapping(value, float), "hardware with minutes"),
    "on_hub": (
        lambda value: value is None or _is_list_of(value, SOURCES),
        f"a list of some of {', '.join(SOURCES)}",
    ),
}


def check_facts(checkpoint: Checkpoint) -> None:
    """Checks that the facts have the form in which `snapshot` writes them.

    Raises:
        CheckpointError: it names each fact that is missing or of another form.
    """
    found = checkpoint.facts
    faults = [
        f"{name}: found {show(found[name]) if name in found else 'nothing'}; must be {words}"
        for name, (fits, words) in _FACTS.items()
        if not fits(found.get(name))
    ]
    if faults:
        lines = "".join(f"\n  {fault}" for fault in faults)
        raise CheckpointError(f"the facts.json of step-{checkpoint.step} can't be used:{lines}")


def restore(run: Run) -> int:
    """Restores the state of the run from its checkpoint; returns the number of steps done.

    Raises:
        ConfigError: the checkpoint is of another configuration or other data, or a run is there
            that was not to be resumed.
        CheckpointError: the named checkpoint is missing or damaged, or could not be read on
            one of the processes.
    """
    fault = None
    try:
        checkpoint = _find(run)
    except (CheckpointError, ConfigError) as error:
        checkpoint, fault = None, error
    if faults := from_all_processes([str(fault)] if fault else []):
        raise fault or CheckpointError(f"another process: {faults[0]}")
    step = 0 if checkpoint is None else checkpoint.step
    if len(found := from_all_processes([str(step)])) > 1:
        raise ConfigError(
            f"output_dir: found {run.config.output_dir}, where the processes see the steps "
            f"{', '.join(found)}; it must be one folder for all machines"
        )
    if checkpoint is None:
        return 0
    check_facts(checkpoint)
    if faults := _mismatches(run, checkpoint):
        raise ConfigError([*faults, "to start anew, choose another output_dir"])
    try:
        _load_state(run, checkpoint)
    except (KeyError, RuntimeError, ValueError) as error:
        raise CheckpointError(f"step-{step} does not fit this model: {error}") from error
    if run.config.streaming:
        _go_on_reading(run, checkpoint)
    run.clock.go_on(checkpoint.facts.get("minutes") or {})
    if run.accelerator.is_main_process:
        logger.warning("resuming after step %d", step)
        _note_changes(run, checkpoint)
    return step


def _find(run: Run) -> Checkpoint | None:
    """The checkpoint that `resume_from_checkpoint` names."""
    asked = run.config.resume_from_checkpoint
    newest, skipped = load_latest(folder_of(run))
    if newest and asked == "latest" and not _leads_to(run.config, newest):
        newest = _before_the_decay(run, newest.step)
    if run.accelerator.is_main_process and newest:
        for reason in skipped:
            logger.warning("passed over a checkpoint: %s", reason)
    if asked == "latest":
        if newest is None and skipped:
            raise CheckpointError(
                f"{folder_of(run)} has no complete checkpoint; to start anew, choose another "
                "output_dir:" + "".join(f"\n  {reason}" for reason in skipped)
            )
        return newest
    if asked is None:
        if newest or skipped:
            raise ConfigError(
                f"resume_from_checkpoint: found none; {folder_of(run)} already holds a run: "
                "resume it with latest, or choose another output_dir"
            )
        return None
    named = load(Path(asked))
    if newest is None or newest.step <= named.step:
        return named
    check_facts(newest)
    if newest.facts["config"].get("resume_from_checkpoint") == asked:  # the same command again
        return newest
    raise ConfigError(
        f"resume_from_checkpoint: found {asked}, of step {named.step}; {folder_of(run)} "
        f"already holds step {newest.step}: resume it with latest, or choose another output_dir"
    )


def _leads_to(config: TrainConfig, checkpoint: Checkpoint) -> bool:
    """Whether the steps up to the checkpoint are those of a run of this length."""
    check_facts(checkpoint)
    old = from_dict(checkpoint.facts["config"])
    return (
        old.lr_scheduler != "warmup_stable_decay"
        or old.max_train_steps == config.max_train_steps
        or checkpoint.step <= decay_start(old)
    )


def _before_the_decay(run: Run, newest: int) -> Checkpoint:
    """The newest checkpoint from which a lengthened run can continue."""
    found, _ = load_latest(folder_of(run), lambda checkpoint: _leads_to(run.config, checkpoint))
    if found is None:
        raise ConfigError(
            f"max_train_steps: found {run.config.max_train_steps}; step {newest} is in the "
            f"decay of a run of another length, and {folder_of(run)} has no checkpoint from "
            "before it: give the length that the run had, or choose another output_dir"
        )
    if run.accelerator.is_main_process:
        logger.warning(
            "the run was of another length: it goes on from step %d, before the decay", found.step
        )
    return found


def config_of(checkpoint: Checkpoint) -> dict[str, Any]:
    """The fields of the run that wrote it. One that was added since has the value of then."""
    return to_dict(TrainConfig()) | {"optimizer": "adamw"} | checkpoint.facts["config"]


def _mismatches(run: Run, checkpoint: Checkpoint) -> list[str]:
    """A line for each reason why this run cannot continue the checkpoint."""
    facts = checkpoint.facts
    faults = differences(config_of(checkpoint), to_dict(run.config), MAY_CHANGE)
    classifier = run.alignment.fingerprint if run.alignment else None
    teacher, data = _objective(run).teacher, facts["data"]
    for field, what, old, new in (
        ("alignment_classifier", "a classifier", facts.get("alignment"), classifier),
        ("pretrained_model_name_or_path", "a teacher", facts.get("teacher"), teacher),
        ("train_split", "data", data["train"], run.train_data.fingerprint),
        ("validation_split", "data", data["held_out"], run.held_out.fingerprint),
    ):
        if old != new:
            faults.append(
                f"{field}: the checkpoint has {what} of the fingerprint {old}, this run has {new}"
            )
    if run.config.streaming and facts["stream"] and facts.get("stream_order") != ORDER:
        faults.append(
            "streaming: the checkpoint has read its stream in the order of an earlier version of"
            " mtl_diffusion, which this one can't continue: publish it (--checkpoint), and start a"
            " new run with the export as pretrained_model_name_or_path"
        )
    words = run.tokenizer.get_vocab()
    if facts["words"] != words:
        moved = sorted(
            w for w in {*facts["words"], *words} if facts["words"].get(w) != words.get(w)
        )
        faults.append(f"tasks: these tokens have another id in the checkpoint: {', '.join(moved)}")
    if checkpoint.step > run.config.max_train_steps:
        faults.append(
            f"max_train_steps: found {run.config.max_train_steps}; the checkpoint has done "
            f"{checkpoint.step} steps"
        )
    return faults


def _load_state(run: Run, checkpoint: Checkpoint) -> None:
    run.unet.load_state_dict(checkpoint.tensors["unet"])
    run.weighting.load_state_dict(checkpoint.tensors["weighting"])
    if run.ema is not None:
        run.ema.module.load_state_dict(checkpoint.tensors["ema"])
    if run.alignment is not None:
        run.alignment.load_state_dict(checkpoint.tensors["alignment"])
    parameters, state = _trained(run), run.optimizer.state
    for name, value in checkpoint.tensors["optimizer"].items():
        key, _, owner = name.partition(" of ")
        parameter = parameters[owner]
        if key not in state[parameter]:
            # Files are row-major. The fused AdamW walks a weight and its moments side by side in
            # memory, so they must lie in the same order, which channels_last has changed.
            like = parameter if value.ndim else value.to(parameter.device)
            state[parameter][key] = torch.empty_like(like)
        state[parameter][key].copy_(value)


def _go_on_reading(run: Run, checkpoint: Checkpoint) -> None:
    """Sets the position of this process in the stream.

    With another number of processes the files are divided anew, from the next epoch on.
    """
    positions = [Position(*numbers) for numbers in checkpoint.facts["stream"]]
    if len(positions) == run.accelerator.num_processes:
        position = positions[run.accelerator.process_index]
    else:
        position = Position(max(position.epoch for position in positions) + 1, 0)
    run.loader.go_to(checkpoint.step, position)


def _note_changes(run: Run, checkpoint: Checkpoint) -> None:
    """Logs the differences that are allowed, and that may change the rounding."""
    before, now = checkpoint.facts["num_processes"], run.accelerator.num_processes
    if before != now:
        what = (
            "the data and the noise are the same, the rounding is not"
            if not run.config.streaming
            else "the stream is divided anew, and the rest of the epoch is left out"
        )
        logger.warning(
            "the checkpoint is of %d processes and this run has %d: %s", before, now, what
        )
    old, new = checkpoint.facts["config"].get("mixed_precision"), run.config.mixed_precision
    if old != new:
        logger.warning(
            "mixed_precision was %s and is %s now: the rounding is another one", old, new
        )
    versions = _versions()
    for name, old in checkpoint.facts["versions"].items():
        if old != versions.get(name):
            logger.warning(
                "the checkpoint is of %s %s and this is %s: the rounding may differ",
                name,
                old,
                versions.get(name),
            )


def _plain(component) -> dict[str, Any]:
    """The configuration of a stock component, without the notes of where it came from."""
    table = json.loads(component.to_json_string())
    return {name: value for name, value in table.items() if not name.startswith("_")}


def _versions() -> dict[str, str]:
    libraries = ("torch", "diffusers", "transformers", "accelerate", "datasets", "safetensors")
    return {"python": platform.python_version(), **{name: version(name) for name in libraries}}


def _trained(run: Run) -> dict[str, torch.nn.Parameter]:
    """The parameters that are trained, by name."""
    return {name: p for name, p in _objective(run).named_parameters() if p.requires_grad}


def _objective(run: Run) -> Objective:
    return run.accelerator.unwrap_model(run.objective, keep_torch_compile=False)
