"""Conversion between the state of a run and a checkpoint, and the choice of a checkpoint."""

import json
import logging
import platform
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from ..config import ConfigError, TrainConfig, differences, from_dict, to_dict
from ..data.stream import ORDER, Position
from ..pipeline.pipeline import FREQUENCIES, LEARNED
from ..pipeline.tokens import NULL
from ..tools.distributed import from_all_processes
from ..tools.names import on_hub
from ..training import schedule
from ..training.length import other_length
from ..training.run import Run
from .store import Checkpoint, CheckpointError, load, load_latest

logger = logging.getLogger(__name__)

# Fields that may differ between a run and its continuation: locations, logging, saving, and the
# length, which `_of_this_length` checks. Of the data not the path but the contents count.
MAY_CHANGE = {"output_dir", "dataset_name", "resume_from_checkpoint", "dry_run", "num_threads"}
MAY_CHANGE |= {"num_processes", "alignment_classifier", "teacher_model_name_or_path"}
MAY_CHANGE |= {"mixed_precision", "compile_mode", "max_train_steps", "max_train_minutes"}
MAY_CHANGE |= {"checkpointing_steps", "checkpoints_total_limit", "validation_steps"}
MAY_CHANGE |= {"validation_images", "logging_steps", "report_to"}
MAY_CHANGE |= {"gallery", "push_to_hub", "hub_model_id", "hub_private_repo"}
MAY_CHANGE |= {"hub_strategy", "tracker_project_name"}  # of earlier versions
ANEW = (
    "publish it (--checkpoint), and start a new run with the export as"
    " pretrained_model_name_or_path"
)
# Fields with the sources of a run: names on the Hub, or paths.
SOURCES = ("dataset_name", "pretrained_model_name_or_path")


def folder_of(run: Run) -> Path:
    """The folder of the run's checkpoints."""
    return Path(run.config.output_dir) / "checkpoints"


def modules_of(run: Run) -> dict[str, torch.nn.Module]:
    """What has weights in a checkpoint, by the name of its file."""
    objective = run.unwrapped
    names = ("unet", "weighting", "alignment", "moments")
    modules = {name: getattr(objective, name) for name in names}
    modules["ema"] = run.ema and run.ema.module
    return {name: module for name, module in modules.items() if module is not None}


def snapshot(run: Run, step: int, positions: list[Position] | None = None) -> Checkpoint:
    """The state of a run as a checkpoint: copies on the CPU, which training does not change.

    positions: how far each process has read, if the data is streamed.
    """
    objective = run.unwrapped
    run.note_classes()
    tensors = {name: module.state_dict() for name, module in modules_of(run).items()}
    tensors["optimizer"] = {
        f"{key} of {name}": value
        for name, parameter in _trained(run).items()
        for key, value in run.optimizer.state[parameter].items()
    }
    for part in tensors.values():
        part.update({name: value.detach().to("cpu", copy=True) for name, value in part.items()})
    facts = {
        "config": to_dict(run.config),
        "first_length": run.first_length,
        "words": run.tokenizer.get_vocab(),
        # Configurations of the components, so that a checkpoint can be published.
        "unet": _plain(run.unet),
        "scheduler": _plain(objective.scheduler),
        "data": {"train": run.train_data.fingerprint, "held_out": run.held_out.fingerprint},
        "stream": positions,
        "stream_order": ORDER if positions else None,
        "num_processes": run.accelerator.num_processes,
        "alignment": objective.alignment and objective.alignment.fingerprint,
        "teacher": objective.teacher,
        "loss_scale": run.loss_scale and run.loss_scale.state_dict(),
        "versions": _versions(run),
        # For the model card.
        "minutes": run.clock.read(),
        "on_hub": sources_on_hub(run.config),
    }
    return Checkpoint(step, tensors, facts)


def sources_on_hub(config: TrainConfig) -> list[str]:
    """Those of `SOURCES` that are names on the Hub; on another machine a path may look like one."""
    return [name for name in SOURCES if on_hub(getattr(config, name) or "")]


def check_facts(checkpoint: Checkpoint) -> None:
    """Raises a CheckpointError if facts are missing: another program has written them."""
    needed = {"config", "words", "unet", "data", "minutes", "num_processes", "versions"}
    if missing := needed - checkpoint.facts.keys():
        where = f"the facts.json of step-{checkpoint.step}"
        raise CheckpointError(f"{where} can't be used: it has no {', '.join(sorted(missing))}")


def restore(run: Run) -> tuple[Run, int]:
    """Restores the run from its checkpoint; returns it, with its first warm-up, and its steps done.

    Raises:
        ConfigError: the checkpoint is of another configuration or other data, or a run is there
            that was not to be resumed.
        CheckpointError: it is missing or damaged, or could not be read on one of the processes.
    """
    checkpoint, fault = None, None
    try:
        checkpoint = _find(run)
    except (CheckpointError, ConfigError) as error:
        fault = error
    if faults := from_all_processes([str(fault)] if fault else []):
        raise fault or CheckpointError(f"another process: {faults[0]}")
    step = 0 if checkpoint is None else checkpoint.step
    if len(steps := from_all_processes([str(step)])) > 1:
        where = f"{run.config.output_dir}, where the processes see the steps {', '.join(steps)}"
        raise ConfigError(f"output_dir: found {where}; it must be one folder for all machines")
    if checkpoint is None:
        return run, 0
    if faults := _mismatches(run, checkpoint):
        raise ConfigError([*faults, "to start anew, choose another output_dir"])
    try:
        _load_state(run, checkpoint)
    except (KeyError, RuntimeError, ValueError) as error:
        raise CheckpointError(f"step-{step} does not fit this model: {error}") from error
    if run.config.streaming:
        _go_on_reading(run, checkpoint)
    run.clock.go_on(checkpoint.facts["minutes"])
    _, config, first_length = _lengths(run, checkpoint)
    run = replace(run, config=config, first_length=first_length)
    if run.accelerator.is_main_process:
        logger.warning("resuming after step %d", step)
        _note_changes(run, checkpoint)
    return run, step


def _find(run: Run) -> Checkpoint | None:
    """The checkpoint to continue from, with checked facts; None: the run starts anew."""
    asked, folder = run.config.resume_from_checkpoint, folder_of(run)
    newest, skipped = load_latest(folder)
    if run.accelerator.is_main_process and newest:
        for reason in skipped:
            logger.warning("passed over a checkpoint: %s", reason)
    other = "resume it with latest, or choose another output_dir"
    if asked is None:
        if newest or skipped:
            holds = f"{folder} already holds a run"
            raise ConfigError(f"resume_from_checkpoint: found none; {holds}: {other}")
        return None
    if newest:
        check_facts(newest)
        again = newest.facts["config"].get("resume_from_checkpoint") == asked  # the same command
        if asked == "latest" or again:
            return _of_this_length(run, newest, folder)
    if asked == "latest":
        if skipped:
            none = f"{folder} has no complete checkpoint; to start anew, choose another output_dir:"
            raise CheckpointError("\n  ".join([none, *skipped]))
        return None
    named = load(Path(asked))
    if newest and newest.step > named.step:
        holds = f"of step {named.step}; {folder} already holds step {newest.step}"
        raise ConfigError(f"resume_from_checkpoint: found {asked}, {holds}: {other}")
    return _of_this_length(run, named)


def _lengths(run: Run, checkpoint: Checkpoint) -> tuple[TrainConfig, TrainConfig, int]:
    """The configuration that wrote it, this run's as its continuation, and the first length."""
    check_facts(checkpoint)
    old = from_dict(checkpoint.facts["config"])
    first = checkpoint.facts.get("first_length") or old.max_train_steps
    return old, schedule.with_shares_of(run.config, first), first


def _of_this_length(run: Run, newest: Checkpoint, folder: Path | None = None) -> Checkpoint:
    """The newest checkpoint that leads to a run of this length.

    Args:
        folder: where older ones than `newest` are looked for. None: nowhere.
    """
    free: list[int] = []  # steps from before the decay

    def leads(checkpoint: Checkpoint) -> bool:
        old, new, _ = _lengths(run, checkpoint)
        if checkpoint.step <= schedule.decay_start(old):
            free.append(checkpoint.step)
        return checkpoint.step <= schedule.same_steps(old, new)

    if leads(newest):
        return newest
    chosen, (old, new, _) = None, _lengths(run, newest)
    if folder is not None and old.lr_scheduler not in ("cosine", "linear"):
        chosen, _ = load_latest(folder, leads)
    if chosen is None:
        where = folder or run.config.resume_from_checkpoint
        raise ConfigError(other_length(old, new, free, str(where)))
    if run.accelerator.is_main_process:
        had = f"the run had {old.max_train_steps} steps and has {new.max_train_steps} now"
        logger.warning("%s: it goes on from step %d, before the decay", had, chosen.step)
    return chosen


def _mismatches(run: Run, checkpoint: Checkpoint) -> list[str]:
    """A line for each reason why this run cannot continue the checkpoint."""
    facts, (old, new, _) = checkpoint.facts, _lengths(run, checkpoint)
    # One may be a share of the run, and the other as many steps.
    same = ["lr_warmup_steps"] if old.warmup_steps == new.warmup_steps else []
    faults = differences(facts["config"], to_dict(run.config), MAY_CHANGE.union(same))
    objective, data = run.unwrapped, facts["data"]
    classifier = objective.alignment and objective.alignment.fingerprint
    faults += [
        f"{field}: the checkpoint has {what} of the fingerprint {before}, this run has {now}"
        for field, what, before, now in (
            ("alignment_classifier", "a classifier", facts.get("alignment"), classifier),
            ("pretrained_model_name_or_path", "a teacher", facts.get("teacher"), objective.teacher),
            ("train_split", "data", data["train"], run.train_data.fingerprint),
            ("validation_split", "data", data["held_out"], run.held_out.fingerprint),
        )
        if before != now
    ]
    if run.config.streaming and facts["stream"] and facts.get("stream_order") != ORDER:
        faults.append(
            "streaming: the checkpoint has read its stream in the order of an earlier version of"
            f" mtl_diffusion, which this one can't continue: {ANEW}"
        )
    if moved := {word for word, _ in facts["words"].items() ^ run.tokenizer.get_vocab().items()}:
        words = ", ".join(sorted(moved))
        # An earlier version sorted names that are numbers as texts.
        field = "label_column" if all(w.startswith("<class:") for w in moved) else "tasks"
        faults.append(f"{field}: these tokens have another id in the checkpoint: {words}; {ANEW}")
    return faults


def _load_state(run: Run, checkpoint: Checkpoint) -> None:
    for name, module in modules_of(run).items():
        module.load_state_dict(checkpoint.tensors[name])
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
    if run.loss_scale and checkpoint.facts.get("loss_scale"):
        run.loss_scale.load_state_dict(checkpoint.facts["loss_scale"])


def _go_on_reading(run: Run, checkpoint: Checkpoint) -> None:
    # With another number of processes the files are divided anew, from the next epoch on.
    positions = [Position(*numbers) for numbers in checkpoint.facts["stream"]]
    if len(positions) == run.accelerator.num_processes:
        position = positions[run.accelerator.process_index]
    else:
        position = Position(max(position.epoch for position in positions) + 1, 0)
    run.loader.go_to(checkpoint.step, position)
    seen = checkpoint.facts["unet"].get(FREQUENCIES) or {}
    labels = {NULL: -1} | {name: i for i, name in enumerate(run.mixture.vocabulary.classes)}
    run.loader.seen.update({labels[name]: count for name, count in seen.items()})


def _note_changes(run: Run, checkpoint: Checkpoint) -> None:
    """Logs the differences that are allowed, and that change the bytes of the result."""
    facts, config, world = checkpoint.facts, run.config, run.accelerator.num_processes
    if (first := run.first_length) != config.max_train_steps:
        kept = f"it keeps its warm-up of {config.warmup_steps} steps"
        logger.warning("the run was of %d steps when it began: %s", first, kept)
    rounding, before = "the rounding differs", facts["num_processes"]
    divided = "the stream is divided anew, and the rest of the epoch is left out"
    was = {"mixed_precision": facts["config"].get("mixed_precision"), **facts["versions"]}
    now = {"mixed_precision": config.mixed_precision, **_versions(run)}
    changes = [(f"{k} {v}", now.get(k), rounding) for k, v in was.items() if v != now.get(k)]
    if before != world:
        changes.append((f"{before} processes", world, divided if config.streaming else rounding))
    for change in changes:
        logger.warning("the checkpoint is of %s and this run has %s: %s", *change)


def _plain(component) -> dict[str, Any]:
    """The configuration of a stock component, without the notes of where it came from."""
    table = json.loads(component.to_json_string())
    return {n: value for n, value in table.items() if n in LEARNED or not n.startswith("_")}


def _versions(run: Run) -> dict[str, str]:
    """What else the rounding depends on: libraries, and the threads and type of the processor."""
    libraries = ("torch", "diffusers", "transformers", "accelerate", "datasets", "safetensors")
    others = {"python": platform.python_version(), "hardware": run.clock.hardware}
    return others | {name: version(name) for name in libraries}


def _trained(run: Run) -> dict[str, torch.nn.Parameter]:
    """The parameters that are trained, by name."""
    return {name: p for name, p in run.unwrapped.named_parameters() if p.requires_grad}
