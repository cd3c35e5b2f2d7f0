"""Labelled images from `datasets`, decoded once, and batches of them in a keyed order."""

from __future__ import annotations

import dataclasses
import hashlib
import io
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets
import fsspec
import numpy as np
import torch
from PIL import Image, ImageOps

from .shapes import shapes

EMBEDDED = "shapes"

# Raise this when decoding changes. `datasets` keys its cache by the arguments and the name of
# `_decode_rows`, not by its code, and would go on answering with the old pixels.
_DECODING = 1
_LABEL_NAMES = ("label", "labels", "class", "classes", "target")


@dataclass(frozen=True)
class ImageDataset:
    """Every image and label of one split, in memory.

    Attributes:
        images: (N, 3, H, W) uint8, RGB.
        labels: (N,) int64, indices into `class_names`.
        class_names: one name a class.
        fingerprint: 16 hex digits of the sha256 of the pixels, labels and names. It tells data
            apart, not files: the same pixels from another folder or machine have the same one.
    """

    images: torch.Tensor
    labels: torch.Tensor
    class_names: tuple[str, ...]
    fingerprint: str

    @classmethod
    def of(
        cls, images: torch.Tensor, labels: torch.Tensor, class_names: tuple[str, ...]
    ) -> ImageDataset:
        """The dataset of these CPU tensors, with its fingerprint computed."""
        assert images.dtype == torch.uint8 and images.ndim == 4 and images.shape[1] == 3
        assert labels.dtype == torch.int64 and labels.shape == images.shape[:1]
        digest = hashlib.sha256(repr((tuple(images.shape), tuple(class_names))).encode())
        digest.update(images.contiguous().numpy())
        digest.update(labels.numpy().astype("<i8"))
        return cls(images, labels, tuple(class_names), digest.hexdigest()[:16])

    @property
    def resolution(self) -> int:
        """Side of the images in pixels."""
        return self.images.shape[-1]

    @property
    def extent(self) -> str:
        """How many images there are, for a message."""
        return f"{len(self):,}"

    def __len__(self) -> int:
        return len(self.images)

    def relabelled(self, class_names: tuple[str, ...]) -> ImageDataset:
        """The same images with labels that index into `class_names`, which has every name of ours.

        The fingerprint stays: it is of the data as it was read.
        """
        table = torch.tensor([class_names.index(name) for name in self.class_names])
        return dataclasses.replace(self, labels=table[self.labels], class_names=class_names)

    def to(self, device: str | torch.device) -> ImageDataset:
        """The same dataset with both tensors on `device`."""
        return dataclasses.replace(
            self, images=self.images.to(device), labels=self.labels.to(device)
        )


def to_unit_range(images: torch.Tensor) -> torch.Tensor:
    """uint8 pixels -> float32 in [-1, 1], of the same shape and on the same device."""
    return images.float() / 127.5 - 1


def load_images(
    dataset_name: str,
    dataset_config_name: str | None = None,
    split: str = "train",
    image_column: str | None = None,
    label_column: str | None = None,
    resolution: int = 32,
    *,
    split_field: str = "train_split",
) -> ImageDataset:
    """Load one split of a labelled image dataset, decoded to uint8.

    Every image becomes `resolution` x `resolution` RGB. Greyscale, palette and CMYK images are
    converted, transparency is composited over white, EXIF orientation is applied, and only the
    first frame is read. An image of another size is centre-cropped to a square and resized with
    Lanczos, which antialiases; an RGB image that has the size already passes bit-exactly. The
    decoding goes through `Dataset.map`, so the next run reads it from the cache of `datasets`.

    Class names are the names of a `ClassLabel` column. Integers without names are named "0" to the
    largest, and strings are sorted; both over all splits, so that the splits of a dataset agree.

    Args:
        dataset_name: "shapes" for the embedded dataset, drawn at `resolution`; else what
            `datasets.load_dataset` takes: a Hub name, a folder in the Hub's layout, or a folder
            with one folder of images a class. A folder named shapes is reached as "./shapes".
        dataset_config_name: the dataset's configuration, where it has several.
        split: a split, or slices of it: "train", "train[:90%]", "train[:90%]+test".
        image_column: None for the one column of type Image.
        label_column: None for the one ClassLabel column, else the one called label, labels, class,
            classes or target.
        resolution: side in pixels.
        split_field: what error messages call `split`: "train_split", "validation_split".

    Raises:
        ValueError: the dataset, configuration, split or a column is not there or is ambiguous,
            the split is empty, an image does not decode, or a label is not among its names. The
            last two name the row of `split`.
    """
    if resolution < 1:
        raise ValueError(f"resolution: {resolution} is not a size in pixels; give 1 or more.")
    source = _load(dataset_name, dataset_config_name, resolution)
    rows = _select(source, dataset_name, split, split_field)
    image_column = find_image_column(rows.features, image_column)
    label_column = find_label_column(rows.features, label_column)
    labels, class_names = _labels(source, rows, label_column, split)
    return ImageDataset.of(_pixels(rows, image_column, resolution, split), labels, class_names)


def load_split(source: Any, split_field: str, resolution: int, load: Callable = load_images) -> Any:
    """`load` the split that a configuration, or a script's flags, name.

    Args:
        source: has dataset_name, dataset_config_name, image_column, label_column and the field.
        split_field: the one that holds the split, such as "train_split".
        load: `load_images`, or `stream.open_stream`.
    """
    return load(
        source.dataset_name,
        source.dataset_config_name,
        split=getattr(source, split_field),
        image_column=source.image_column,
        label_column=source.label_column,
        resolution=resolution,
        split_field=split_field,
    )


def _load(name: str, config: str | None, resolution: int) -> datasets.DatasetDict:
    if name == EMBEDDED:
        if config is not None:
            raise ValueError(
                f"dataset_config_name: the embedded dataset {name!r} has no configurations, got"
                f" {config!r}; leave it out, or give ./{name} for a folder of that name."
            )
        return shapes(resolution)
    with opened(name, config) as builder:
        builder.download_and_prepare()
    # `load_dataset` does the same, but for an empty split, where it refuses the whole dataset.
    features = builder.info.features
    empty = datasets.Dataset.from_dict({column: [] for column in features}, features=features)
    return datasets.DatasetDict(
        {
            split: builder.as_dataset(split) if info.num_examples else empty
            for split, info in builder.info.splits.items()
        }
    )


@contextmanager
def opened(name: str, config: str | None) -> Iterator[datasets.DatasetBuilder]:
    """The builder of a dataset on disk or on the Hub; nothing is read of its rows yet.

    Raises:
        ValueError: the dataset can't be loaded, neither here nor in what is done inside.
    """
    if name.startswith((".", "/", "~")) and not Path(name).expanduser().exists():
        raise ValueError(f"dataset_name: there is no {name!r} here; check the path.")
    try:
        yield datasets.load_dataset_builder(str(Path(name).expanduser()), config)
    except (datasets.exceptions.DatasetsError, OSError, ValueError, RuntimeError) as error:
        cause = str(error).strip() or type(error).__name__
        raise ValueError(
            f"dataset_name: {name!r} (dataset_config_name: {config!r}) could not be loaded: {cause}"
            f'\nGive the name of a dataset on the Hub, a local folder, or "{EMBEDDED}", which needs'
            " no network."
        ) from error


def _select(
    source: datasets.DatasetDict, name: str, split: str, split_field: str
) -> datasets.Dataset:
    sizes = {key: len(rows) for key, rows in source.items()}
    there = ", ".join(f"{key} ({size} rows)" for key, size in sizes.items())
    try:
        parts = datasets.ReadInstruction.from_spec(split).to_absolute(sizes)
    except ValueError as error:
        raise ValueError(
            f"{split_field}: {split!r} is not in {name!r}, which has {there}: {error}\n"
            "A part of a split is a slice, so one split can serve for two: "
            '--train_split "train[:90%]" --validation_split "train[90%:]".'
        ) from error
    chosen = [
        source[part.splitname].select(range(part.from_, part.to))
        for part in parts
        if part.from_ < part.to
    ]
    if not chosen:
        raise ValueError(
            f"{split_field}: {split!r} of {name!r} has no rows; it has {there}."
            " Choose another split or slice."
        )
    return datasets.concatenate_datasets(chosen) if len(chosen) > 1 else chosen[0]


def find_image_column(features: datasets.Features, given: str | None) -> str:
    """The column named, or else the only one of type Image."""
    images = [name for name, feature in features.items() if isinstance(feature, datasets.Image)]
    return _choose("image_column", given, images, features, "of type Image")


def find_label_column(features: datasets.Features, given: str | None) -> str:
    """The column named, or else the one of classes, or the one with a label's name."""
    classes = [key for key, feature in features.items() if _is_class_label(feature)]
    usable = [key for key, feature in features.items() if _is_usable_label(feature)]
    if given is not None:
        return _choose("label_column", given, usable, features, "of classes, integers or strings")
    candidates = classes or [key for key in usable if key.lower() in _LABEL_NAMES]
    return _choose("label_column", None, candidates, features, "of labels")


def _choose(
    field: str, given: str | None, fitting: list[str], features: datasets.Features, kind: str
) -> str:
    columns = ", ".join(f"{name} ({_type_name(feature)})" for name, feature in features.items())
    if given is not None:
        if given not in features:
            raise ValueError(f"{field}: there is no column {given!r}; the columns are {columns}.")
        if given not in fitting:
            raise ValueError(f"{field}: {given!r} is not a column {kind}; there are {columns}.")
        return given
    if len(fitting) != 1:
        count = f"{len(fitting)} columns" if fitting else "no column"
        raise ValueError(
            f"{field}: found {count} {kind}; the columns are {columns}. Name the one to use."
        )
    return fitting[0]


def _is_class_label(feature) -> bool:
    return isinstance(feature, datasets.ClassLabel)


def _is_integer(feature) -> bool:
    return isinstance(feature, datasets.Value) and "int" in feature.dtype


def _is_string(feature) -> bool:
    return isinstance(feature, datasets.Value) and feature.dtype in ("string", "large_string")


def _is_usable_label(feature) -> bool:
    return _is_class_label(feature) or _is_integer(feature) or _is_string(feature)


def _type_name(feature) -> str:
    return feature.dtype if isinstance(feature, datasets.Value) else type(feature).__name__


def _labels(
    source: datasets.DatasetDict, rows: datasets.Dataset, column: str, split: str
) -> tuple[torch.Tensor, tuple[str, ...]]:
    feature = rows.features[column]
    values = rows[column][:]
    if _is_class_label(feature):
        names = tuple(feature.names)
    else:
        seen = {value for part in source.values() for value in part.unique(column)} - {None}
        if _is_string(feature):
            names = tuple(sorted(seen))
            numbers = {name: number for number, name in enumerate(names)}
            values = [numbers.get(value) for value in values]
        else:
            names = tuple(str(number) for number in range(max(seen, default=-1) + 1))
    for row, value in enumerate(values):
        check_label(value, len(names), column, f"row {row} of {split!r}")
    return torch.tensor(values, dtype=torch.int64), names


def check_label(value: int | None, num_classes: int, column: str, row: str) -> None:
    """Raises a ValueError that names the row, unless its label is one of the classes."""
    if value is None or not 0 <= value < num_classes:
        raise ValueError(
            f"label_column: {row} has the label {value} in column {column!r},"
            f" which is none of its {num_classes} classes; remove the row or correct its label."
        )


def _pixels(rows: datasets.Dataset, column: str, resolution: int, split: str) -> torch.Tensor:
    """The images of `column` as (N, 3, H, W) uint8."""
    # Undecoded, because a row that fails to decode inside `datasets` cannot be named.
    encoded = rows.select_columns([column]).cast_column(column, datasets.Image(decode=False))
    decoded = encoded.map(
        _decode_rows,
        batched=True,
        batch_size=256,
        with_indices=True,
        remove_columns=[column],
        features=datasets.Features(pixels=datasets.Value("binary")),
        fn_kwargs={
            "column": column,
            "resolution": resolution,
            "split": split,
            "decoding": _DECODING,
        },
        desc=f"Decoding {split}",
    )
    images = torch.empty(len(rows), 3, resolution, resolution, dtype=torch.uint8)
    start = 0
    for part in decoded.iter(batch_size=1024):
        flat = np.frombuffer(b"".join(part["pixels"]), np.uint8).copy()
        part = torch.from_numpy(flat).view(-1, resolution, resolution, 3)
        images[start : start + len(part)] = part.permute(0, 3, 1, 2)
        start += len(part)
    return images


def _decode_rows(
    batch: dict, indices: list[int], column: str, resolution: int, split: str, decoding: int
) -> dict:
    rows = zip(indices, batch[column], strict=True)
    return {
        "pixels": [
            decode_image(encoded, resolution, f"row {row} of {split!r}").tobytes()
            for row, encoded in rows
        ]
    }


def decode_image(encoded: dict | None, resolution: int, row: str) -> Image.Image:
    """`{"bytes", "path"}` as `datasets` stores an image -> a square RGB image of `resolution`.

    Raises:
        ValueError: it does not decode; the message names the row.
    """
    try:
        return _fit(_decode(encoded), resolution)
    except Exception as error:  # Pillow's decoders raise OSError, SyntaxError, struct.error, ...
        path = encoded and encoded["path"]
        file = f" ({path})" if path else ""
        raise ValueError(
            f"image_column: {row}{file} does not decode as an image: {error};"
            " remove the row or replace the file."
        ) from error


def _decode(encoded: dict | None) -> Image.Image:
    """An upright RGB image."""
    if encoded is None:
        raise ValueError("the row is empty")
    data = encoded["bytes"]
    if data is None:
        with fsspec.open(encoded["path"], "rb") as file:
            data = file.read()
    with Image.open(io.BytesIO(data)) as image:
        image = ImageOps.exif_transpose(image)
        if image.mode == "F":
            raise ValueError("its pixels are floating point numbers, whose range is not known")
        if image.mode.startswith("I"):  # 16-bit greyscale, which `convert` would clip at 255
            grey = np.asarray(image).clip(0, 65535).astype(np.uint16) >> 8
            return Image.fromarray(grey.astype(np.uint8)).convert("RGB")
        if image.has_transparency_data:
            image = image.convert("RGBA")
            white = Image.new("RGBA", image.size, "white")
            return Image.alpha_composite(white, image).convert("RGB")
        return image.convert("RGB")


def _fit(image: Image.Image, resolution: int) -> Image.Image:
    side = min(image.size)
    left, top = (image.width - side) // 2, (image.height - side) // 2
    image = image.crop((left, top, left + side, top + side))
    if side == resolution:
        return image
    return image.resize((resolution, resolution), Image.Resampling.LANCZOS)
