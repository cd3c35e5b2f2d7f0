"""A checkpoint is complete or does not exist."""

import hashlib
import json
import os
import signal
from functools import partial

import pytest
from dying import die_at
from small_checkpoints import checkpoint, same, steps

from mtl_diffusion.checkpoints.store import FACTS, MANIFEST, load, load_latest, save


def test_a_round_trip_is_exact(tmp_path):
    path = save(tmp_path, checkpoint(3))
    assert same(load(path), checkpoint(3))
    assert {file.name for file in path.iterdir()} == {
        *("unet.safetensors", "weighting.safetensors", "optimizer.safetensors"),
        *("ema.safetensors", FACTS, MANIFEST),
    }
    manifest = json.loads((path / MANIFEST).read_text())
    for name, entry in manifest.items():
        content = (path / name).read_bytes()
        assert entry == {"size": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    assert MANIFEST not in manifest


def test_rotation_keeps_later_steps_until_the_run_has_passed_them(tmp_path):
    """They were passed over when the run was resumed: damaged, as far as this machine could see."""
    save(tmp_path, checkpoint(10))
    (save(tmp_path, checkpoint(30)) / FACTS).unlink()
    save(tmp_path, checkpoint(15), total_limit=1)
    assert steps(tmp_path) == [15, 30]
    save(tmp_path, checkpoint(45), total_limit=1)
    assert steps(tmp_path) == [45]


def test_what_is_not_ours_is_neither_deleted_nor_in_the_way(tmp_path):
    """Files, links and folders that are called as checkpoints are, and leftovers' names."""
    folder, elsewhere = tmp_path / "checkpoints", save(tmp_path / "elsewhere", checkpoint(3))
    folder.mkdir()
    long = "step-" + "1" * 250
    for name in ("step-99", "step-20", "step-", "step-0x1", "step-007", long, ".writing-step-30"):
        (folder / name).write_text(name)
    (folder / "step-3").symlink_to(elsewhere)
    (folder / "step-4").symlink_to("nowhere")
    (folder / "step-5").mkdir()
    assert same(load_latest(folder)[0], checkpoint(3))  # a link is as good as a folder
    foreign = {path.name for path in folder.iterdir()} - {"step-20", ".writing-step-30"}
    for step in (10, 20, 30):
        save(folder, checkpoint(step), total_limit=1)
        assert same(load_latest(folder)[0], checkpoint(step))
    left = {path.name for path in folder.iterdir()}
    assert left == {*foreign, "step-30", "moved-aside-1-step-20"}
    assert (folder / "moved-aside-1-step-20").read_text() == "step-20"
    assert same(load(elsewhere), checkpoint(3))


def test_a_clean_up_that_fails_fails_no_save(tmp_path, monkeypatch, caplog):
    import mtl_diffusion.tools.files as files

    def fail(*arguments):
        raise PermissionError(13, "Permission denied")

    save(tmp_path, checkpoint(1))
    (tmp_path / ".writing-step-0").mkdir()
    monkeypatch.setattr(files.shutil, "rmtree", fail)
    save(tmp_path, checkpoint(2), total_limit=1)
    assert same(load_latest(tmp_path)[0], checkpoint(2)) and "could not be removed" in caplog.text
    rename = os.rename
    monkeypatch.setattr(
        files.os, "rename", lambda a, b: fail() if a.name == "step-2" else rename(a, b)
    )
    save(tmp_path, checkpoint(3), total_limit=1)
    assert same(load_latest(tmp_path)[0], checkpoint(3)) and steps(tmp_path) == [2, 3]
    assert f"{tmp_path / 'step-2'} could not be deleted" in caplog.text


def test_a_kill_at_each_operation_of_a_save(tmp_path):
    """Opening, making, renaming, removing: before the first, between each two, after the last."""
    new, kills, whole = checkpoint(30), 0, set()
    for event in range(200):
        folder = tmp_path / str(event)
        save(folder, checkpoint(10))
        save(folder, checkpoint(20))
        code = die_at(event, partial(save, folder, new, total_limit=2))
        newest, skipped = load_latest(folder)
        assert not skipped  # what has a checkpoint's name is complete
        assert same(newest, checkpoint(newest.step)) and newest.step in (20, 30)
        complete = steps(folder)
        assert complete in ([10, 20], [10, 20, 30], [20, 30])
        whole.add(tuple(complete))
        # The next save tidies up and succeeds.
        save(folder, checkpoint(40), total_limit=2)
        assert steps(folder) == [complete[-1], 40]
        assert {path.name[:5] for path in folder.iterdir()} == {"step-"}
        if code == 0:
            break
        assert code == -signal.SIGKILL
        kills += 1
    # Six files and their folder, the sync of two folders, the rename, the rotation of seven.
    assert kills > 16 and len(whole) == 3


def test_every_file_and_folder_is_synced(tmp_path, monkeypatch):
    """Six files, their folder, and the one that it is renamed in: the last is allowed to fail."""
    real, synced = os.fsync, []

    def fsync(descriptor):
        synced.append(descriptor)
        if len(synced) == 8:
            raise OSError(5, "Input/output error")
        real(descriptor)

    monkeypatch.setattr(os, "fsync", fsync)
    with pytest.raises(OSError, match="Input/output error"):
        save(tmp_path, checkpoint(1))
    assert same(load_latest(tmp_path)[0], checkpoint(1))
    save(tmp_path, checkpoint(2))
    assert len(synced) == 16
