"""Opens a dataset by its name: "shapes", a folder of images, or anything that `datasets` reads."""

import errno
import hashlib
import logging
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path

import datasets
import pyarrow as pa
import pyarrow.parquet as pq

from .columns import DataError, listed
from .folder import is_declared, read_folder, walk
from .shapes import shapes

EMBEDDED = "shapes"

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Source:
    """A dataset that was found.

    Attributes:
        name: as it was given.
        where: its location, for messages.
        splits: split -> its rows, without random access if it is streamed.
        files: split -> paths or URLs of its files; empty for "shapes".
    """

    name: str
    where: str
    splits: Mapping[str, datasets.Dataset | datasets.IterableDataset]
    files: Mapping[str, list[str]]


def open_source(name: str, config: str | None, resolution: int, streaming: bool = False) -> Source:
    """Finds a dataset.

    Args:
        name: "shapes", a folder, or a name on the Hub. config: its configuration, or None.
        resolution: that "shapes" is drawn at.
        streaming: read no row yet.

    Raises:
        DataError: it isn't there or can't be read.
    """
    if name == EMBEDDED:
        _refuse_config(name, config)
        return Source(name, "shapes, drawn by mtl_diffusion", shapes(resolution), {})
    with explained(name):
        root = Path(os.path.abspath(os.path.expanduser(name)))
        if root.is_dir():
            found = read_folder(root)
            if found is not None:
                _refuse_config(name, config)
                splits = found.splits
                if streaming:
                    splits = {split: rows.to_iterable_dataset() for split, rows in splits.items()}
                ignored = f", without {found.ignored}" if found.ignored else ""
                return Source(name, f"the images of {root}{ignored}", splits, found.files)
            return _open_builder(name, config, streaming, root)
        if root.is_file():
            raise DataError(f"dataset_name: {root} is a file; give the folder that it is in.")
        if name.startswith((".", "/", "~")):
            raise DataError(f"dataset_name: there is no {name!r} here; check the path.")
        if "/" not in name and (near := get_close_matches(name.lower(), [EMBEDDED], cutoff=0.8)):
            raise DataError(f"dataset_name: there is no folder {name!r}; did you mean {near[0]}?")
        return _open_builder(name, config, streaming, None)


def _refuse_config(name: str, config: str | None) -> None:
    if config is not None:
        raise DataError(f"dataset_config_name: {name!r} has none, got {config!r}; leave it out.")


def _open_builder(name: str, config: str | None, streaming: bool, root: Path | None) -> Source:
    """Opens a folder of files other than images, or a name on the Hub, through `datasets`."""
    cache = None
    if root is not None:
        if magic := sorted(set("*?[]") & set(str(root))):
            raise DataError(
                f"dataset_name: {root} has {' '.join(magic)} in its name, which `datasets` takes"
                " for a pattern; rename it, or give a link to it."
            )
        # `datasets` compares only the time of a file, which copying keeps.
        cache = str(Path(datasets.config.HF_DATASETS_CACHE) / f"mtl_diffusion-{_state(root)}")
    builder = datasets.load_dataset_builder(str(root or name), config, cache_dir=cache)
    files = {str(split): list(names) for split, names in (builder.config.data_files or {}).items()}
    with _naming_damaged_files(builder, files):
        if streaming:
            splits = builder.as_streaming_dataset()
        else:
            builder.download_and_prepare()
            # `load_dataset` does the same, but refuses a dataset with an empty split.
            features = builder.info.features
            empty = datasets.Dataset.from_dict({key: [] for key in features}, features=features)
            splits = {
                split: builder.as_dataset(split) if info.num_examples else empty
                for split, info in builder.info.splits.items()
            }
    if root is not None:
        _warn_of_others(root, files)
    return Source(name, str(root) if root else f"{name} on the Hub", splits, files)


def _state(root: Path) -> str:
    """A digest of the names, sizes and times of the files; it changes with every write."""
    digest = hashlib.sha256()
    for path in walk(root):
        stat = path.stat()
        digest.update(repr((str(path), stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns)).encode())
    return digest.hexdigest()[:16]


def _warn_of_others(root: Path, files: Mapping[str, list[str]]) -> None:
    """Names the files that are like those of the splits and are in none of them."""
    if is_declared(root):
        return
    used = {os.path.realpath(path) for names in files.values() for path in names}
    kinds = {Path(path).suffix for path in used}
    alike = [path for path in walk(root) if path.suffix in kinds]
    if left_out := [path for path in alike if os.path.realpath(path) not in used]:
        logger.warning("dataset_name: no split of %s has %s", root, listed(left_out))


@contextmanager
def _naming_damaged_files(
    builder: datasets.DatasetBuilder, files: Mapping[str, list[str]]
) -> Iterator[None]:
    try:
        yield
    except Exception as error:
        damaged = [path for names in files.values() for path in names if not _is_whole(path)]
        if damaged:
            raise DataError(
                f"dataset_name: damaged: {listed(damaged)}: {_cause(error)}; replace or remove it."
            ) from error
        if isinstance(error, pa.ArrowInvalid | OSError):
            raise DataError(
                f"dataset_name: {_cause(error)}; the copy that was made of it may be damaged:"
                f" delete {builder.cache_dir}"
            ) from error
        raise


def _is_whole(path: str) -> bool:
    if not (path.endswith(".parquet") and os.path.isfile(path)):
        return True
    try:
        pq.read_metadata(path)
    except (pa.ArrowException, OSError):
        return False
    return True


@contextmanager
def explained(name: str) -> Iterator[None]:
    """Turns the errors of other libraries about a dataset into a DataError with the cause."""
    try:
        yield
    except DataError:
        raise
    except (datasets.exceptions.DatasetsError, OSError, ValueError, RuntimeError) as error:
        raise DataError(
            f"dataset_name: {name!r} could not be read: {_cause(error)}\nGive the name of a dataset"
            f' on the Hub, a local folder, or "{EMBEDDED}", which needs no network.'
        ) from error


def _cause(error: BaseException) -> str:
    """The cause of an error, which `datasets` wraps in one without information."""
    while isinstance(error, datasets.exceptions.DatasetGenerationError) and error.__cause__:
        error = error.__cause__
    text = str(error).strip() or type(error).__name__
    if getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT):
        text += f"; make room in {datasets.config.HF_DATASETS_CACHE}, or set HF_DATASETS_CACHE"
    return text
