"""Checkpoints on disk: a folder step-N is complete, or it does not exist.

The files are written to a temporary folder, the manifest with the size and the sha256 of each last.
The folder is synced and renamed, and only then older ones are deleted. Tensors are safetensors and
everything else is JSON: nothing is ever unpickled.
"""

import errno
import hashlib
import json
import logging
import os
import re
import time
from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import safetensors.torch
from safetensors import SafetensorError
from torch import Tensor

from ..tools.files import delete, replaced_folder, tidy

logger = logging.getLogger(__name__)

MANIFEST = "manifest.json"
FACTS = "facts.json"
_NAME = re.compile(r"step-(0|[1-9][0-9]{0,17})")
DELAYS = (0.1, 1.0, 3.0)  # seconds before each new attempt to read a file
# Errors for a file that does not exist. Any other error may be temporary.
_NOT_THERE = {errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.ELOOP, errno.ENAMETOOLONG}

T = TypeVar("T")


class CheckpointError(ValueError):
    """A checkpoint that is missing or damaged: which file, what was found, what was expected."""


class UnreadableError(CheckpointError):
    """The system could not read a checkpoint, which may be complete all the same."""


@dataclass(frozen=True)
class Checkpoint:
    """The state of a run, complete enough for an exact continuation.

    Attributes:
        step: optimiser steps that were done.
        tensors: group ("unet", "ema", "optimizer", "weighting") -> name -> tensor, on the CPU.
        facts: everything else, as JSON holds it.
    """

    step: int
    tensors: dict[str, dict[str, Tensor]]
    facts: dict[str, Any]


def save(
    folder: Path, checkpoint: Checkpoint, total_limit: int | None = None, keep: Collection[int] = ()
) -> Path:
    """Writes folder/step-N, and then deletes the oldest checkpoints beyond total_limit.

    Checkpoints of later steps are kept. So is everything that this module did not write: if it has
    the name of the new checkpoint, it is renamed.

    Args:
        keep: steps whose checkpoints are neither deleted nor counted.

    Raises:
        OSError: the disk is full, for example; it names the file. Older checkpoints are untouched.
    """
    folder.mkdir(parents=True, exist_ok=True)
    tidy(folder, "step-*")
    target = folder / f"step-{checkpoint.step}"
    if os.path.lexists(target) and not _is_ours(target):
        _move_aside(target)
    manifest: dict[str, dict[str, Any]] = {}
    with replaced_folder(target) as temporary:

        def write(name: str, content: bytes) -> None:
            (temporary / name).write_bytes(content)
            manifest[name] = _entry(content)

        for group, tensors in checkpoint.tensors.items():  # one at a time, to spare memory
            plain = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
            write(f"{group}.safetensors", safetensors.torch.save(plain))
        facts = {"step": checkpoint.step, **checkpoint.facts}
        write(FACTS, json.dumps(facts, indent=2).encode())
        (temporary / MANIFEST).write_bytes(json.dumps(manifest, indent=2).encode())
    if total_limit is not None:
        try:
            _rotate(folder, checkpoint.step, total_limit, keep)
        except (OSError, UnreadableError) as error:  # the new one is complete: nothing is lost
            logger.warning("old checkpoints in %s could not be deleted: %s", folder, error)
    return target


def load(path: Path) -> Checkpoint:
    """Reads a checkpoint, after comparing each file with the manifest.

    Raises:
        CheckpointError: a file is missing or differs from the manifest, there is no manifest, or
            it can't be one.
        UnreadableError: the system failed to read a file, several times.
    """
    contents = _verified(path)
    try:
        tensors = {
            name.removesuffix(".safetensors"): safetensors.torch.load(content)
            for name, content in contents.items()
            if name.endswith(".safetensors")
        }
    except SafetensorError as error:
        raise CheckpointError(f"{path} holds no safetensors: {error}") from error
    facts = _mapping(path / FACTS, contents[FACTS])
    step, name = facts.pop("step", None), _NAME.fullmatch(path.name)
    if not isinstance(step, int) or (name and int(name[1]) != step):
        raise CheckpointError(f"{path / FACTS} has the step {step}; the folder is {path.name}")
    return Checkpoint(step=step, tensors=tensors, facts=facts)


def load_latest(
    folder: Path, accept: Callable[[Checkpoint], bool] = lambda checkpoint: True
) -> tuple[Checkpoint | None, list[str]]:
    """The newest complete checkpoint that is accepted, and why each newer one was passed over.

    Raises:
        UnreadableError: the system failed to read one that is newer than those that it could.
    """
    skipped = []
    for _, path in reversed(_by_step(folder)):
        try:
            checkpoint = load(path)
        except UnreadableError:
            raise
        except CheckpointError as error:
            skipped.append(str(error))
            continue
        if accept(checkpoint):
            return checkpoint, skipped
    return None, skipped


def _entry(content: bytes) -> dict[str, Any]:
    """What the manifest has for a file."""
    return {"size": len(content), "sha256": hashlib.sha256(content).hexdigest()}


def _verified(path: Path) -> dict[str, bytes]:
    """File name -> bytes, each as the manifest has it."""
    manifest, contents = path / MANIFEST, {}
    for name, entry in _mapping(manifest, _read(manifest)).items():
        if not re.fullmatch(r"[\w-][\w.-]*", name):
            raise CheckpointError(f"{manifest} lists {name!r}, which is no file of a checkpoint")
        content = contents[name] = _read(path / name)
        if (found := _entry(content)) != entry:
            raise CheckpointError(f"{path / name} has {found}; the manifest has {entry}")
    if FACTS not in contents:
        raise CheckpointError(f"{manifest} does not list {FACTS}")
    return contents


def _mapping(path: Path, content: bytes) -> dict[str, Any]:
    try:
        table = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} is not JSON: {error}") from error
    if isinstance(table, dict):
        return table
    raise CheckpointError(f"{path} is not a mapping: found {type(table).__name__}")


def _read(path: Path) -> bytes:
    return _insist(path.read_bytes, path)


def _insist(read: Callable[[], T], path: Path) -> T:
    """Calls `read`, and repeats it after errors that may be temporary."""
    delays = list(DELAYS)
    while True:
        try:
            return read()
        except OSError as error:
            if error.errno in _NOT_THERE:
                raise CheckpointError(f"{path} can't be read: {error.strerror}") from error
            if not delays or isinstance(error, PermissionError):
                raise UnreadableError(
                    f"{path} could not be read ({error.strerror}), and may be complete all the "
                    "same: mend the cause and run again, or move the checkpoint away"
                ) from error
        time.sleep(delays.pop(0))


def _by_step(folder: Path) -> list[tuple[int, Path]]:
    """(step, path) of what has the name of a checkpoint, oldest first."""
    try:
        names = _insist(lambda: os.listdir(folder), folder)
    except UnreadableError:
        raise
    except CheckpointError:
        return []  # there is no such folder yet
    matches = ((_NAME.fullmatch(name), folder / name) for name in names)
    return sorted((int(match[1]), path) for match, path in matches if match)


def _is_ours(path: Path) -> bool:
    """Whether this module wrote it: a folder, and no link to one, with a manifest."""
    return not path.is_symlink() and (path / MANIFEST).is_file()


def _rotate(folder: Path, step: int, total_limit: int, keep: Collection[int]) -> None:
    """Deletes the oldest checkpoints until total_limit are left up to this step."""
    earlier = [
        path
        for other, path in _by_step(folder)
        if other < step and other not in keep and _is_ours(path)
    ]
    for path in earlier[: max(0, len(earlier) + 1 - total_limit)]:
        delete(path)


def _move_aside(path: Path) -> None:
    """Renames a file or folder that has the name of a new checkpoint."""
    number = 1
    while os.path.lexists(other := path.with_name(f"moved-aside-{number}-{path.name}")):
        number += 1
    os.rename(path, other)
    logger.warning("%s was not a checkpoint of this package; it is now %s", path, other.name)
