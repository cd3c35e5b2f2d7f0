"""A folder on this machine: which files are the dataset, and the split and class of each."""

import os
import re
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from itertools import takewhile
from pathlib import Path, PurePath

import datasets
from datasets.packaged_modules.imagefolder.imagefolder import ImageFolder
from huggingface_hub import DatasetCard

from .columns import DataError, Source, in_order, listed, normal

# Folders that are splits if all their neighbours are, too; the names that `datasets` takes.
SPLITS = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("validation", "valid", "val", "dev"), "validation"),
    **dict.fromkeys(("test", "testing", "eval", "evaluation"), "test"),
}
_KINDS = dict.fromkeys((*ImageFolder.EXTENSIONS, ".npy"), "image") | {".parquet": "parquet"}

# Split -> its folder below the root, and its files below that.
_Parts = Mapping[str, tuple[PurePath, list[PurePath]]]


def read_folder(
    root: Path, image_column: str | None = None
) -> Source | dict[str, list[str]] | None:
    """Lists a folder of images, or of tables that may name images.

    Tables are files of parquet, or else metadata.csv and metadata.jsonl, and with an `image_column`
    all of .csv and .jsonl. Without tables the images are the dataset. Folders called train, test
    and the like are splits if there are no others beside them; without such folders all images are
    the split `train`. Below a split, the first folder is the class: `cat/1.png` and
    `cat/indoors/2.png` are of the class cat. Images without a folder have no class. Links are
    followed; hidden files are skipped.

    Returns:
        Of images the dataset: its columns are `image` (undecoded) and, where there are classes,
        `label` (a ClassLabel); its files are in the order of the rows. Of tables the files of each
        split. None if it is a folder of something else.

    Raises:
        DataError: the folder is ambiguous; the message names files.
    """
    card = root / "README.md"
    if card.is_file() and DatasetCard.load(card).data.to_dict().get("configs"):
        return None  # it declares what its files are, as repositories of the Hub do
    kinds: dict[str, list[Path]] = defaultdict(list)
    for path in walk(root):
        kinds[_kind(path, image_column)].append(path)
    if tables := kinds["parquet"] or kinds["table"]:
        return _tables(root, tables)
    if not kinds["image"]:
        if archives := [path for path in kinds["other"] if path.suffix.lower() == ".zip"]:
            raise DataError(
                f"dataset_name: {root} has archives and no images: unpack {listed(archives)} there."
            )
        return None
    parts = _splits(root, [path.relative_to(root) for path in kinds["image"]])
    files = {
        split: [str(root / top / file) for file in part] for split, (top, part) in parts.items()
    }
    others = Counter(path.suffix.lower() or path.name for path in kinds["other"] if path != card)
    left_out = [f"{count} {kind}" for kind, count in sorted(others.items())]
    where = f"the images of {root}{', without ' if left_out else ''}{', '.join(left_out)}"
    return Source(str(root), where, _with_classes(root, parts), files)


def _kind(path: Path, image_column: str | None) -> str:
    """What a file is taken for."""
    suffix = path.suffix.lower()
    if suffix in (".csv", ".jsonl") and (image_column is not None or path.stem == "metadata"):
        return "table"
    return _KINDS.get(suffix, "other")


def walk(folder: Path, above: tuple[str, ...] = ()) -> Iterator[Path]:
    """All files below a folder, sorted. Follows links; skips hidden files and folders."""
    real = os.path.realpath(folder)
    if real in above:
        raise DataError(f"dataset_name: {folder} is a link that leads back to {real}; remove it.")
    shown = (path for path in folder.iterdir() if not path.name.startswith((".", "__")))
    for path in sorted(shown):
        if path.is_dir():
            yield from walk(path, (*above, real))
        else:
            yield path


def _tables(root: Path, paths: Sequence[Path]) -> dict[str, list[str]]:
    """Split -> its tables. The name of a file, or of a folder, may begin with that of a split."""
    if len({path.suffix.lower() for path in paths}) > 1:
        raise DataError(f"dataset_name: {listed(paths)} are tables of different kinds; keep one.")

    def split_of(path: Path) -> str | None:
        names = path.relative_to(root).parts[::-1]
        words = (re.split(r"[-_. ]", name)[0].lower() for name in names)
        return next((SPLITS[word] for word in words if word in SPLITS), None)

    rest = [path for path in paths if split_of(path) is None]
    beside = (other for path in rest for other in path.parent.iterdir() if other.is_dir())
    if rest and (others := [other for other in (*paths, *beside) if split_of(other)]):
        raise DataError(
            f"dataset_name: {listed(rest)} is of no split, and lies beside {listed(others)}; move"
            " it away, or into a folder called train or test."
        )
    splits: dict[str, list[str]] = defaultdict(list)
    for path in paths:
        splits[split_of(path) or "train"].append(str(path))
    return splits


def _splits(root: Path, files: list[PurePath]) -> _Parts:
    top, files = _unwrapped(PurePath(), files)
    first = sorted({file.parts[0] for file in files})
    splits = [name for name in first if name.lower() in SPLITS]
    others = [name for name in first if name not in splits]
    if not splits:
        return {"train": (top, files)}
    if others or len({SPLITS[name.lower()] for name in splits}) < len(splits):
        beside = f" beside {listed(others)}" if others else ", some of them twice"
        raise DataError(
            f"dataset_name: {root / top} has {listed(splits)}, which are names of splits{beside};"
            " move the ones or the others away, or give one of them as dataset_name. If they are"
            " classes, move all of them into a folder called train."
        )
    found: dict[str, tuple[PurePath, list[PurePath]]] = {}
    for name in sorted(splits, key=lambda name: list(SPLITS).index(name.lower())):
        inside = [file.relative_to(name) for file in files if file.parts[0] == name]
        found[SPLITS[name.lower()]] = _unwrapped(top / name, inside)
    return found


def _unwrapped(top: PurePath, files: list[PurePath]) -> tuple[PurePath, list[PurePath]]:
    """Goes down while one folder holds all the others: it is neither a split nor a class."""
    common = PurePath(os.path.commonpath([file.parent.parent for file in files])).parts
    wrapper = PurePath(*takewhile(lambda name: name.lower() not in SPLITS, common))
    return top / wrapper, [file.relative_to(wrapper) for file in files]


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
