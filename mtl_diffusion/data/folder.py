"""A folder of images: which files are there, and which split and class each belongs to."""

import os
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path, PurePath

import datasets
import pandas as pd
from datasets.packaged_modules.imagefolder.imagefolder import ImageFolder
from huggingface_hub import DatasetCard

from .columns import DataError, Source, in_order, listed, normal

# Folders that are splits if all their neighbours are, too; the names that `datasets` takes.
SPLITS = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("validation", "valid", "val", "dev"), "validation"),
    **dict.fromkeys(("test", "testing", "eval", "evaluation"), "test"),
}
# Tables that may name the images beside them -> the module of `datasets` that reads them.
TABLES = {".parquet": "parquet", ".csv": "csv", ".jsonl": "json"}
_KINDS = {
    **dict.fromkeys((*ImageFolder.EXTENSIONS, ".npy"), "image"),
    **dict.fromkeys((".arrow", ".tar", ".tgz", ".h5", ".hdf5", ".lance"), "data"),
    **{".parquet": "table", ".zip": "zip"},
}
_METADATA = {
    # "NA" and "null" are names like any other.
    "metadata.csv": partial(pd.read_csv, keep_default_na=False),
    "metadata.jsonl": partial(pd.read_json, lines=True, dtype=False),
    "metadata.parquet": pd.read_parquet,
}

# Split -> its folder below the root, and its files below that.
_Parts = Mapping[str, tuple[PurePath, list[PurePath]]]


def read_folder(
    root: Path, image_column: str | None = None
) -> Source | dict[str, list[str]] | None:
    """Lists a folder of images.

    Links are followed; hidden files are skipped. Folders called train, test and the like are splits
    if there are no others beside them; else all images are the split `train`. Below a split, the
    first folder is the class: `cat/1.png` and `cat/indoors/2.png` are of the class cat. Images
    without a folder have no class. A file metadata.csv, .jsonl or .parquet lists its images
    (`file_name`, relative to itself) and their columns; then folders are not classes.

    Returns:
        The dataset: its columns are `image` (undecoded) and, where there are classes, `label` (a
        ClassLabel), or those of the metadata; its files are in the order of the rows. If tables
        beside the images name them, which are those of parquet and those with a column
        `image_column`, the tables of each split. None if it is a folder of something else.

    Raises:
        DataError: the folder is ambiguous, or metadata and images differ. The message names files.
    """
    if is_declared(root):
        return None
    kinds: dict[str, list[Path]] = {}
    for path in walk(root):
        kinds.setdefault(_kind(path, image_column), []).append(path)
    if "zip" in kinds:
        raise DataError(
            f"dataset_name: {root} has archives, which are not read: unpack {listed(kinds['zip'])}"
            " into folders, and move them away."
        )
    if "image" not in kinds:
        return None
    if "data" in kinds:
        raise DataError(
            f"dataset_name: {root} has {len(kinds['image']):,} images beside other data,"
            f" {listed(kinds['data'])}; give a folder that holds the ones or the others."
        )
    if "table" in kinds:
        return _tables(kinds["table"])
    parts = _splits(root, [path.relative_to(root) for path in kinds["image"]])
    if "metadata" in kinds:
        splits = _with_metadata(root, parts, kinds["metadata"])
    else:
        splits = _with_classes(root, parts)
    files = {split: [row["path"] for row in rows["image"][:]] for split, rows in splits.items()}
    others = Counter(path.suffix.lower() or path.name for path in kinds.get("other", ()))
    ignored = ", ".join(f"{count} {kind}" for kind, count in sorted(others.items()))
    where = f"the images of {root}{f', without {ignored}' if ignored else ''}"
    return Source(str(root), where, splits, files)


def _kind(path: Path, image_column: str | None) -> str:
    """What a file is taken for."""
    suffix = path.suffix.lower()
    if path.name in _METADATA:
        return "metadata"
    if suffix in (".csv", ".jsonl") and image_column is not None:
        with path.open("rb") as file:
            if re.search(rb"\b%b\b" % re.escape(image_column.encode()), file.readline()):
                return "table"
    return "card" if path.name == "README.md" else _KINDS.get(suffix, "other")


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
    if others or len({SPLITS[name.lower()] for name in splits}) < len(splits):
        beside = f" beside {listed(others)}" if others else ", some of them twice"
        raise DataError(
            f"dataset_name: {root / top} has {listed(splits)}, which are names of splits{beside};"
            " move the ones or the others away, or give one of them as dataset_name."
        )
    found: dict[str, tuple[PurePath, list[PurePath]]] = {}
    for name in sorted(splits, key=lambda name: list(SPLITS).index(name.lower())):
        inside = [file.relative_to(name) for file in files if file.parts[0] == name]
        found[SPLITS[name.lower()]] = _unwrapped(top / name, inside)
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
        table.index = [os.path.normpath(path.parent / name) for name in table.pop("file_name")]
        tables.append(table)
    rows = pd.concat(tables)
    paths = {
        split: [os.path.normpath(root / top / file) for file in files]
        for split, (top, files) in parts.items()
    }
    there = {path for part in paths.values() for path in part}
    if wrong := sorted({*rows.index[rows.index.duplicated()]} | ({*rows.index} ^ there)):
        raise DataError(
            f"dataset_name: {listed(metadata)} must name each image once; missing here or there,"
            f" or named more than once: {listed(wrong)}"
        )
    splits = {}
    for split, part in paths.items():
        picked = rows.loc[part].assign(image=[{"bytes": None, "path": path} for path in part])
        splits[split] = datasets.Dataset.from_pandas(picked, preserve_index=False).cast_column(
            "image", datasets.Image(decode=False)
        )
    return splits
