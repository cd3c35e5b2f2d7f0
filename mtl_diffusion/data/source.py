"""Opens a dataset by its name: "shapes", a folder of images, or anything that `datasets` reads."""

import errno
import hashlib
import logging
import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import IO

import datasets
import fsspec
import pyarrow as pa
import pyarrow.parquet as pq

from .columns import DataError, listed
from .folder import TABLES, Folder, is_declared, read_folder, walk
from .shapes import shapes

EMBEDDED = "shapes"
_PARTS = 64  # of a folder of images that is streamed

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Source:
    """A dataset that was found.

    Attributes:
        name: as it was given. where: its location, for messages.
        splits: split -> its rows, without random access if it is streamed.
        files: split -> paths or URLs of its files; empty for "shapes".
    """

    name: str
    where: str
    splits: Mapping[str, datasets.Dataset | datasets.IterableDataset]
    files: Mapping[str, list[str]]

    def folders(self, split: str) -> tuple[str, ...]:
        """The folders of the files of a split."""
        return tuple(dict.fromkeys(os.path.dirname(file) for file in self.files.get(split, ())))

    def check_declared(self, column: str | None, files: Iterable[str] | None = None) -> None:
        """Raises a DataError if two files number the classes of a column differently.

        `datasets` would give the names of the first one to the numbers of all. `files` are compared
        with the first one; if None, all that are on this machine.
        """
        every = [file for names in self.files.values() for file in names]
        first = _declared(every[0], column) if every and column else None
        if first is None:
            return
        for file in files or filter(os.path.isfile, every):
            if (names := _declared(file, column)) not in (None, first):
                raise DataError(
                    f"label_column: the classes 0, 1, ... of {column!r} are {listed(first, 20)} in"
                    f" {every[0]}, and {listed(names, 20)} in {file}. Write the files again with"
                    " the same list of names, as align_labels_with_mapping of `datasets` does."
                )


def _declared(file: str, column: str) -> list[str] | None:
    """The names of the classes that a file of parquet or arrow has for a column, None without."""
    read_schema = _SCHEMAS.get(Path(file).suffix)
    if read_schema is None:
        return None
    with fsspec.open(file, "rb") as opened:
        features = datasets.Features.from_arrow_schema(read_schema(opened))
    return getattr(features.get(column), "names", None)


def _arrow_schema(file: IO[bytes]) -> pa.Schema:
    try:
        return pa.ipc.open_stream(file).schema
    except pa.ArrowInvalid:  # the other of the two formats
        file.seek(0)
        return pa.ipc.open_file(file).schema


_SCHEMAS = {".parquet": pq.read_schema, ".arrow": _arrow_schema}


def open_source(
    name: str,
    config: str | None,
    resolution: int,
    image_column: str | None,
    streaming: bool = False,
) -> Source:
    """Finds a dataset.

    Args:
        name: "shapes", a folder, or a name on the Hub. config: its configuration, or None.
        resolution: that "shapes" is drawn at.
        image_column: that of a table, where images lie beside it.
        streaming: read no row yet.

    Raises:
        DataError: it isn't there or can't be read.
    """
    if resolution < 1:
        raise DataError(f"resolution: {resolution} is not a size in pixels; give 1 or more.")
    root = Path(os.path.abspath(os.path.expanduser(name)))
    is_folder = name != EMBEDDED and root.is_dir()
    with explained(name):
        found = read_folder(root, image_column) if is_folder else None
        if config and (name == EMBEDDED or isinstance(found, Folder)):
            raise DataError(f"dataset_config_name: {name!r} has none, got {config!r}; omit it.")
        if name == EMBEDDED:
            return Source(name, "shapes, drawn by mtl_diffusion", shapes(resolution), {})
        if isinstance(found, Folder):
            splits = found.splits
            if streaming:  # in parts that can be shuffled: the images are sorted by class
                splits = {
                    split: rows.to_iterable_dataset(num_shards=min(_PARTS, len(rows)))
                    for split, rows in splits.items()
                }
            ignored = f", without {found.ignored}" if found.ignored else ""
            return Source(name, f"the images of {root}{ignored}", splits, found.files)
        if is_folder:
            return _open_builder(name, config, streaming, root, found)
        if root.is_file():
            raise DataError(f"dataset_name: {root} is a file; give the folder that it is in.")
        if name.startswith((".", "/", "~")):
            raise DataError(f"dataset_name: there is no {name!r} here; check the path.")
        if "/" not in name and (near := get_close_matches(name.lower(), [EMBEDDED], cutoff=0.8)):
            raise DataError(f"dataset_name: there is no folder {name!r}; did you mean {near[0]}?")
        return _open_builder(name, config, streaming)


def _open_builder(
    name: str,
    config: str | None,
    streaming: bool,
    root: Path | None = None,
    tables: Mapping[str, list[str]] | None = None,
) -> Source:
    """Opens a folder, or those of its files that are `tables`, or a name on the Hub."""
    cache, given, where = None, name, f"{name} on the Hub"
    if root is not None:
        given = where = str(root)
        if magic := sorted(set("*?[]") & set(given)):
            raise DataError(
                f"dataset_name: {root} has {' '.join(magic)} in its name, which `datasets` takes"
                " for a pattern; rename it, or give a link to it."
            )
        # `datasets` compares only the time of a file, which copying keeps.
        stats = [(str(path), path.stat()) for path in walk(root)]
        state = repr([(p, s.st_size, s.st_mtime_ns, s.st_ctime_ns) for p, s in stats])
        digest = hashlib.sha256(state.encode()).hexdigest()[:16]
        cache = os.path.join(datasets.config.HF_DATASETS_CACHE, f"mtl_diffusion-{digest}")
    if tables is not None:
        given = TABLES[Path(next(iter(tables.values()))[0]).suffix.lower()]
    builder = datasets.load_dataset_builder(given, config, data_files=tables, cache_dir=cache)
    files = {str(split): list(names) for split, names in (builder.config.data_files or {}).items()}
    if root is not None:
        _warn_of_others(root, files)
    try:
        if streaming:
            return Source(name, where, builder.as_streaming_dataset(), files)
        builder.download_and_prepare()
        # `load_dataset` does the same, but refuses a dataset with an empty split.
        features = builder.info.features
        empty = datasets.Dataset.from_dict({key: [] for key in features}, features=features)
        splits = {
            split: builder.as_dataset(split) if info.num_examples else empty
            for split, info in builder.info.splits.items()
        }
    except Exception as error:
        paths = [path for names in files.values() for path in names]
        if damaged := [path for path in paths if not _is_whole(path)]:
            raise DataError(
                f"dataset_name: damaged: {listed(damaged)}: {_cause(error)}; replace or remove it."
            ) from error
        if isinstance(error, pa.ArrowInvalid | OSError):
            raise DataError(
                f"dataset_name: {_cause(error)}; the copy that was made of it may be damaged:"
                f" delete {builder.cache_dir}"
            ) from error
        raise
    if root is None:
        for split, names in files.items():  # the copies of those that declare names of classes
            declaring = [name for name in names if Path(name).suffix in _SCHEMAS]
            copies = dict(zip(declaring, builder.dl_manager.download(declaring), strict=True))
            files[split] = [copies.get(name, name) for name in names]
    return Source(name, where, splits, files)


def _warn_of_others(root: Path, files: Mapping[str, list[str]]) -> None:
    """Names the files that are like those of the splits and are in none of them."""
    used = {os.path.realpath(path) for names in files.values() for path in names}
    kinds = {Path(path).suffix for path in used}
    others = [p for p in walk(root) if p.suffix in kinds and os.path.realpath(p) not in used]
    if others and not is_declared(root):
        logger.warning("dataset_name: no split of %s has %s", root, listed(others))


def _is_whole(path: str) -> bool:
    try:
        return not path.endswith(".parquet") or bool(pq.read_metadata(path))
    except FileNotFoundError:  # a URL
        return True
    except (pa.ArrowException, OSError):
        return False


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
