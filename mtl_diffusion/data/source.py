"""Opens a dataset by its name: "shapes", a folder of images, or anything that `datasets` reads."""

import dataclasses
import glob
import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import chain
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.parquet as pq

from .columns import DataError, Source, listed
from .folder import read_folder, walk
from .shapes import shapes

EMBEDDED = "shapes"
# Tables -> the module of `datasets` that reads them; in CSV "NA" and "null" are names like others.
_TABLES = {".parquet": ("parquet", {}), ".csv": ("csv", {"keep_default_na": False})}
_TABLES |= {".jsonl": ("json", {})}
_PARTS = 64  # of a folder of images that is streamed


def open_source(config: Any, resolution: int = 16, streaming: bool = False) -> Source:
    """Finds a dataset.

    Args:
        config: has `dataset_name`: "shapes", a folder, or a name on the Hub; `dataset_config_name`;
            `image_column`, which is that of a table, where images lie beside it; `label_column`.
        resolution: that "shapes" is drawn at.
        streaming: read no row yet.

    Raises:
        DataError: it isn't there or can't be read.
    """
    name, options = config.dataset_name, config.dataset_config_name
    root = Path(os.path.abspath(os.path.expanduser(name)))
    is_folder = name != EMBEDDED and root.is_dir()
    with explained(name):
        found = read_folder(root, config.image_column) if is_folder else None
        if options and (name == EMBEDDED or found):
            raise DataError(f"dataset_config_name: {name!r} has none, got {options!r}; omit it.")
        if name == EMBEDDED:
            return Source(name, "shapes, drawn by mtl_diffusion", shapes(resolution), {})
        if isinstance(found, Source):
            return found if not streaming else _in_parts(found)
        if not is_folder:
            builder = datasets.load_dataset_builder(name, options)
            return _built(builder, config, f"{name} on the Hub", streaming)
        # `datasets` compares only the time of a file, which copying keeps.
        stats = [(str(path), path.stat()) for path in walk(root)]
        state = repr([(p, s.st_size, s.st_mtime_ns, s.st_ctime_ns) for p, s in stats])
        digest = hashlib.sha256(state.encode()).hexdigest()[:16]
        given = {"cache_dir": f"{datasets.config.HF_DATASETS_CACHE}/mtl_diffusion-{digest}"}
        kind = str(root)
        if found:
            suffix = Path(next(iter(found.values()))[0]).suffix.lower()
            kind, more = _TABLES[suffix]
            escaped = {split: list(map(glob.escape, files)) for split, files in found.items()}
            given |= {"data_files": escaped, **more}
        builder = datasets.load_dataset_builder(kind, options, **given)
        return _built(builder, config, str(root), streaming)


def _in_parts(source: Source) -> Source:
    """A folder of images as a stream, in parts that can be shuffled: they are sorted by class."""
    parts = {
        split: rows.to_iterable_dataset(num_shards=min(_PARTS, len(rows)))
        for split, rows in source.splits.items()
    }
    return dataclasses.replace(source, splits=parts)


def _built(builder: datasets.DatasetBuilder, config: Any, where: str, streaming: bool) -> Source:
    name = config.dataset_name
    files = {str(split): list(names) for split, names in (builder.config.data_files or {}).items()}
    source = Source(name, where, {}, files)
    _check_declared(source, config.label_column)
    if streaming:
        return dataclasses.replace(source, splits=builder.as_streaming_dataset())
    builder.download_and_prepare()
    sizes = {split: info.num_examples for split, info in builder.info.splits.items()}
    if empty := [split for split, size in sizes.items() if not size]:
        raise DataError(
            f"dataset_name: {name!r} has no rows in the split {listed(empty)}; remove the files of"
            " that split, or add rows to them."
        )
    try:
        return dataclasses.replace(source, splits=builder.as_dataset())
    except Exception as error:
        raise DataError(
            f"dataset_name: the copy that was made of {name!r} can't be read: {error}; delete"
            f" {builder.cache_dir}"
        ) from error


def _check_declared(source: Source, given: str | None) -> None:
    """Reads what the parquet files on this machine declare.

    Args:
        given: the label_column. None: it may be any.

    Raises:
        DataError: a file is damaged, or two of them number the classes of a column differently:
            `datasets` would give the names of the first one to the numbers of all.
    """
    first: dict[str, tuple[str, list[str]]] = {}
    for file in chain(*source.files.values()):
        if not (file.endswith(".parquet") and os.path.isfile(file)):
            continue
        try:
            features = datasets.Features.from_arrow_schema(pq.read_schema(file))
        except (pa.ArrowException, OSError) as error:
            raise DataError(
                f"dataset_name: damaged: {file}: {error}; replace or remove it."
            ) from error
        for column in [given] if given else features:
            names = getattr(features.get(column), "names", None)
            if names is None:
                continue
            other, known = first.setdefault(column, (file, names))
            if names != known:
                raise DataError(
                    f"label_column: the classes 0, 1, ... of {column!r} are {listed(known, 20)} in"
                    f" {other}, and {listed(names, 20)} in {file}. Write the files again with"
                    " the same list of names, as align_labels_with_mapping of `datasets` does."
                )


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
    if isinstance(error, UnicodeEncodeError):
        return f"the name {os.fsencode(error.object)!r} is not UTF-8; rename it"
    return str(error).strip() or type(error).__name__
