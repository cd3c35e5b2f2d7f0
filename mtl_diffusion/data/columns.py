"""Rows of a dataset: where they are from, the columns of images and labels, and the classes."""

import os
import unicodedata
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from numbers import Integral
from typing import Any

import datasets
import torch

LABEL_NAMES = ("label", "labels", "class", "classes", "target", "cls")
ARRAYS = (datasets.Array2D, datasets.Array3D)
FILE_NAME = "file_name"  # the column of a metadata file with the paths of images
_NO_LABELS = "none"  # the value of label_column that trains without classes


class DataError(ValueError):
    """A fault of a dataset; the message begins with the field of the configuration."""


@dataclass(frozen=True)
class Source:
    """A dataset that was found.

    Attributes:
        name: as it was given. where: its location, for messages.
        splits: split -> its rows, without random access if it is streamed.
        files: split -> paths or URLs of its files; empty for the embedded dataset.
    """

    name: str
    where: str
    splits: Mapping[str, datasets.Dataset | datasets.IterableDataset]
    files: Mapping[str, Sequence[str]]

    def folders(self, split: str) -> tuple[str, ...]:
        """The folders of the files of a split: relative paths of images begin there."""
        return tuple(dict.fromkeys(map(os.path.dirname, self.files.get(split, ()))))


@dataclass(frozen=True)
class Rows:
    """The rows that are read of a dataset.

    Attributes:
        table: the rows. numbers: their numbers in `split`, for messages.
        split: the split or slices of it, as named. words: for the part of it that they are.
        folders: relative paths of images begin there.
    """

    table: datasets.Dataset
    numbers: Sequence[int]
    split: str
    words: str
    folders: Sequence[str] = ()

    def name(self, place: int) -> str:
        """Words for a row."""
        return f"row {self.numbers[place]} of {self.split!r}"


def listed(names: Iterable[Any], most: int = 5) -> str:
    """Names with commas between them; of more than `most` the first ones, and how many more."""
    names = [str(name) for name in names]
    more = f" and {len(names) - most:,} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


def find_image_column(
    features: datasets.Features,
    given: str | None,
    others: Collection[str | None] = (),
    field: str = "image_column",
) -> str:
    """The column named, which may hold paths of images, or else the only one of images, or else
    `file_name`, which metadata has.

    Args:
        others: columns of images that have another use.
        field: of the configuration, which names it.
    """
    kinds = (datasets.Image, *ARRAYS)
    images = [name for name, feature in features.items() if isinstance(feature, kinds)]
    if given is None:
        images = [name for name in images if name not in others]
        images = images or [name for name in features if name == FILE_NAME]
        return _choose(field, None, images, features, "of type Image")
    paths = [name for name, feature in features.items() if _type(feature).endswith("string")]
    return _choose(field, given, images + paths, features, "of images or of their paths")


def find_label_column(features: datasets.Features, given: str | None) -> str | None:
    """The column named, or else the one of classes, or the one with a label's name.

    Returns:
        None if there is none, or if "none" was named: the images have no classes.
    """
    if given == _NO_LABELS and given not in features:
        return None
    if given is None:
        classes = [name for name, feature in features.items() if _type(feature) == "ClassLabel"]
        found = classes or [name for name in features if name.lower() in LABEL_NAMES]
        if not found:
            return None
        given = _choose("label_column", None, found, features, "of labels")
    kinds = ("string", "large_string", "bool", "ClassLabel", "int", "uint")
    usable = [name for name, feature in features.items() if _type(feature).startswith(kinds)]
    words = "of classes, integers, booleans or strings"
    return _choose("label_column", given, usable, features, words)


def _choose(
    field: str, given: str | None, fitting: list[str], features: datasets.Features, kind: str
) -> str:
    """The column that was given, or else the only one that fits."""
    if given in fitting or (given is None and len(fitting) == 1):
        return given or fitting[0]
    what = f"found {len(fitting) or 'no'} columns {kind}"
    if given is not None:
        what = f"there is no column {given!r}"
    if given in features:
        what = f"{given!r} is not a column {kind}"
    columns = ", ".join(f"{name} ({_type(feature)})" for name, feature in features.items())
    or_else = f', or "{_NO_LABELS}"' if field == "label_column" else ""
    raise DataError(f"{field}: {what}; the columns are {columns}. Name the one to use{or_else}.")


def _type(feature: Any) -> str:
    return feature.dtype if isinstance(feature, datasets.Value) else type(feature).__name__


def read_labels(
    splits: Mapping[str, datasets.Dataset], rows: Rows, column: str | None
) -> tuple[torch.Tensor, tuple[str, ...]]:
    """Labels (N,) int64 of the rows, and the names of the classes; without a column -1 and ().

    A ClassLabel column has its names. Of other columns, the classes are the values that occur in
    any of the splits of the dataset, in order; so that the splits agree.

    Raises:
        DataError: a label is missing, empty, negative or not among the names; the message names the
            row. Or two names are the same but for blanks or capitals.
    """
    if column is None:
        return torch.full((len(rows.table),), -1), ()
    feature, values = rows.table.features[column], rows.table[column][:]
    if isinstance(feature, datasets.ClassLabel):
        names = class_names(feature)
    else:
        seen = {value for part in splits.values() for value in part.unique(column)}
        # Many datasets have -1 for no label.
        seen = {v for v in seen if (v.strip() if isinstance(v, str) else v is not None and v >= 0)}
        names = in_order(normal(str(value)) for value in seen)
        numbers = {value: names.index(normal(str(value))) for value in seen}
        values = [numbers.get(value, value) for value in values]
    for place, value in enumerate(values):
        check_label(value, len(names), column, rows.name(place))
    return torch.tensor(values, dtype=torch.int64), names


def class_names(feature: datasets.ClassLabel) -> tuple[str, ...]:
    """The names that a column declares, in its order."""
    if not all(name.strip() for name in feature.names):
        raise DataError("label_column: a class has an empty name; give it one.")
    return tuple(map(normal, feature.names))


def normal(name: str) -> str:
    """The name with each accented letter as one character, in whichever way it was written."""
    return unicodedata.normalize("NFC", name)


def in_order(names: Iterable[str]) -> tuple[str, ...]:
    """The different names in the order of the alphabet; if all are numbers, by their size.

    Raises:
        DataError: two differ in blanks or capitals only. Single letters may differ in capitals.
    """
    names = sorted(set(names))
    known: dict[str, str] = {}
    for name in names:
        key = name.strip()
        other = known.setdefault(key.casefold() if len(key) > 1 else key, name)
        if other != name:
            raise DataError(
                f"label_column: the classes {other!r} and {name!r} differ in nothing but blanks or"
                " capitals; make them one, or give them different names."
            )
    return tuple(sorted(names, key=int) if all(map(str.isdecimal, names)) else names)


def check_label(value: int | str | None, num_classes: int, column: str, row: str) -> None:
    """Raises a DataError that names the row, unless its label is one of the classes."""
    if isinstance(value, Integral) and 0 <= value < num_classes:
        return
    what = f"the label {value!r} in column {column!r}, none of its {num_classes:,} classes"
    if value is None:
        what = f"no label in column {column!r}; an image in no folder of a class has none"
    raise DataError(
        f"label_column: {row} has {what}. Correct it, remove the row, name another split, or set"
        f" label_column to {_NO_LABELS}."
    )
