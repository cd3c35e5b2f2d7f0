"""A checkpoint is complete or does not exist."""

import hashlib
import json
import multiprocessing
import os
import resource
import signal
import sys
from pathlib import Path

import pytest
import torch

from mtl_diffusion.checkpoints.store import (
    FACTS,
    MANIFEST,
    Checkpoint,
    CheckpointError,
    UnreadableError,
    load,
    load_latest,
    save,
)


def checkpoint(step, size=64):
    generator = torch.Generator().manual_seed(step)
    groups = ("unet", "weighting", "optimizer", "ema")
    tensors = {name: {"a": torch.randn(size, generator=generator)} for name in groups}
    return Checkpoint(step, tensors, {"seed": step})


def steps(folder):
    return sorted(int(path.name.removeprefix("step-")) for path in folder.glob("step-*"))


def same(one, other):
    return (one.step, one.facts) == (other.step, other.facts) and all(
        torch.equal(tensor, other.tensors[group][name])
        for group, tensors in one.tensors.items()
        for name, tensor in tensors.items()
    )


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


def test_strides_do_not_matter(tmp_path):
    weight = torch.randn(4, 3, 5, 5).to(memory_format=torch.channels_last)
    read = load(save(tmp_path, Checkpoint(1, {"unet": {"w": weight}}, {})))
    assert torch.equal(read.tensors["unet"]["w"], weight)


def test_rotation_keeps_the_newest(tmp_path):
    for step in range(1, 6):
        save(tmp_path, checkpoint(step), total_limit=2)
    assert steps(tmp_path) == [4, 5]
    save(tmp_path, checkpoint(6))
    assert steps(tmp_path) == [4, 5, 6]
    save(tmp_path, checkpoint(7), total_limit=9)
    assert steps(tmp_path) == [4, 5, 6, 7]


def test_rotation_keeps_later_steps_until_the_run_has_passed_them(tmp_path):
    """They were passed over when the run was resumed: damaged, as far as this machine could see."""
    save(tmp_path, checkpoint(10))
    (save(tmp_path, checkpoint(30)) / FACTS).unlink()
    save(tmp_path, checkpoint(15), total_limit=1)
    assert steps(tmp_path) == [15, 30]
    save(tmp_path, checkpoint(45), total_limit=1)
    assert steps(tmp_path) == [45]


def test_what_is_not_ours_is_neither_deleted_nor_in_the_way(tmp_path, caplog):
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
    assert {path.name for path in folder.iterdir()} == {
        *foreign,
        "step-30",
        "moved-aside-1-step-20",
    }
    assert (folder / "moved-aside-1-step-20").read_text() == "step-20"
    assert same(load(elsewhere), checkpoint(3))
    for name in ("step-99", "step-3", "step-5", long):
        assert caplog.text.count(f"{folder / name} is not a checkpoint of this package") == 1


def test_a_clean_up_that_fails_fails_no_save(tmp_path, monkeypatch, caplog):
    import mtl_diffusion.tools.files as files

    def fail(*arguments):
        raise PermissionError(13, "Permission denied")

    save(tmp_path, checkpoint(1))
    (tmp_path / ".deleting-step-0").mkdir()
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


def test_a_damaged_one_of_the_same_step_is_replaced(tmp_path):
    (save(tmp_path, checkpoint(3)) / FACTS).unlink()
    save(tmp_path, checkpoint(3))
    assert same(load_latest(tmp_path)[0], checkpoint(3))


# --- damage -------------------------------------------------------------------------------------


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


def as_folder(path):
    (path / FACTS).unlink()
    (path / FACTS).mkdir()


WHOLE = {"size": 0, "sha256": "0" * 64}
DAMAGES = {
    "a tensor file is cut short": (
        damaged("unet.safetensors", lambda c: c[:-1]),
        ("unet.safetensors has", "bytes; the manifest has"),
    ),
    "a tensor file is empty": (
        damaged("optimizer.safetensors", lambda c: b""),
        ("optimizer.safetensors has 0 bytes; the manifest has",),
    ),
    "a bit of a tensor is flipped": (
        damaged("ema.safetensors", flipped),
        ("ema.safetensors has the sha256", "the manifest has"),
    ),
    "a bit of the facts is flipped": (damaged(FACTS, flipped), (FACTS, "sha256")),
    "a tensor file is missing": (
        removed("weighting.safetensors"),
        ("weighting.safetensors can't be read: No such file",),
    ),
    "the facts are missing": (removed(FACTS), (f"{FACTS} can't be read: No such file",)),
    "the facts are a folder": (as_folder, (FACTS, "Is a directory")),
    "the manifest is missing": (removed(MANIFEST), (f"{MANIFEST} can't be read: No such file",)),
    "the manifest is cut short": (
        damaged(MANIFEST, lambda c: c[:40]),
        (f"{MANIFEST} is not JSON",),
    ),
    "the manifest is empty": (damaged(MANIFEST, lambda c: b""), (f"{MANIFEST} is not JSON",)),
    "the manifest is no text": (
        damaged(MANIFEST, lambda c: b"\xff\xfe\x00"),
        (f"{MANIFEST} is not JSON",),
    ),
    "the manifest is nested without end": (
        damaged(MANIFEST, lambda c: b"[" * 100_000),
        (f"{MANIFEST} is not JSON",),
    ),
    "the manifest is a list": (
        damaged(MANIFEST, lambda c: b"[]"),
        (f"{MANIFEST} is not a mapping: found list",),
    ),
    "the manifest lists nothing": (
        damaged(MANIFEST, lambda c: b"{}"),
        (f"{MANIFEST} does not list {FACTS}",),
    ),
    "an entry has no sha256": (listed("unet.safetensors", size=3), ("size and sha256 were expec",)),
    "an entry's size is a text": (
        listed("unet.safetensors", size="3", sha256=""),
        ("size and sha256 were expected",),
    ),
    "a path leads out": (listed("../../secret", **WHOLE), ("'../../secret', which is outside",)),
    "a path is absolute": (listed("/etc/passwd", **WHOLE), ("'/etc/passwd', which is outside",)),
    "a path is the parent": (listed("..", **WHOLE), ("can't be read: Is a directory",)),
    "a name has a zero byte": (listed("a\0b", **WHOLE), ("can't be read",)),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_damage_is_named_and_the_one_before_is_taken(damage, tmp_path):
    harm, words = DAMAGES[damage]
    save(tmp_path, checkpoint(1))
    path = save(tmp_path, checkpoint(2))
    harm(path)
    with pytest.raises(CheckpointError) as raised:
        load(path)
    assert str(path) in str(raised.value)
    for word in words:
        assert word in str(raised.value)
    newest, skipped = load_latest(tmp_path)
    assert same(newest, checkpoint(1)) and skipped == [str(raised.value)]


@pytest.mark.parametrize("what", ["step-2/unet.safetensors", "step-2/manifest.json", "step-2", ""])
@pytest.mark.parametrize("times", [1, 4])
def test_what_could_not_be_read_is_not_damaged(what, times, tmp_path, monkeypatch):
    """An error of the disk or the network is waited for, and then refused: not passed over."""
    import mtl_diffusion.checkpoints.store as module

    save(tmp_path, checkpoint(1))
    save(tmp_path, checkpoint(2))
    monkeypatch.setattr(module, "DELAYS", (0, 0, 0))
    left = times

    def at_fault(call):
        def may_fail(path, *rest, **options):
            nonlocal left
            if Path(path) == tmp_path / what and left:
                left -= 1
                raise OSError(5, "Input/output error")
            return call(path, *rest, **options)

        return may_fail

    for owner, name in ((Path, "read_bytes"), (Path, "stat"), (os, "listdir")):
        monkeypatch.setattr(owner, name, at_fault(getattr(owner, name)))
    if times == 1:
        assert same(load_latest(tmp_path)[0], checkpoint(2))
        return
    with pytest.raises(UnreadableError) as raised:
        load_latest(tmp_path)
    assert str(raised.value).startswith(f"{tmp_path / what} could not be read (Input/output error)")


def test_a_checkpoint_of_somebody_else_is_not_damaged(tmp_path, monkeypatch):
    save(tmp_path, checkpoint(1))
    save(tmp_path, checkpoint(2))

    def forbidden(path):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "read_bytes", forbidden)
    with pytest.raises(
        UnreadableError, match=r"step-2/manifest.json could not be read \(Permission"
    ):
        load_latest(tmp_path)


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


def test_a_missing_folder_is_named(tmp_path):
    with pytest.raises(CheckpointError, match=r"step-7/manifest.json can't be read: No such file"):
        load(tmp_path / "step-7")
    assert load_latest(tmp_path / "nothing") == (None, [])


def test_nothing_is_unpickled(tmp_path):
    """A file that pickle would run is bytes like others, and refused."""
    path = save(tmp_path, checkpoint(1))
    (path / "optimizer.pt").write_bytes(b"cos\nsystem\n(S'false'\ntR.")
    assert same(load(path), checkpoint(1))  # not listed, not read


# --- a process that dies, a disk that is full -----------------------------------------------------


def in_a_child(work, *arguments):
    """The exit code of a forked process; it runs no torch kernel that would start threads."""
    process = multiprocessing.get_context("fork").Process(target=work, args=arguments)
    process.start()
    process.join(60)
    return process.exitcode


EVENTS = {"open", "os.mkdir", "os.rename", "os.remove", "os.rmdir", "shutil.rmtree"}


def save_and_die(folder, event):
    """A save that ends with SIGKILL right before its n-th operation on a file or a folder."""
    left = event

    def hook(name, arguments):
        nonlocal left
        if name in EVENTS:
            if left == 0:
                os.kill(os.getpid(), signal.SIGKILL)
            left -= 1

    torch.set_num_threads(1)
    new = checkpoint(30)
    sys.addaudithook(hook)
    save(folder, new, total_limit=2)


def test_a_kill_at_each_operation_of_a_save(tmp_path):
    """Opening, making, renaming, removing: before the first, between each two, after the last."""
    kills, whole = 0, set()
    for event in range(200):
        folder = tmp_path / str(event)
        save(folder, checkpoint(10))
        save(folder, checkpoint(20))
        code = in_a_child(save_and_die, folder, event)
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


def save_with_limit(folder, size, pipe):
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))
    torch.set_num_threads(1)
    try:
        save(folder, checkpoint(2, size=5000), total_limit=1)
    except OSError as error:
        pipe.send((error.errno, error.filename, str(error)))


@pytest.mark.parametrize("size", [0, 1000, 19_000])
def test_a_full_disk_leaves_the_older_one_and_names_the_file(size, tmp_path):
    save(tmp_path, checkpoint(1), total_limit=1)
    here, there = multiprocessing.Pipe()
    assert in_a_child(save_with_limit, tmp_path, size, there) == 0
    number, name, text = here.recv()
    assert number == 27 and name == str(tmp_path / ".writing-step-2" / "unet.safetensors")
    assert text == f"[Errno 27] File too large: '{name}'"
    assert [path.name for path in tmp_path.iterdir()] == ["step-1"]
    assert same(load_latest(tmp_path)[0], checkpoint(1))


def test_an_error_of_the_disk_in_the_last_sync(tmp_path, monkeypatch):
    """Each fsync of a save fails in turn."""
    import mtl_diffusion.checkpoints.store as module

    save(tmp_path, checkpoint(1), total_limit=1)
    real, failures = os.fsync, 0
    for last in range(20):
        left = last

        def fsync(descriptor):
            nonlocal left
            left -= 1
            if left < 0:
                raise OSError(5, "Input/output error")
            real(descriptor)

        monkeypatch.setattr(module.os, "fsync", fsync)
        try:
            save(tmp_path, checkpoint(2), total_limit=1)
            break
        except OSError as error:
            failures += 1
            assert error.errno == 5
        newest, skipped = load_latest(tmp_path)
        assert not skipped and same(newest, checkpoint(newest.step))
    assert failures == 8  # six files, two folders
    assert steps(tmp_path) == [2]
