"""Opens a dataset by its name: "shapes", a folder of images, or anything that `datasets` reads."""

import dataclasses
import hashlib
import logging
import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import datasets
import fsspec
import pyarrow as pa
import pyarrow.parquet as pq

from .columns import DataError, Source, listed
from .folder import TABLES, is_declared, read_folder, walk
from .shapes import shapes

EMBEDDED = "shapes"
_PARTS = 64  # of a folder of images that is streamed
_TYPED = (".parquet", ".arrow")  # files that declare the types of their columns

logger = logging.getLogger(__name__)


def open_source(config: Any, resolution: int, streaming: bool = False) -> Source:
    """Finds a dataset.

    Args:
        config: has `dataset_name`: "shapes", a folder, or a name on the Hub; `dataset_config_name`;
            and `image_column`, which is that of a table, where images lie beside it.
        resolution: that "shapes" is drawn at.
        streaming: read no row yet.

    Raises:
        DataError: it isn't there or can't be read.
    """
    name, options = config.dataset_name, config.dataset_config_name
    root = Path(os.path.abspath(os.path.expanduser(name)))
    with explained(name):
        is_folder = name != EMBEDDED and root.is_dir()
        found = read_folder(root, config.image_column) if is_folder else None
        if name != EMBEDDED and not isinstance(found, Source):
            return _open_builder(name, options, streaming, root, found)
        if options:
            raise DataError(f"dataset_config_name: {name!r} has none, got {options!r}; omit it.")
        if name == EMBEDDED:
            return Source(name, "shapes, drawn by mtl_diffusion", shapes(resolution), {})
        if not streaming:
            return found
        # In parts that can be shuffled: the images are sorted by class.
        parts = {
            split: rows.to_iterable_dataset(num_shards=min(_PARTS, len(rows)))
            for split, rows in found.splits.items()
        }
        return dataclasses.replace(found, splits=parts)


def _open_builder(
    name: str,
    options: str | None,
    streaming: bool,
    root: Path,
    tables: Mapping[str, list[str]] | None,
) -> Source:
    """Opens a folder, or those of its files that are `tables`, or a name on the Hub."""
    cache, given, where, is_folder = None, name, f"{name} on the Hub", root.is_dir()
    if is_folder:
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
    builder = datasets.load_dataset_builder(given, options, data_files=tables, cache_dir=cache)
    files = {str(split): list(names) for split, names in (builder.config.data_files or {}).items()}
    if is_folder:
        _warn_of_others(root, files)
    if streaming:
        return Source(name, where, builder.as_streaming_dataset(), files)
    try:
        builder.download_and_prepare()
        splits = builder.as_dataset()
    except Exception as error:
        damaged = [path for names in files.values() for path in names if _is_damaged(path)]
        raise DataError(
            f"dataset_name: {f'damaged: {listed(damaged)}: ' if damaged else ''}{_cause(error)};"
            " replace or remove the file if it is damaged. If it is not, check the network and the"
            f" disk; the copy that was made of it may be damaged, too: delete {builder.cache_dir}"
        ) from error
    typed = {s: [n for n in names if n.endswith(_TYPED)] for s, names in files.items()}
    typed = {s: names for s, names in typed.items() if names}
    if typed and not is_folder:  # their copies; of a dataset that is cached no file is known
        files |= builder.dl_manager.download(typed)
    return Source(name, where, splits, files)


def _warn_of_others(root: Path, files: Mapping[str, list[str]]) -> None:
    """Names the files that are like those of the splits and are in none of them."""
    used = {os.path.realpath(path) for names in files.values() for path in names}
    kinds = {Path(path).suffix for path in used}
    others = [p for p in walk(root) if p.suffix in kinds and os.path.realpath(p) not in used]
    if others and not is_declared(root):
        logger.warning("dataset_name: no split of %s has %s", root, listed(others))


def _is_damaged(file: str) -> bool:
    if file.endswith(".parquet") and os.path.isfile(file):
        try:
            pq.read_metadata(file)
        except (pa.ArrowException, OSError):
            return True
    return False


def check_declared(files: Iterable[str], column: str | None) -> None:
    """Raises a DataError if two files number the classes of a column differently.

    `datasets` would give the names of the first one to the numbers of all.
    """
    found = {file: names for file in files if (names := _declared(file, column)) is not None}
    for file, names in found.items():
        first, expected = next(iter(found.items()))
        if names != expected:
            raise DataError(
                f"label_column: the classes 0, 1, ... of {column!r} are {listed(expected, 20)} in"
                f" {first}, and {listed(names, 20)} in {file}. Write the files again with"
                " the same list of names, as align_labels_with_mapping of `datasets` does."
            )


def _declared(file: str, column: str | None) -> list[str] | None:
    """The names of the classes that a file has for a column, None without."""
    if column is None or not file.endswith(_TYPED):
        return None
    with suppress(pa.ArrowInvalid), fsspec.open(file, "rb") as opened:
        is_parquet = file.endswith(".parquet")
        schema = pq.read_schema(opened) if is_parquet else pa.ipc.open_stream(opened).schema
        return getattr(datasets.Features.from_arrow_schema(schema).get(column), "names", None)
    return None


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
    return str(error).strip() or type(error).__name__
