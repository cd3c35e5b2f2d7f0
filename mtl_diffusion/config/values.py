"""From values to a configuration, with all mistakes in one error, and back to values."""

import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import asdict, replace
from types import NoneType
from typing import Any, get_args, get_type_hints

from pydantic import ConfigDict, ValidationError, create_model

from ..tools.yaml_reader import dump
from . import limits
from .fields import OF_MODEL, TYPES, TrainConfig, show, suggestion

# Names in other trainers -> what to do here.
_ELSEWHERE = {
    "epochs num_epochs num_train_epochs max_epochs": (
        "set max_train_steps: an epoch is the number of images / total_batch_size"
    ),
    "batch_size train_batch_size": "set total_batch_size, the samples of a step over all processes",
    "per_device_train_batch_size micro_batch_size gradient_accumulation_steps "
    "accumulate_grad_batches": "set per_device_batch_size: what exceeds it is accumulated",
    "fp16 bf16": "set mixed_precision, to no, bf16 or fp16",
}
# Fields of earlier versions, whose checkpoints have them -> a value with which a run does what it
# does without the field, and what to do.
_REMOVED = {
    "ema_half_life": (..., "set ema_ramp: the half-life is that share of the images seen so far"),
    "edit_classifier": (None, "set feature_classifier: all tasks learn from its features"),
    "task_weights": (None, "set task_weighting, to uncertainty or sum"),
    "gradient_aggregation": ("sum", "leave it out: the gradients of the tasks are always added"),
    "perceptual_weight": (0, "set alignment_weight: no other loss needs a classifier"),
    "perceptual_images": (0.15, "set alignment_weight: no other loss needs a classifier"),
    "token_paths": ("both", "leave it out: tokens always take both paths to the network"),
    "channels_last": (True, "leave it out: images are always in that order of memory"),
    "adam_beta1": (0.9, "leave it out: it is always 0.9"),
    "adam_beta2": (0.99, "leave it out: it is always 0.99"),
    "tracker_project_name": ("mtl_diffusion", "leave it out: the project is mtl_diffusion"),
    "hub_strategy": ("end", "leave it out: publish a checkpoint with mtl-diffusion publish"),
}
_EXAMPLES = {"list_type": ", such as [32, 64]", "dict_type": ", such as {generate: 1, edit: 1}"}
_KINDS = get_type_hints(TrainConfig, include_extras=True)
_VALUES = create_model(
    "Values",
    __config__=ConfigDict(strict=True, allow_inf_nan=False),
    **{name: (kind, None) for name, kind in _KINDS.items()},
)


class ConfigError(ValueError):
    """Everything that is wrong with a configuration; `faults` holds one line per mistake."""

    def __init__(self, faults: Sequence[str] | str):
        self.faults = [faults] if isinstance(faults, str) else list(faults)
        count = "1 fault" if len(self.faults) == 1 else f"{len(self.faults)} faults"
        super().__init__("\n  ".join([f"{count} in the configuration:", *self.faults]))


def checked(
    values: Mapping[str, Any], labels: Mapping[str, str] | None = None, faults: Iterable[str] = ()
) -> TrainConfig:
    """The configuration with these values, and the defaults of the other fields.

    Args:
        labels: field -> its name in a message.
        faults: mistakes that are known already.

    Raises:
        ConfigError: with every mistake.
    """
    config, wrong = _typed(values)
    wrong |= limits.faults(config, [*known_tasks(), *(config.condition_columns or {})], wrong)
    labels = {name: name for name in wrong} | dict(labels or {})
    if faults := [*faults, *(f"{labels[name]}: {what}" for name, what in wrong.items())]:
        raise ConfigError(faults)
    return config


def check(config: TrainConfig) -> TrainConfig:
    """The same, with ~ expanded; raises ConfigError with every mistake."""
    return replace(checked(to_dict(config)), written=config.written)


def from_dict(values: Mapping[str, Any]) -> TrainConfig:
    """Undoes `to_dict`, of 0.1.0 too. Fields are checked one by one only (ConfigError)."""
    config, wrong = _typed({name: v for name, v in values.items() if name not in _REMOVED})
    if wrong:
        raise ConfigError([f"{name}: {what}" for name, what in wrong.items()])
    return config


def to_dict(config: TrainConfig) -> dict[str, Any]:
    """The fields as JSON and YAML can hold them, in the order of `--help`."""
    return {name: value for name, value in asdict(config).items() if name != "written"}


def resolved(config: TrainConfig) -> str:
    """The whole configuration as YAML; `--config` reads it back.

    What is a trained model's is left out, unless it was given, until that model is loaded.
    """
    unknown = OF_MODEL - config.given if config.pretrained_model_name_or_path else ()
    return dump({name: v for name, v in to_dict(config).items() if name not in unknown})


def differences(
    old: Mapping[str, Any], new: Mapping[str, Any], allowed: Collection[str] = ()
) -> list[str]:
    """Compares two `to_dict`s, a checkpoint's and this run's: a line per field that differs.

    A field that the checkpoint lacks is a younger one. It has its default, which is how the run of
    then behaved. Fields in `allowed` may differ, and those of a trained model that the run starts
    from: 0.1.0 stored defaults for them. So may a removed field whose value had no effect.
    """
    old = to_dict(TrainConfig()) | dict(old)
    passed = {*allowed, *(OF_MODEL if new.get("pretrained_model_name_or_path") else ())}
    passed |= {name for name, (idle, _) in _REMOVED.items() if old.get(name) == idle}
    if old.get("ema_half_life", 0) >= old["ema_ramp"]:  # the smaller one had effect
        passed.add("ema_half_life")
    lines = []
    for name in {**new, **old}:
        if name not in passed and old.get(name, ...) != new.get(name, ...):
            before, now = (show(v[name]) if name in v else "nothing" for v in (old, new))
            lines.append(f"{name}: the checkpoint has {before}, this run has {now}")
    return lines


def hint(name: str, prefix: str = "") -> str:
    """What to write in place of a name that is no field's."""
    instead = _ELSEWHERE | {name: what for name, (_, what) in _REMOVED.items()}
    hints = (f"; {what}" for names, what in instead.items() if name in names.split())
    return next(hints, suggestion(name, TYPES, prefix))


def known_tasks() -> list[str]:
    """Names of the tasks that can be trained."""
    # Imported here: tasks are torch code, which --help must not wait for.
    from mtl_diffusion.pipeline.pipeline import TASKS

    return list(TASKS)


def _typed(values: Mapping[str, Any]) -> tuple[TrainConfig, dict[str, str]]:
    """The configuration, and field -> what is wrong; such fields have their default."""
    wrong = {name: f"unknown field{hint(str(name))}" for name in values if name not in TYPES}
    known = {name: value for name, value in values.items() if name in TYPES}
    optional = {name for name in known if NoneType in get_args(TYPES[name])}
    known |= {name: None for name in optional if known[name] in ("None", "null")}
    try:
        known = _VALUES.model_validate(known).model_dump(exclude_unset=True)
    except ValidationError as refusal:
        reasons: dict[str, list[str]] = {}
        for error in refusal.errors():  # one for each type that a field may have
            what = re.sub(r"^\w+ should |^must ", "", error["msg"])
            reasons.setdefault(error["loc"][0], []).append(what + _EXAMPLES.get(error["type"], ""))
        for name, found in reasons.items():
            what = ", or ".join(dict.fromkeys(found + ["null"] * (name in optional)))
            wrong[name] = f"found {show(known[name])}; must {what}"
        known = {name: value for name, value in known.items() if name not in wrong}
    return TrainConfig(**known, written=frozenset(known)), wrong
