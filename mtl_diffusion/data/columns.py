"""Rows of a dataset: the columns of images and labels, and the classes."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

import datasets
import torch

_LABEL_NAMES = ("label", "labels", "class", "classes", "target")
_NO_LABELS = "none"  # the value of label_column that trains without classes


class DataError(ValueError):
    """A fault of a dataset; the message begins with the field of the configuration."""


@dataclass(frozen=True)
class Rows:
    """The rows that are read of a dataset.

    Attributes:
        table: the rows.
        numbers: their numbers in `split`, for messages.
        split: the split or slices of it, as named.
        part: words for the part of `split` that they are.
    """

    table: datasets.Dataset
    numbers: Sequence[int]
    split: str
    part: str | None = None

    def name(self, place: int) -> str:
        """Words for a row."""
        return f"row {self.numbers[place]} of {self.split!r}"

    @property
    def words(self) -> str:
        return self.part or self.split


def listed(names: Iterable[Any], most: int = 5) -> str:
    """Names with commas between them; of more than `most` the first ones, and how many more."""
    names = [str(name) for name in names]
    more = f" and {len(names) - most:,} more" if len(names) > most else ""
    return ", ".join(islice(names, most)) + more


def find_image_column(features: datasets.Features, given: str | None) -> str:
    """The column named, or else the only one of type Image."""
    images = [name for name, feature in features.items() if isinstance(feature, datasets.Image)]
    return _choose("image_column", given, images, features, "of type Image")


def find_label_column(features: datasets.Features, given: str | None) -> str | None:
    """The column named, or else the one of classes, or the one with a label's name.

    Returns:
        None if there is none, or if "none" was named: the images have no classes.
    """
    classes = [key for key, feature in features.items() if _is_class_label(feature)]
    usable = [key for key, feature in features.items() if _is_usable(feature)]
    kind = "of classes, integers, booleans or strings"
    or_none = f', or "{_NO_LABELS}"'
    if given == _NO_LABELS and given not in features:
        return None
    if given is not None:
        return _choose("label_column", given, usable, features, kind, or_none)
    candidates = classes or [key for key in features if key.lower() in _LABEL_NAMES]
    if not candidates:
        return None
    if len(candidates) == 1:  # raises if it can't be used
        return _choose("label_column", candidates[0], usable, features, kind)
    return _choose("label_column", None, candidates, features, "of labels", or_none)


def _choose(
    field: str,
    given: str | None,
    fitting: list[str],
    features: datasets.Features,
    kind: str,
    or_else: str = "",
) -> str:
    columns = ", ".join(f"{name} ({_type_name(feature)})" for name, feature in features.items())
    if given is not None:
        if given not in features:
            raise DataError(
                f"{field}: there is no column {given!r}; the columns are {columns}. Name one of"
                f" them{or_else}."
            )
        if given not in fitting:
            raise DataError(f"{field}: {given!r} is not a column {kind}; there are {columns}.")
        return given
    if len(fitting) != 1:
        count = f"{len(fitting)} columns" if fitting else "no column"
        raise DataError(
            f"{field}: found {count} {kind}; the columns are {columns}. Name the one to use"
            f"{or_else}."
        )
    return fitting[0]


def _is_class_label(feature) -> bool:
    return isinstance(feature, datasets.ClassLabel)


def _is_usable(feature) -> bool:
    if not isinstance(feature, datasets.Value):
        return _is_class_label(feature)
    return "int" in feature.dtype or feature.dtype in ("string", "large_string", "bool")


def _type_name(feature) -> str:
    return feature.dtype if isinstance(feature, datasets.Value) else type(feature).__name__


def read_labels(
    splits: Mapping[str, datasets.Dataset], rows: Rows, column: str | None
) -> tuple[torch.Tensor, tuple[str, ...]]:
    """Labels (N,) int64 of the rows, and the names of the classes.

    A ClassLabel column has its names. Of other columns, the classes are the values that occur in
    any of the splits, in order; so that the splits of a dataset agree.

    Args:
        splits: all splits of the dataset. rows: those that are read.
        column: None for images without classes: the labels are -1, and there are no names.

    Raises:
        DataError: a label is missing, empty, negative or not among the names; the message names the
            row. Or two names are the same but for blanks or capitals.
    """
    if column is None:
        return torch.full((len(rows.table),), -1), ()
    feature, values = rows.table.features[column], rows.table[column][:]
    if _is_class_label(feature):
        names = tuple(feature.names)
        check_names(names, declared=True)
    else:
        seen = {value for part in splits.values() for value in part.unique(column)}
        classes = sorted(value for value in seen if _is_name(value))
        names = tuple(str(value) for value in classes)
        numbers = {value: number for number, value in enumerate(classes)}
        values = [numbers.get(value, value) for value in values]
        check_names(names)
    for place, value in enumerate(values):
        check_label(value, len(names), column, rows.name(place))
    return torch.tensor(values, dtype=torch.int64), names


def _is_name(value: str | int | None) -> bool:
    if isinstance(value, str):
        return bool(value.strip())
    return value is not None and value >= 0  # many datasets have -1 for no label


def check_label(value: int | str | None, num_classes: int, column: str, row: str) -> None:
    """Raises a DataError that names the row, unless its label is one of the classes."""
    if isinstance(value, int) and 0 <= value < num_classes:
        return
    what = f"the label {value!r} in column {column!r}, none of its {num_classes:,} classes"
    if value is None:
        what = f"no label in column {column!r}; tables in CSV read NA, null and the like as nothing"
    raise DataError(
        f"label_column: {row} has {what}. Correct it, remove the row, or set label_column to"
        f" {_NO_LABELS}."
    )


def check_names(names: Iterable[str], declared: bool = False) -> None:
    """Raises a DataError for an empty name, and for two that differ in blanks or capitals only.

    Single letters may differ in capitals, and so may names that the dataset itself declares.
    """
    known: dict[str, str] = {}
    for name in names:
        if not name.strip():
            raise DataError("label_column: a class has an empty name; give it one.")
        if declared:
            continue
        key = name.strip().casefold() if len(name.strip()) > 1 else name.strip()
        if key in known:
            raise DataError(
                f"label_column: the classes {known[key]!r} and {name!r} differ in nothing but"
                " blanks or capitals; make them one, or give them different names."
            )
        known[key] = name
