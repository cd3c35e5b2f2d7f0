"""A checkpoint is complete or does not exist.

It is written to a temporary folder; each file reaches the disk; a manifest with the size and the
sha256 of each comes last; the folder is renamed; and only then older ones are deleted. Tensors are
safetensors and everything else is JSON: nothing is ever unpickled.
"""

import hashlib
import json
import os
import re
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors.torch
from torch import Tensor

MANIFEST = "manifest.json"
FACTS = "facts.json"
_NAME = re.compile(r"step-(\d+)")
_TEMPORARY = ".writing-"


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


def save(folder: Path, checkpoint: Checkpoint, total_limit: int | None = None) -> Path:
    """Writes folder/step-N and then deletes the oldest ones beyond total_limit.

    Raises:
        OSError: the disk is full, say. Whatever was complete before still is.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for leftover in folder.glob(f"{_TEMPORARY}*"):
        shutil.rmtree(leftover)
    target = folder / f"step-{checkpoint.step}"
    temporary = folder / f"{_TEMPORARY}{target.name}"
    temporary.mkdir()
    try:
        manifest = {}
        for name, content in _contents(checkpoint):
            _write(temporary / name, content)
            digest = hashlib.sha256(content).hexdigest()
            manifest[name] = {"size": len(content), "sha256": digest}
        _write(temporary / MANIFEST, json.dumps(manifest, indent=2).encode())
        _sync_folder(temporary)
        if target.exists():  # an earlier, damaged one of this step: a complete one isn't rewritten
            shutil.rmtree(target)
        temporary.rename(target)
        _sync_folder(folder)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    if total_limit is not None:
        for _, old in _by_step(folder)[:-total_limit]:
            shutil.rmtree(old)
    return target


def load(path: Path) -> Checkpoint:
    """Reads a checkpoint, after comparing each file with the manifest.

    Raises:
        CheckpointError: a file is missing or differs from the manifest, or there is no manifest.
    """
    contents = _verified(path)
    tensors = {
        name.removesuffix(".safetensors"): safetensors.torch.load(content)
        for name, content in contents.items()
        if name.endswith(".safetensors")
    }
    facts = json.loads(contents[FACTS])
    return Checkpoint(step=facts.pop("step"), tensors=tensors, facts=facts)


def load_latest(folder: Path) -> tuple[Checkpoint | None, list[str]]:
    """The newest complete checkpoint, and why each newer one was passed over."""
    skipped = []
    for _, path in reversed(_by_step(folder)):
        try:
            return load(path), skipped
        except CheckpointError as error:
            skipped.append(str(error))
    return None, skipped


def _contents(checkpoint: Checkpoint):
    """(file name, bytes) of everything but the manifest, one at a time to spare memory."""
    for group, tensors in checkpoint.tensors.items():
        plain = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
        yield f"{group}.safetensors", safetensors.torch.save(plain)
    yield FACTS, json.dumps({"step": checkpoint.step, **checkpoint.facts}, indent=2).encode()


def _verified(path: Path) -> dict[str, bytes]:
    """File name -> bytes, each as the manifest has it."""
    manifest = _read(path / MANIFEST)
    try:
        expected = json.loads(manifest)
    except ValueError as error:
        raise CheckpointError(f"{path / MANIFEST} is not JSON: {error}") from error
    contents = {}
    for name, entry in expected.items():
        content = _read(path / name)
        if len(content) != entry["size"]:
            raise CheckpointError(
                f"{path / name} has {len(content)} bytes; the manifest has {entry['size']}"
            )
        digest = hashlib.sha256(content).hexdigest()
        if digest != entry["sha256"]:
            raise CheckpointError(
                f"{path / name} has the sha256 {digest}; the manifest has {entry['sha256']}"
            )
        contents[name] = content
    if FACTS not in contents:
        raise CheckpointError(f"{path / MANIFEST} does not list {FACTS}")
    return contents


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise CheckpointError(f"{path} can't be read: {error.strerror}") from error


def _by_step(folder: Path) -> list[tuple[int, Path]]:
    """(step, path) of the checkpoints in a folder, oldest first."""
    if not folder.is_dir():
        return []
    matches = ((_NAME.fullmatch(path.name), path) for path in folder.iterdir())
    return sorted((int(match[1]), path) for match, path in matches if match)


def _write(path: Path, content: bytes) -> None:
    with open(path, "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def _sync_folder(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
