"""A checkpoint is complete or does not exist.

It is written to a temporary folder; each file reaches the disk; a manifest with the size and the
sha256 of each comes last; the folder is renamed; and only then older ones are deleted, each by a
rename first. Tensors are safetensors and everything else is JSON: nothing is ever unpickled.
"""

import hashlib
import json
import os
import re
import shutil
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors.torch
from safetensors import SafetensorError
from torch import Tensor

MANIFEST = "manifest.json"
FACTS = "facts.json"
_NAME = re.compile(r"step-(\d+)")
# What is being written and what is being deleted; a killed process leaves such folders behind.
_WRITING, _DELETING = ".writing-", ".deleting-"


class CheckpointError(ValueError):
    """A checkpoint that is missing or damaged: which file, what was found, what was expected."""


@dataclass(frozen=True)
class Checkpoint:
    """What a run needs to go on as if it had never stopped.

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
    """Writes folder/step-N and then deletes others beyond total_limit, never the new one.

    Args:
        keep: steps whose checkpoints are neither deleted nor counted.

    Raises:
        OSError: the disk is full, say; it names the file. Whatever was complete before still is.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for leftover in [*folder.glob(f"{_WRITING}*"), *folder.glob(f"{_DELETING}*")]:
        shutil.rmtree(leftover)
    target = folder / f"step-{checkpoint.step}"
    temporary = folder / f"{_WRITING}{target.name}"
    temporary.mkdir()
    try:
        manifest = {}
        for name, content in _contents(checkpoint):
            _write(temporary / name, content)
            digest = hashlib.sha256(content).hexdigest()
            manifest[name] = {"size": len(content), "sha256": digest}
        _write(temporary / MANIFEST, json.dumps(manifest, indent=2).encode())
        _sync_folder(temporary)
        if target.exists():  # a damaged one, which this run passed over when it resumed
            _delete(target)
        os.rename(temporary, target)
        _sync_folder(folder)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    if total_limit is not None:
        others = [
            (step, path) for step, path in _by_step(folder) if path != target and step not in keep
        ]
        # Later steps go first: this run would have resumed from them, had they been complete.
        others.sort(key=lambda other: (other[0] < checkpoint.step, other[0]))
        for _, path in others[: max(0, len(others) + 1 - total_limit)]:
            _delete(path)
    return target


def load(path: Path) -> Checkpoint:
    """Reads a checkpoint, after comparing each file with the manifest.

    Raises:
        CheckpointError: a file is missing or differs from the manifest, there is no manifest, or
            it can't be one.
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
    """The newest complete checkpoint that is accepted, and why newer ones can't be read."""
    skipped = []
    for _, path in reversed(_by_step(folder)):
        try:
            checkpoint = load(path)
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
    try:
        return path.read_bytes()
    except (OSError, ValueError) as error:  # ValueError: a name that no file can have
        raise CheckpointError(
            f"{path} can't be read: {getattr(error, 'strerror', error)}"
        ) from error


def _by_step(folder: Path) -> list[tuple[int, Path]]:
    """(step, path) of the checkpoints in a folder, oldest first."""
    if not folder.is_dir():
        return []
    matches = ((_NAME.fullmatch(path.name), path) for path in folder.iterdir())
    return sorted((int(match[1]), path) for match, path in matches if match)


def _write(path: Path, content: bytes) -> None:
    try:
        with open(path, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:  # a write doesn't say which file it was
        raise OSError(error.errno, os.strerror(error.errno), str(path)) from error


def _delete(path: Path) -> None:
    """At once, as far as anybody who looks for checkpoints can see."""
    doomed = path.with_name(f"{_DELETING}{path.name}")
    os.rename(path, doomed)
    shutil.rmtree(doomed)


def _sync_folder(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
