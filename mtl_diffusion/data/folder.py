"""A folder of images: which files are there, and which split and class each belongs to."""

import json
import os
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PurePath

import datasets
import pandas as pd
from datasets.packaged_modules.imagefolder.imagefolder import ImageFolder
from huggingface_hub import DatasetCard

from .columns import DataError, check_names, listed

# Folders that are splits if all their neighbours are, too; the names that `datasets` takes.
SPLITS = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("validation", "valid", "val", "dev"), "validation"),
    **dict.fromkeys(("test", "testing", "eval", "evaluation"), "test"),
}
_IMAGES = frozenset(ImageFolder.EXTENSIONS)
_CONTAINERS = frozenset((".parquet", ".arrow", ".tar", ".zip", ".h5", ".hdf5", ".lance"))
_METADATA = {
    # "NA" and "null" are names like any other.
    "metadata.csv": partial(pd.read_csv, keep_default_na=False),
    "metadata.jsonl": lambda path: pd.DataFrame(
        json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line.strip()
    ),
    "metadata.parquet": pd.read_parquet,
}


@dataclass(frozen=True)
class Folder:
    """The images of a folder.

    Attributes:
        splits: split -> its rows: columns `image` (undecoded) and, where there are classes, `label`
            (a ClassLabel), or the columns of a metadata file.
        files: split -> the files, in the order of the rows.
        ignored: counts of the files that are not images, by suffix; "" if there are none.
    """

    splits: dict[str, datasets.Dataset]
    files: dict[str, list[str]]
    ignored: str


def read_folder(root: Path) -> Folder | None:
    """Lists a folder of images, or returns None if it is a folder of something else.

    Links are followed; hidden files are skipped. Folders called train, test and the like are splits
    if there are no others beside them; else all images are the split `train`. Below a split, the
    first folder is the class: `cat/1.png` and `cat/indoors/2.png` are of the class cat. Images
    without a folder have no class. A file metadata.csv, .jsonl or .parquet lists its images
    (`file_name`, relative to itself) and their columns; then folders are not classes.

    Raises:
        DataError: the folder is ambiguous, or metadata and images differ. The message names files.
    """
    paths = list(walk(root))
    images = [path for path in paths if path.suffix.lower() in _IMAGES]
    if not images or is_declared(root):
        return None
    metadata = [path for path in paths if path.name in _METADATA]
    containers = [
        path for path in paths if path.suffix.lower() in _CONTAINERS and path not in metadata
    ]
    if containers:
        raise DataError(
            f"dataset_name: {root} holds {_count(images)} and {_count(containers)}; give a folder"
            " that holds the ones or the others."
        )
    others = Counter(
        path.suffix.lower() or path.name
        for path in paths
        if path not in metadata and path.suffix.lower() not in _IMAGES and path.name != "README.md"
    )
    ignored = ", ".join(f"{count} {kind}" for kind, count in sorted(others.items()))
    parts = _splits(root, [path.relative_to(root) for path in images])
    if metadata:
        return _with_metadata(root, parts, metadata, ignored)
    classes = {split: _classes(root / top, files) for split, (top, files) in parts.items()}
    names = sorted({name for part in classes.values() for name in part if name is not None})
    check_names(names)
    splits, files = {}, {}
    for split, (top, found) in parts.items():
        files[split] = [str(root / top / file) for file in found]
        columns = {"image": [{"bytes": None, "path": path} for path in files[split]]}
        features = {"image": datasets.Image(decode=False)}
        if names:
            columns["label"] = classes[split]
            features["label"] = datasets.ClassLabel(names=names)
        splits[split] = datasets.Dataset.from_dict(columns, datasets.Features(features))
    return Folder(splits, files, ignored)


def walk(folder: Path, above: tuple[str, ...] = ()) -> Iterator[Path]:
    """All files below a folder, sorted. Follows links; skips hidden files and folders."""
    real = os.path.realpath(folder)
    if real in above:
        raise DataError(f"dataset_name: {folder} is a link that leads back to {real}; remove it.")
    for entry in sorted(os.scandir(folder), key=lambda entry: entry.name):
        try:
            entry.name.encode()
        except UnicodeEncodeError:
            name = os.fsencode(entry.path)
            raise DataError(f"dataset_name: the name {name!r} is not UTF-8; rename it.") from None
        if entry.name.startswith((".", "__")):
            continue
        if entry.is_dir():
            yield from walk(Path(entry.path), (*above, real))
        else:
            yield Path(entry.path)


def is_declared(root: Path) -> bool:
    """Whether a README.md declares configurations of the dataset, as repositories of the Hub do."""
    card = root / "README.md"
    return card.is_file() and bool(DatasetCard.load(card).data.to_dict().get("configs"))


def _splits(root: Path, files: list[PurePath]) -> dict[str, tuple[PurePath, list[PurePath]]]:
    """Split -> its folder below the root, and its files below that."""
    top, files = _unwrapped(PurePath(), files)
    first = {file.parts[0] for file in files}
    splits = sorted(name for name in first if name.lower() in SPLITS)
    others = sorted(first - set(splits))
    if not splits:
        return {"train": (top, files)}
    if others:
        if len(splits) == 1 and all(len(file.parts) == 2 for file in files):
            return {"train": (top, files)}  # vehicles: a class may be called train
        raise DataError(
            f"dataset_name: {root / top} has {listed(splits)}, which are names of splits, beside"
            f" {listed(others)}; move the ones or the others away, or give one of them as"
            " dataset_name."
        )
    found: dict[str, tuple[PurePath, list[PurePath]]] = {}
    for name in sorted(splits, key=lambda name: list(SPLITS).index(name.lower())):
        split = SPLITS[name.lower()]
        if split in found:
            raise DataError(
                f"dataset_name: {root / top} has two folders of the split {split}, one of them"
                f" {name}; make them one."
            )
        inside = [PurePath(*file.parts[1:]) for file in files if file.parts[0] == name]
        found[split] = _unwrapped(top / name, inside)
    return found


def _unwrapped(top: PurePath, files: list[PurePath]) -> tuple[PurePath, list[PurePath]]:
    """Goes down while one folder holds all the others: it is neither a split nor a class."""
    while (
        all(len(file.parts) > 2 for file in files)
        and len({file.parts[0] for file in files}) == 1
        and files[0].parts[0].lower() not in SPLITS
    ):
        top /= files[0].parts[0]
        files = [PurePath(*file.parts[1:]) for file in files]
    return top, files


def _classes(folder: Path, files: list[PurePath]) -> list[str | None]:
    """The class of each file, None where there are no classes."""
    beside = [file.name for file in files if len(file.parts) == 1]
    if beside and len(beside) < len(files):
        inside = Counter(file.parts[0] for file in files if len(file.parts) > 1)
        names = listed(f"{name} ({count:,})" for name, count in inside.items())
        raise DataError(
            f"dataset_name: {folder} has images in folders, as classes have, {names}, and beside"
            f" them {listed(beside)}; move these into a folder, or away."
        )
    return [None if beside else file.parts[0] for file in files]


def _with_metadata(
    root: Path,
    parts: dict[str, tuple[PurePath, list[PurePath]]],
    metadata: list[Path],
    ignored: str,
) -> Folder:
    """The rows of metadata files, each of which is about the images below its own folder."""
    tables = []
    for path in metadata:
        try:
            table = _METADATA[path.name](path)
        except ValueError as error:
            raise DataError(f"dataset_name: {path} can't be read: {error}") from error
        if "file_name" not in table:
            raise DataError(
                f"dataset_name: {path} has the columns {listed(table.columns)}; it needs one called"
                " file_name, with paths relative to it."
            )
        table["image"] = [os.path.normpath(path.parent / name) for name in table.pop("file_name")]
        tables.append(table)
    rows = pd.concat(tables, ignore_index=True)
    if twice := rows["image"][rows["image"].duplicated()].tolist():
        raise DataError(f"dataset_name: {listed(metadata)} names {listed(twice)} more than once.")
    named = {path: row for row, path in enumerate(rows["image"])}
    splits, files = {}, {}
    for split, (top, found) in parts.items():
        files[split] = [os.path.normpath(root / top / file) for file in found]
        if missing := [path for path in files[split] if path not in named]:
            raise DataError(
                f"dataset_name: {listed(metadata)} names no {listed(missing)}; add a row for each,"
                " or move them away."
            )
        picked = rows.iloc[[named.pop(path) for path in files[split]]].reset_index(drop=True)
        picked["image"] = [{"bytes": None, "path": path} for path in picked["image"]]
        splits[split] = datasets.Dataset.from_pandas(picked, preserve_index=False).cast_column(
            "image", datasets.Image(decode=False)
        )
    if named:
        raise DataError(f"dataset_name: {listed(metadata)} names {listed(named)}, not there.")
    return Folder(splits, files, ignored)


def _count(paths: list[Path]) -> str:
    kinds = Counter(path.suffix.lower() for path in paths)
    return listed(f"{count:,} {kind}" for kind, count in kinds.most_common())
