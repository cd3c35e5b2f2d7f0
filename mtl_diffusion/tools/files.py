"""Atomic writes: a file or a folder is complete under its name, or it is not there.

New content is written beside its place, synced to the disk, and renamed into place.
"""

import glob
import logging
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

logger = logging.getLogger(__name__)

# Prefixes of what a killed process leaves behind: content that was being written or deleted, and
# old content that was renamed to be replaced.
_WRITING, _REPLACED = ".writing-", ".replaced-"


def write_text(path: Path, text: str) -> None:
    """Writes or replaces a UTF-8 text file.

    Raises:
        OSError: it names the file. An earlier file is unchanged.
    """
    with replaced_file(path) as temporary:
        temporary.write_bytes(text.encode())


@contextmanager
def replaced_file(target: Path) -> Iterator[Path]:
    """Yields a path in the same folder; the file written there becomes `target` at the end.

    Processes may write the same target at the same time. If the block raises, `target` is left as
    it was.

    Raises:
        OSError: the file can't be synced or renamed.
    """
    temporary = target.with_name(f"{_WRITING}{os.getpid()}-{target.name}")
    try:
        with _named(target):
            yield temporary
            _sync(temporary)
            os.replace(temporary, target)
    finally:
        _remove(temporary)


@contextmanager
def replaced_folder(target: Path) -> Iterator[Path]:
    """Yields an empty folder, which takes the place of `target` when the block ends.

    An earlier `target` is renamed aside first and deleted last. If the block raises, `target` is
    left as it was. Leftovers of an earlier attempt that was killed are removed first.

    Raises:
        OSError: a file or a folder can't be written.
    """
    temporary = target.with_name(f"{_WRITING}{target.name}")
    tidy(target.parent, glob.escape(target.name))
    temporary.mkdir(parents=True)
    try:
        with _named(target):
            yield temporary
            for path in [*temporary.rglob("*"), temporary]:
                if not path.is_symlink():
                    _sync(path)
        if os.path.lexists(target):
            os.rename(target, target.with_name(f"{_REPLACED}{target.name}"))
        os.rename(temporary, target)
        _sync(target.parent)
    finally:
        tidy(target.parent, glob.escape(target.name))


def tidy(folder: Path, pattern: str) -> None:
    """Removes what is left of interrupted writes, of the targets in `folder` that match a pattern.

    A target that was renamed aside, and has no successor, gets its name back.
    """
    for old in folder.glob(f"{_REPLACED}{pattern}"):
        target = old.with_name(old.name.removeprefix(_REPLACED))
        if not os.path.lexists(target):
            os.rename(old, target)
            logger.warning("%s is back in its place: replacing it was interrupted", target)
    for prefix in (_WRITING, _REPLACED):
        for leftover in folder.glob(f"{prefix}{pattern}"):
            _remove(leftover)


def delete(path: Path) -> None:
    """Deletes a file or a folder, atomically for other processes; an OSError is logged."""
    doomed = path.with_name(f"{_WRITING}{path.name}")
    try:
        os.rename(path, doomed)
    except OSError as error:
        logger.warning("%s could not be deleted: %s", path, error)
    else:
        _remove(doomed)


def _remove(path: Path) -> None:
    """Removes a file, a link or a folder, if it exists; an OSError is logged."""
    try:
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)
    except OSError as error:
        logger.warning("%s could not be removed: %s", path, error)


def _sync(path: Path) -> None:
    """Waits until a file, or a folder's list of names, is on the disk."""
    windows = os.name == "nt"
    if windows and path.is_dir():
        return  # Windows opens no folders
    descriptor = os.open(path, os.O_RDWR if windows else os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def _named(path: Path) -> Iterator[None]:
    """Adds the path to an OSError: that of a write or a sync has none."""
    try:
        yield
    except OSError as error:
        if error.errno is None or error.filename is not None:
            raise
        raise OSError(error.errno, os.strerror(error.errno), str(path)) from error
