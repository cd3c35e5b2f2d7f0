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
import stat
import time
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

import safetensors.torch
from safetensors import SafetensorError
from torch import Tensor

from ..tools.files import delete, replaced_folder, tidy, write_bytes

logger = logging.getLogger(__name__)

MANIFEST = "manifest.json"
FACTS = "facts.json"
_NAME = re.compile(r"step-(0|[1-9][0-9]{0,17})")
# Seconds before each new attempt to read a file.
DELAYS = (0.1, 1.0, 3.0)
# Errors for a file that does not exist. Any other error may be temporary.
_NOT_THERE = {errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.ELOOP, errno.ENAMETOOLONG}

T = TypeVar("T")


class CheckpointError(ValueError):
    """A checkpoint that is missing or damaged: which file, what was found, what was expected."""


class MissingError(CheckpointError):
    """A file or a folder that is not there."""


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
    folder: Path,
    checkpoint: Checkpoint,
    total_limit: int | None = None,
    keep: Collection[int] = (),
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
    with replaced_folder(target) as temporary:
        manifest = {}
        for name, content in _contents(checkpoint):
            write_bytes(temporary / name, content)
            digest = hashlib.sha256(content).hexdigest()
            manifest[name] = {"size": len(content), "sha256": digest}
        write_bytes(temporary / MANIFEST, json.dumps(manifest, indent=2).encode())
    if total_limit is not None:
        try:
            _rotate(folder, checkpoint.step, total_limit, keep)
        except OSError as error:  # the new one is complete: nothing is lost
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


def _contents(checkpoint: Checkpoint) -> Iterator[tuple[str, bytes]]:
    """(file name, bytes) of everything but the manifest, one at a time to spare memory."""
    for group, tensors in checkpoint.tensors.items():
        plain = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
        yield f"{group}.safetensors", safetensors.torch.save(plain)
    yield FACTS, json.dumps({"step": checkpoint.step, **checkpoint.facts}, indent=2).encode()


def _verified(path: Path) -> dict[str, bytes]:
    """File name -> bytes, each as the manifest has it."""
    contents = {}
    for name, entry in _mapping(path / MANIFEST, _read(path / MANIFEST)).items():
        match entry:
            case {"size": int(size), "sha256": str(sha256)}:
                pass
            case _:
                raise CheckpointError(
                    f"{path / MANIFEST} has {entry!r} for {name}; size and sha256 were expected"
                )
        if Path(name).name != name:
            raise CheckpointError(f"{path / MANIFEST} lists {name!r}, which is outside of {path}")
        content = _read(path / name)
        if len(content) != size:
            raise CheckpointError(
                f"{path / name} has {len(content)} bytes; the manifest has {size}"
            )
        digest = hashlib.sha256(content).hexdigest()
        if digest != sha256:
            raise CheckpointError(
                f"{path / name} has the sha256 {digest}; the manifest has {sha256}"
            )
        contents[name] = content
    if FACTS not in contents:
        raise CheckpointError(f"{path / MANIFEST} does not list {FACTS}")
    return contents


def _mapping(path: Path, content: bytes) -> dict[str, Any]:
    try:
        found = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} is not JSON: {error}") from error
    if not isinstance(found, dict):
        raise CheckpointError(f"{path} is not a mapping: found {type(found).__name__}")
    return found


def _read(path: Path) -> bytes:
    return _insist(path.read_bytes, path)


def _insist(read: Callable[[], T], path: Path) -> T:
    """Calls `read`, and repeats it after errors that may be temporary.

    Raises:
        MissingError: nothing of that kind is at `path`.
        UnreadableError: another error, at each attempt.
    """
    for delay in (*DELAYS, None):
        try:
            return read()
        except ValueError as error:  # a name that no file can have
            raise MissingError(f"{path} can't be read: {error}") from error
        except OSError as error:
            if error.errno in _NOT_THERE:
                raise MissingError(f"{path} can't be read: {error.strerror}") from error
            if delay is None or isinstance(error, PermissionError):
                raise UnreadableError(
                    f"{path} could not be read ({error.strerror}), and may be complete all the "
                    "same: mend the cause and run again, or move the checkpoint away"
                ) from error
        time.sleep(delay)
    raise AssertionError("the last attempt returns or raises")


def _by_step(folder: Path) -> list[tuple[int, Path]]:
    """(step, path) of the folders that are called as checkpoints are, oldest first."""
    try:
        names = _insist(lambda: os.listdir(folder), folder)
    except MissingError:
        return []
    matches = ((_NAME.fullmatch(name), folder / name) for name in names)
    return sorted((int(match[1]), path) for match, path in matches if match and _is_folder(path))


def _is_folder(path: Path) -> bool:
    try:
        return stat.S_ISDIR(_insist(path.stat, path).st_mode)
    except MissingError:
        return False


def _is_ours(path: Path) -> bool:
    """Whether this module wrote it: a folder, and no link to one, with a manifest."""
    return not path.is_symlink() and (path / MANIFEST).is_file()


def _rotate(folder: Path, step: int, total_limit: int, keep: Collection[int]) -> None:
    """Deletes the oldest checkpoints until total_limit are left up to this step."""
    for path in folder.glob("step-*"):
        if not (_NAME.fullmatch(path.name) and _is_ours(path)):
            _warn_of(path)
    earlier = [
        path
        for other, path in _by_step(folder)
        if other < step and other not in keep and _is_ours(path)
    ]
    for path in earlier[: max(0, len(earlier) + 1 - total_limit)]:
        delete(path)


@cache  # once is enough
def _warn_of(path: Path) -> None:
    logger.warning("%s is not a checkpoint of this package, and is left alone", path)


def _move_aside(path: Path) -> None:
    """Renames a file or folder that has the name of a new checkpoint."""
    number = 1
    while os.path.lexists(other := path.with_name(f"moved-aside-{number}-{path.name}")):
        number += 1
    os.rename(path, other)
    logger.warning("%s was not a checkpoint of this package; it is now %s", path, other.name)
