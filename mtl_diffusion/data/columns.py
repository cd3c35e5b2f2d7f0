"""Rows of a dataset: the columns of images and labels, and the classes."""

import dataclasses
import unicodedata
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import datasets
import torch

LABEL_NAMES = ("label", "labels", "class", "classes", "target", "cls")
ARRAYS = (datasets.Array2D, datasets.Array3D)
_NO_LABELS = "none"  # the value of label_column that trains without classes


class DataError(ValueError):
    """A fault of a dataset; the message begins with the field of the configuration."""


@dataclass(frozen=True)
class Columns:
    """The columns that are read of a dataset.

    Attributes:
        image, label: as `find_image_column` and `find_label_column` take them.
        mask: of images whose white is a region, or None.
        conditions: task -> column of the images that it makes ours of.
    """

    image: str | None = None
    label: str | None = None
    mask: str | None = None
    conditions: Mapping[str, str] = dataclasses.field(default_factory=dict)

    @property
    def others(self) -> set[str | None]:
        """The columns of images besides that of the images themselves."""
        return {self.mask, *self.conditions.values()}


@dataclass(frozen=True)
class Rows:
    """The rows that are read of a dataset.

    Attributes:
        table: the rows.
        numbers: their numbers in `split`, for messages.
        split: the split or slices of it, as named.
        folders: of the files that they come from; relative paths of images begin there.
        part: words for the part of `split` that they are.
        digests: of the images, if they are known; see `decode.digests_of`.
    """

    table: datasets.Dataset
    numbers: Sequence[int]
    split: str
    folders: Sequence[str] = ()
    part: str | None = None
    digests: Sequence[bytes] | None = None

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
    return ", ".join(names[:most]) + more


def find_image_column(
    features: datasets.Features,
    given: str | None,
    others: Collection[str] = (),
    field: str = "image_column",
) -> str:
    """The column named, which may hold paths of images, or else the only one of type Image.

    Args:
        others: columns of images that have another use.
        field: of the configuration, which names it.
    """
    kinds = (datasets.Image, *ARRAYS)
    images = [name for name, feature in features.items() if isinstance(feature, kinds)]
    if given is None:
        rest = [name for name in images if name not in others]
        return _choose(field, None, rest, features, "of type Image")
    paths = [name for name, feature in features.items() if _dtype(feature).endswith("string")]
    return _choose(field, given, images + paths, features, "of images or of their paths")


def find_label_column(features: datasets.Features, given: str | None) -> str | None:
    """The column named, or else the one of classes, or the one with a label's name.

    Returns:
        None if there is none, or if "none" was named: the images have no classes.
    """
    if given == _NO_LABELS and given not in features:
        return None
    classes = [key for key, feature in features.items() if _dtype(feature) == "ClassLabel"]
    kinds = ("string", "large_string", "bool", "ClassLabel")
    usable = [
        key
        for key, feature in features.items()
        if _dtype(feature) in kinds or _dtype(feature).startswith(("int", "uint"))
    ]
    candidates = classes or [key for key in features if key.lower() in LABEL_NAMES]
    if given is None and not candidates:
        return None
    if given is None and len(candidates) == 1:
        given = candidates[0]  # raises if it can't be used
    kind = "of labels" if given is None else "of classes, integers, booleans or strings"
    fitting = candidates if given is None else usable
    return _choose("label_column", given, fitting, features, kind, f', or "{_NO_LABELS}"')


def _choose(
    field: str,
    given: str | None,
    fitting: list[str],
    features: datasets.Features,
    kind: str,
    or_else: str = "",
) -> str:
    columns = ", ".join(f"{name} ({_dtype(feature)})" for name, feature in features.items())
    if given is None and len(fitting) == 1:
        return fitting[0]
    if given in fitting:
        return given
    if given in features:
        what = f"{given!r} is not a column {kind}"
    elif given is not None:
        what = f"there is no column {given!r}"
    else:
        what = f"found {len(fitting) or 'no'} columns {kind}"
    raise DataError(f"{field}: {what}; the columns are {columns}. Name the one to use{or_else}.")


def _dtype(feature: Any) -> str:
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
        name_of = {value: normal(str(value)) for value in seen if _is_name(value)}
        names = in_order(name_of.values())
        check_names(names)
        places = {name: place for place, name in enumerate(names)}
        numbers = {value: places[name] for value, name in name_of.items()}
        values = [numbers.get(value, value) for value in values]
    for place, value in enumerate(values):
        check_label(value, len(names), column, rows.name(place))
    return torch.tensor(values, dtype=torch.int64), names


def class_names(feature: datasets.ClassLabel) -> tuple[str, ...]:
    """The names that a column declares, in its order."""
    names = tuple(normal(name) for name in feature.names)
    check_names(names, declared=True)
    return names


def normal(name: str) -> str:
    """The name with each accented letter as one character, in whichever way it was written."""
    return unicodedata.normalize("NFC", name)


def in_order(names: Iterable[str]) -> tuple[str, ...]:
    """The different names in the order of the alphabet; if all are numbers, by their size."""
    names = sorted(set(names))
    if all(name.isdecimal() for name in names):
        names.sort(key=int)
    return tuple(names)


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
        what = (
            f"no label in column {column!r}; tables in CSV read NA, null and the like as nothing,"
            " and an image in no folder of a class has none"
        )
    raise DataError(
        f"label_column: {row} has {what}. Correct it, remove the row, name another split, or set"
        f" label_column to {_NO_LABELS}."
    )


def check_names(names: Iterable[str], declared: bool = False) -> None:
    """Raises a DataError for an empty name, and for two that differ in blanks or capitals only.

    Single letters may differ in capitals, and so may names that the dataset itself declares.
    """
    known: dict[str, str] = {}
    for name in names:
        key = name if declared else name.strip()
        if not name.strip():
            raise DataError("label_column: a class has an empty name; give it one.")
        if not declared and len(key) > 1:
            key = key.casefold()
        if key in known:
            raise DataError(
                f"label_column: the classes {known[key]!r} and {name!r} differ in nothing but"
                " blanks or capitals; make them one, or give them different names."
            )
        known[key] = name
