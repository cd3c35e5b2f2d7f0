"""The arms of a comparison: runs that differ from a base configuration in a few fields.

All arms have the base's number of optimiser steps and its schedules, unless they change them.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ..config import ConfigError, TrainConfig, checked, to_dict
from ..tools.yaml_reader import load_strictly

OURS = {"seed", "output_dir", "push_to_hub", "dry_run"}  # fields that a comparison sets itself


@dataclass(frozen=True)
class Arm:
    """One way to train.

    Attributes:
        name: its row in the tables, and part of the names of its folders.
        changes: field of the configuration -> value; the other fields are the base's.
        source: name of the arm whose pipeline of the same seed it starts from, if it does.
    """

    name: str
    changes: Mapping[str, Any]
    source: str | None = None


def read_arms(path: Path) -> list[Arm]:
    """The arms of a YAML file: name -> changed fields, and `from`: the name of an earlier arm.

    Raises:
        ValueError: the file does not hold that.
        OSError: it can't be read.
    """
    try:
        entries = load_strictly(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"arms: {path} is not YAML: {error}") from error
    lines = entries.values() if isinstance(entries, dict) else ()
    if not lines or not all(isinstance(changes, dict) for changes in lines):
        raise ValueError(f"arms: {path} must hold lines such as name: {{field: value}}")
    arms: list[Arm] = []
    for name, changes in entries.items():
        source = changes.pop("from", None)
        if not re.fullmatch(r"\w[\w.+-]*", str(name)):
            raise ValueError(f"arms: the name is {name!r}; use letters, digits, '.', '+' and '-'")
        if source is not None and source not in [arm.name for arm in arms]:
            raise ValueError(f"arms: {name} starts from {source}, which is no earlier arm")
        if ours := OURS.intersection(changes):
            raise ValueError(f"arms: {name} changes {min(ours)}, which a comparison sets itself")
        arms.append(Arm(str(name), changes, source))
    return arms


def configure(
    arm: Arm, base: TrainConfig, seed: int, folder: Path, source: Path | None = None
) -> TrainConfig:
    """The configuration of one run.

    Args:
        source: the exported pipeline of the arm that it starts from.

    Raises:
        ConfigError: a change is not allowed; the message names the arm.
    """
    values = to_dict(base) | dict(arm.changes)
    values |= {"seed": seed, "output_dir": str(folder), "push_to_hub": False, "dry_run": False}
    if source is not None:
        values["pretrained_model_name_or_path"] = str(source)
    try:
        # What is not given is the source's, in a run that starts from one.
        return replace(checked(values), written=base.written | arm.changes.keys())
    except ConfigError as error:
        raise ConfigError([f"{arm.name}: {fault}" for fault in error.faults]) from error
