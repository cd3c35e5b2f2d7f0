"""A folder of images: which files are there, and which split and class each belongs to."""

import json
import logging
import os
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PurePath

import datasets
import pandas as pd
from datasets.packaged_modules.imagefolder.imagefolder import ImageFolder
from huggingface_hub import DatasetCard

from .columns import LABEL_NAMES, DataError, check_names, in_order, listed, normal

logger = logging.getLogger(__name__)

# Folders that are splits if all their neighbours are, too; the names that `datasets` takes.
SPLITS = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("validation", "valid", "val", "dev"), "validation"),
    **dict.fromkeys(("test", "testing", "eval", "evaluation"), "test"),
}
# Tables that may name the images beside them -> the module of `datasets` that reads them.
TABLES = {".parquet": "parquet", ".csv": "csv", ".jsonl": "json"}
_IMAGES = frozenset((*ImageFolder.EXTENSIONS, ".npy"))
_OTHER_DATA = frozenset((".arrow", ".tar", ".tgz", ".h5", ".hdf5", ".lance"))
_METADATA = {
    # "NA" and "null" are names like any other.
    "metadata.csv": partial(pd.read_csv, keep_default_na=False),
    "metadata.jsonl": lambda path: pd.DataFrame(
        json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line.strip()
    ),
    "metadata.parquet": pd.read_parquet,
}

# Split -> its folder below the root, and its files below that.
_Parts = Mapping[str, tuple[PurePath, list[PurePath]]]


@dataclass(frozen=True)
class Folder:
    """The images of a folder.

    Attributes:
        splits: split -> its rows: columns `image` (undecoded) and, where there are classes, `label`
            (a ClassLabel), or the columns of a metadata file.
        files: split -> the files, in the order of the rows.
        ignored: the files and folders that are not read, in words; "" if there are none.
    """

    splits: dict[str, datasets.Dataset]
    files: dict[str, list[str]]
    ignored: str


def read_folder(
    root: Path, image_column: str | None = None
) -> Folder | dict[str, list[str]] | None:
    """Lists a folder of images.

    Links are followed; hidden files are skipped. Folders called train, test and the like are splits
    if there are no others beside them; else all images are the split `train`. Below a split, the
    first folder is the class: `cat/1.png` and `cat/indoors/2.png` are of the class cat. Images
    without a folder have no class. A file metadata.csv, .jsonl or .parquet lists its images
    (`file_name`, relative to itself) and their columns; then folders are not classes.

    Returns:
        None if it is a folder of something else. If tables beside the images name them, which are
        those of parquet and those with a column `image_column`, the tables of each split.

    Raises:
        DataError: the folder is ambiguous, or metadata and images differ. The message names files.
    """
    if is_declared(root):
        return None
    kinds: dict[str, list[Path]] = {}
    for path in walk(root):
        kinds.setdefault(_kind(path, image_column), []).append(path)
    if packed := kinds.get("zip"):
        into = (f" into a folder {p.stem}" * (p.stem.lower() in SPLITS) for p in packed)
        what = listed(f"{path.name}{place}" for path, place in zip(packed, into, strict=True))
        raise DataError(
            f"dataset_name: {root} has archives, which are not read; unpack {what}, and move them"
            " away."
        )
    if "image" not in kinds:
        return None
    if "data" in kinds:
        held = (Counter(path.suffix.lower() for path in kinds[kind]) for kind in ("image", "data"))
        counts = (listed(f"{n:,} {suffix}" for suffix, n in part.most_common()) for part in held)
        raise DataError(
            f"dataset_name: {root} holds {' and '.join(counts)}; give a folder that holds the ones"
            " or the others."
        )
    if "table" in kinds:
        return _tables(kinds["table"])
    parts = _splits(root, [path.relative_to(root) for path in kinds["image"]])
    others = Counter(path.suffix.lower() or path.name for path in kinds.get("other", ()))
    ignored = [f"{count} {kind}" for kind, count in sorted(others.items())]
    if "metadata" in kinds:
        splits = _with_metadata(root, parts, kinds["metadata"])
    else:
        splits = _with_classes(root, parts)
        for top, found in parts.values():  # the folders without an image beside those of classes
            classes = {file.parts[0] for file in found if len(file.parts) > 1}
            folders = {entry.name for entry in os.scandir(root / top) if entry.is_dir()}
            empty = sorted(folders - classes) if classes else []
            ignored += [f"images in {top / name}" for name in empty if name[0] not in "._"]
    files = {split: [row["path"] for row in rows["image"][:]] for split, rows in splits.items()}
    return Folder(splits, files, ", ".join(ignored))


def _kind(path: Path, image_column: str | None) -> str:
    """What a file is taken for."""
    suffix = path.suffix.lower()
    if path.name in _METADATA:
        return "metadata"
    if suffix in _IMAGES:
        return "image"
    if suffix in (".csv", ".jsonl") and image_column is not None:
        with path.open("rb") as file:
            first = file.readline()
        if re.search(rb"\b%b\b" % re.escape(image_column.encode()), first):
            return "table"
    if suffix in _OTHER_DATA:
        return "data"
    if path.name == "README.md":
        return "card"
    return {".parquet": "table", ".zip": "zip"}.get(suffix, "other")


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


def _tables(paths: Sequence[Path]) -> dict[str, list[str]]:
    """Split -> its tables. The name of a file, or of its folder, may begin with that of a split."""
    if len({path.suffix.lower() for path in paths}) > 1:
        raise DataError(f"dataset_name: {listed(paths)} are tables of different kinds; keep one.")
    splits: dict[str, list[str]] = {}
    for path in paths:
        words = (re.split(r"[-_. ]", name)[0].lower() for name in (path.name, path.parent.name))
        split = next((SPLITS[word] for word in words if word in SPLITS), "train")
        splits.setdefault(split, []).append(str(path))
    return splits


def _splits(root: Path, files: list[PurePath]) -> _Parts:
    top, files = _unwrapped(PurePath(), files)
    first = sorted({file.parts[0] for file in files})
    splits = [name for name in first if name.lower() in SPLITS]
    others = [name for name in first if name not in splits]
    # vehicles: a class may be called train
    is_class = len(splits) == 1 and others and all(len(file.parts) == 2 for file in files)
    if not splits or is_class:
        return {"train": (top, files)}
    if others:
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
        inside = [file.relative_to(name) for file in files if file.parts[0] == name]
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


def _with_classes(root: Path, parts: _Parts) -> dict[str, datasets.Dataset]:
    """The rows of each split, whose classes are the first folders."""
    classes: dict[str, list[str | None]] = {}
    for split, (top, files) in parts.items():
        inside = Counter(normal(file.parts[0]) for file in files if len(file.parts) > 1)
        beside = [file.name for file in files if len(file.parts) == 1]
        if beside and inside:
            names = listed(f"{name} ({count:,})" for name, count in inside.items())
            raise DataError(
                f"dataset_name: {root / top} has images in folders, as classes have, {names}, and"
                f" beside them {listed(beside)}; move these into a folder, or away."
            )
        classes[split] = [normal(file.parts[0]) if inside else None for file in files]
    names = in_order(name for part in classes.values() for name in part if name is not None)
    check_names(names)
    splits = {}
    for split, (top, files) in parts.items():
        columns = {"image": [{"bytes": None, "path": str(root / top / file)} for file in files]}
        features = {"image": datasets.Image(decode=False)}
        if names:
            columns["label"] = classes[split]
            features["label"] = datasets.ClassLabel(names=list(names))
        splits[split] = datasets.Dataset.from_dict(columns, datasets.Features(features))
    return splits


def _with_metadata(
    root: Path, parts: _Parts, metadata: Sequence[Path]
) -> dict[str, datasets.Dataset]:
    """The rows of each split, from metadata files about the images below their folders."""
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
    folders = {file.parts[0] for _, files in parts.values() for file in files if file.parts[1:]}
    if len(folders) > 1 and not any(name.lower() in LABEL_NAMES for name in rows):
        logger.warning(
            "label_column: %s has no column called label; unless another one is named, there are no"
            " classes: beside metadata, the folders %s are not read as such",
            listed(metadata),
            listed(sorted(folders)),
        )
    rows = rows.set_index("image", drop=False)
    splits, left = {}, set(rows.index)
    for split, (top, files) in parts.items():
        paths = [os.path.normpath(root / top / file) for file in files]
        if missing := [path for path in paths if path not in left]:
            raise DataError(
                f"dataset_name: {listed(metadata)} names no {listed(missing)}; add a row for each,"
                " or move them away."
            )
        left -= set(paths)
        picked = rows.loc[paths].reset_index(drop=True)
        picked["image"] = [{"bytes": None, "path": path} for path in paths]
        splits[split] = datasets.Dataset.from_pandas(picked, preserve_index=False).cast_column(
            "image", datasets.Image(decode=False)
        )
    if left:
        raise DataError(
            f"dataset_name: {listed(metadata)} names {listed(sorted(left))}, not there."
        )
    return splits
