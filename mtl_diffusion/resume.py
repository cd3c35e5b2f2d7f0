"""A run's state as a checkpoint, and a checkpoint back as the run's state."""

import logging
import platform
from importlib.metadata import version
from pathlib import Path

from .checkpoint import Checkpoint, load, load_latest
from .checkpoint import save as write
from .config import ConfigError, differences, to_dict
from .run import Run

logger = logging.getLogger(__name__)

# What may differ between a run and its continuation: where things are, how long it goes on, and
# what is only watched. The data may have moved, too: it is compared by what it holds.
MAY_CHANGE = frozenset(
    (
        *("output_dir", "dataset_name", "resume_from_checkpoint", "dry_run", "num_threads"),
        *("max_train_steps", "max_train_minutes", "checkpointing_steps", "checkpoints_total_limit"),
        *("validation_steps", "validation_images", "logging_steps", "report_to"),
        *("tracker_project_name", "push_to_hub", "hub_model_id", "hub_private_repo"),
    )
)


def folder_of(run: Run) -> Path:
    """Where the run's checkpoints are."""
    return Path(run.config.output_dir) / "checkpoints"


def save(run: Run, step: int) -> None:
    """Writes a checkpoint of the state after `step` steps; the other processes wait for it."""
    if run.accelerator.is_main_process:
        write(folder_of(run), snapshot(run, step), run.config.checkpoints_total_limit)
    run.accelerator.wait_for_everyone()


def snapshot(run: Run, step: int) -> Checkpoint:
    """Everything that a run needs to go on."""
    names = _trained_names(run)
    moments = run.optimizer.state_dict()["state"]
    tensors = {
        "unet": run.unet.state_dict(),
        "weighting": run.weighting.state_dict(),
        "optimizer": {
            f"{key} of {names[index]}": value
            for index, state in moments.items()
            for key, value in state.items()
        },
    }
    if run.ema is not None:
        tensors["ema"] = run.ema.module.state_dict()
    libraries = ("torch", "diffusers", "transformers", "accelerate", "datasets", "safetensors")
    facts = {
        "config": to_dict(run.config),
        "words": run.tokenizer.get_vocab(),
        "data": {"train": run.train_data.fingerprint, "held_out": run.held_out.fingerprint},
        "num_processes": run.accelerator.num_processes,
        "images_seen": step * run.config.total_batch_size,
        "versions": {"python": platform.python_version(), **{n: version(n) for n in libraries}},
    }
    return Checkpoint(step, tensors, facts)


def restore(run: Run) -> int:
    """Brings the run to where its checkpoint left it; returns the number of steps done.

    Raises:
        ConfigError: the checkpoint is of another configuration or other data, or a run is there
            that was not to be resumed.
        CheckpointError: the checkpoint asked for is missing or damaged.
    """
    checkpoint = _find(run)
    if checkpoint is None:
        return 0
    facts = checkpoint.facts
    faults = differences(facts["config"], to_dict(run.config), MAY_CHANGE)
    for split, data in (("train_split", run.train_data), ("validation_split", run.held_out)):
        before = facts["data"]["train" if split == "train_split" else "held_out"]
        if before != data.fingerprint:
            faults.append(
                f"{split}: the checkpoint has data of the fingerprint {before}, this run has "
                f"{data.fingerprint}"
            )
    if checkpoint.step > run.config.max_train_steps:
        faults.append(
            f"max_train_steps: found {run.config.max_train_steps}; the checkpoint has done "
            f"{checkpoint.step} steps"
        )
    if faults:
        raise ConfigError([*faults, "to start anew, choose another output_dir"])
    run.unet.load_state_dict(checkpoint.tensors["unet"])
    run.weighting.load_state_dict(checkpoint.tensors["weighting"])
    if run.ema is not None:
        run.ema.module.load_state_dict(checkpoint.tensors["ema"])
    state = {index: {} for index in range(len(_trained_names(run)))}
    index_of = {name: index for index, name in enumerate(_trained_names(run))}
    for name, value in checkpoint.tensors["optimizer"].items():
        key, _, parameter = name.partition(" of ")
        state[index_of[parameter]][key] = value
    groups = run.optimizer.state_dict()["param_groups"]
    run.optimizer.load_state_dict({"state": state, "param_groups": groups})
    processes = run.accelerator.num_processes
    if facts["num_processes"] != processes:
        logger.warning(
            "the checkpoint is of %d processes and this run has %d: the data and the noise are "
            "the same, the rounding is not",
            facts["num_processes"],
            processes,
        )
    logger.warning("resuming after step %d", checkpoint.step)
    return checkpoint.step


def _find(run: Run) -> Checkpoint | None:
    wish = run.config.resume_from_checkpoint
    if wish is not None and wish != "latest":
        return load(Path(wish))
    checkpoint, skipped = load_latest(folder_of(run))
    for reason in skipped:
        logger.warning("passed over a checkpoint: %s", reason)
    if wish is None and (checkpoint or skipped):
        raise ConfigError(
            [
                f"resume_from_checkpoint: found none; {folder_of(run)} already holds a run: "
                "resume it with latest, or choose another output_dir"
            ]
        )
    return checkpoint


def _trained_names(run: Run) -> list[str]:
    """Names of what the optimiser holds, in its order."""
    objective = run.accelerator.unwrap_model(run.objective, keep_torch_compile=False)
    return [name for name, p in objective.named_parameters() if p.requires_grad]
