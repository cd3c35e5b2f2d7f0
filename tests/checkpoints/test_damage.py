"""A checkpoint that is damaged is refused by name, and one that can't be read is waited for."""

import hashlib
import json
import os
from pathlib import Path

import pytest
from small_checkpoints import checkpoint, same

from mtl_diffusion.checkpoints import store
from mtl_diffusion.checkpoints.store import (
    FACTS,
    MANIFEST,
    CheckpointError,
    UnreadableError,
    load,
    load_latest,
    save,
)


def test_a_damaged_one_of_the_same_step_is_replaced(tmp_path):
    (save(tmp_path, checkpoint(3)) / FACTS).unlink()
    save(tmp_path, checkpoint(3))
    assert same(load_latest(tmp_path)[0], checkpoint(3))


def damaged(name, content):
    def damage(path):
        (path / name).write_bytes(content((path / name).read_bytes()))

    return damage


def removed(name):
    return lambda path: (path / name).unlink()


def listed(name, **entry):
    def change(content):
        return json.dumps({**json.loads(content), name: entry}).encode()

    return damaged(MANIFEST, change)


def flipped(content):
    return bytes([*content[:-1], content[-1] ^ 1])


NOT_JSON, ABSENT = f"{MANIFEST} is not JSON", "can't be read: No such file"
UNET = "unet.safetensors"
# Name: (what is done to the folder of a checkpoint, what is said of it).
DAMAGES = {
    "a bit of a tensor is flipped": (damaged(UNET, flipped), "; the manifest has"),
    "a tensor file is missing": (removed(UNET), f"{UNET} {ABSENT}"),
    "the manifest is missing": (removed(MANIFEST), f"{MANIFEST} {ABSENT}"),
    "the manifest is cut short": (damaged(MANIFEST, lambda c: c[:40]), NOT_JSON),
    "the manifest lists nothing": (damaged(MANIFEST, lambda c: b"{}"), f"does not list {FACTS}"),
    "an entry has no sha256": (listed(UNET, size=3), "; the manifest has {'size': 3}"),
    "a path leads out": (listed("../../secret", size=0), "'../../secret', which is no file"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_damage_is_named_and_the_one_before_is_taken(damage, tmp_path):
    harm, words = DAMAGES[damage]
    save(tmp_path, checkpoint(1))
    path = save(tmp_path, checkpoint(2))
    harm(path)
    with pytest.raises(CheckpointError) as raised:
        load(path)
    assert str(path) in str(raised.value) and words in str(raised.value)
    newest, skipped = load_latest(tmp_path)
    assert same(newest, checkpoint(1)) and skipped == [str(raised.value)]


@pytest.mark.parametrize("what", ["step-2/unet.safetensors", "step-2/manifest.json", ""])
@pytest.mark.parametrize(("number", "times"), [(5, 1), (5, 4), (13, 1)])
def test_what_could_not_be_read_is_not_damaged(what, number, times, tmp_path, monkeypatch):
    """An error of the disk or the network is waited for, and then refused: not passed over."""
    save(tmp_path, checkpoint(1))
    save(tmp_path, checkpoint(2))
    monkeypatch.setattr(store, "DELAYS", (0, 0, 0))
    left = times

    def at_fault(call):
        def may_fail(path, *rest, **options):
            nonlocal left
            if Path(path) == tmp_path / what and left:
                left -= 1
                raise OSError(number, os.strerror(number))
            return call(path, *rest, **options)

        return may_fail

    for owner, name in ((Path, "read_bytes"), (os, "listdir")):
        monkeypatch.setattr(owner, name, at_fault(getattr(owner, name)))
    if (number, times) == (5, 1):
        assert same(load_latest(tmp_path)[0], checkpoint(2))
        return
    with pytest.raises(UnreadableError) as raised:
        load_latest(tmp_path)
    reason = f"could not be read ({os.strerror(number)})"
    assert str(raised.value).startswith(f"{tmp_path / what} {reason}")


def test_a_folder_that_was_renamed_is_refused(tmp_path):
    save(tmp_path, checkpoint(1)).rename(tmp_path / "step-99")
    with pytest.raises(CheckpointError, match="has the step 1; the folder is step-99"):
        load(tmp_path / "step-99")


def test_a_wrong_file_with_a_right_manifest_is_refused(tmp_path):
    path = save(tmp_path, checkpoint(1))
    (path / "unet.safetensors").write_bytes(b"no tensors")
    digest = hashlib.sha256(b"no tensors").hexdigest()
    listed("unet.safetensors", size=10, sha256=digest)(path)
    with pytest.raises(CheckpointError, match="holds no safetensors"):
        load(path)
