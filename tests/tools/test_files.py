"""A file or a folder is complete under its name, or it is not there."""

import os
import signal

import pytest
from dying import die_at

from mtl_diffusion.tools.files import delete, replaced_folder, tidy, write_text


def replace(target, content):
    with replaced_folder(target) as folder:
        (folder / "inner").mkdir()
        for name in ("a", "inner/b"):
            (folder / name).write_text(content)


def content_of(folder):
    if not folder.exists():
        return None
    return {path.relative_to(folder).as_posix(): path.read_text() for path in folder.rglob("?")}


OLD, NEW = ({"a": text, "inner/b": text} for text in ("old", "new"))


def test_a_kill_at_each_operation_of_a_replacement(tmp_path):
    """The old or the new one is there, whole; between two renames it is beside its place."""
    found = []
    for operation in range(100):
        target = tmp_path / str(operation) / "pipeline"
        replace(target, "old")
        code = die_at(operation, replace, target, "new")
        there = content_of(target)
        if there is None:
            assert content_of(target.with_name(".replaced-pipeline")) == OLD
        found.append(there)
        tidy(target.parent, "pipeline")
        assert os.listdir(target.parent) == ["pipeline"]
        assert content_of(target) == (NEW if there == NEW else OLD)
        replace(target, "new")
        assert os.listdir(target.parent) == ["pipeline"] and content_of(target) == NEW
        if code == 0:
            break
        assert code == -signal.SIGKILL
    assert found.index(None) < found.index(NEW) and found.count(None) == 1
    assert found.count(OLD) > 5 and found.count(NEW) > 5


def test_an_error_leaves_what_was_there(tmp_path, monkeypatch):
    replace(tmp_path / "folder", "old")
    with pytest.raises(KeyError), replaced_folder(tmp_path / "folder") as folder:
        (folder / "a").write_text("new")
        raise KeyError
    rename = os.rename

    def fail_once(source, target):
        if source.name == ".writing-folder":
            raise OSError(28, "No space left on device")
        rename(source, target)

    monkeypatch.setattr("mtl_diffusion.tools.files.os.rename", fail_once)
    with pytest.raises(OSError, match="No space"):
        replace(tmp_path / "folder", "new")
    assert os.listdir(tmp_path) == ["folder"] and content_of(tmp_path / "folder") == OLD


def test_a_text_is_the_old_one_or_the_new_one(tmp_path):
    path = tmp_path / "length.json"
    found = []
    for operation in range(20):
        write_text(path, "old")
        code = die_at(operation, write_text, path, "new")
        found.append(path.read_text())
        if code == 0:
            break
    assert set(found) == {"old", "new"} and found == sorted(found, reverse=True)
    with pytest.raises(OSError, match="nowhere"):
        write_text(tmp_path / "nowhere" / "file", "new")


def test_deleting_is_at_once_and_a_link_is_not_followed(tmp_path):
    replace(tmp_path / "folder", "old")
    (tmp_path / "link").symlink_to(tmp_path / "folder")
    delete(tmp_path / "link")
    assert os.listdir(tmp_path) == ["folder"] and content_of(tmp_path / "folder") == OLD
    delete(tmp_path / "folder")
    delete(tmp_path / "nothing")
    assert os.listdir(tmp_path) == []
