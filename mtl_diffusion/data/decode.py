"""Encoded images to pixels of a format."""

import hashlib
import io
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import datasets
import fsspec
import numpy as np
import torch
from datasets.utils import tqdm
from PIL import Image, UnidentifiedImageError

from ..pipeline.format import MODES, ImageFormat
from ..pipeline.rgb import read_rgb
from .arrays import is_array, read_array, to_bytes, with_palette
from .columns import ARRAYS, DataError, Rows

FRAME = "frame"  # the layer that is 0 in padding and 1 inside the image: (N, 1, H, W) uint8
# What is known of an image: the size of its file; whether it has one colour channel, some
# transparency, or a palette; whether it had another shape, and was cropped, padded or stretched;
# its largest number, if it is grey of 16 bits, or is to be stored so; and the sha256 of its file.
_FLAGS = [(name, "?") for name in ("grey", "clear", "palette", "fitted")]
FACTS = np.dtype([("size", "i4", 2), *_FLAGS, ("peak", "i4"), ("digest", "V32")])
_BATCH = 1024  # rows that are read at a time


@dataclass(frozen=True)
class Encoded:
    """An encoded image.

    Attributes:
        data: the bytes of its file, or None if it lies at `path`; a row may have neither.
        path: path or URL, or None.
        row: words for the row, for messages; the field that names the column comes first.
    """

    data: bytes | None
    path: str | None
    row: str

    @classmethod
    def of(
        cls, stored: dict | np.ndarray | None, row: str, folders: Sequence[str] = ()
    ) -> "Encoded":
        """The image of a row, which `datasets` has as {"bytes", "path"}, or as an array.

        Args:
            folders: of the files that name the images: relative paths are relative to them.

        Raises:
            DataError: a relative path leads to images in two of the folders.
        """
        if isinstance(stored, np.ndarray):
            return cls(to_bytes(stored), None, row)
        data, path = (stored or {}).get("bytes"), (stored or {}).get("path")
        if data is None and path and folders and not (os.path.isabs(path) or "://" in path):
            paths = dict.fromkeys(os.path.join(folder, path) for folder in folders)
            there = [*filter(os.path.isfile, paths)]
            if len(there) > 1:
                raise DataError(
                    f"{row} names {path}, which is both {there[0]} and {there[1]}; give absolute"
                    " paths, or keep each table in a folder with its images."
                )
            path = next(iter(there or paths))
        return cls(data, path, row)

    def read(self) -> bytes:
        """The bytes of its file; raises a DataError that names the row if they can't be read."""
        if self.data is not None:
            return self.data
        try:
            if not self.path:
                raise ValueError("the row is empty")
            if os.path.isfile(self.path):
                return Path(self.path).read_bytes()
            with fsspec.open(self.path, "rb") as file:
                return file.read()
        except Exception as error:  # of any file system
            raise self.fault(error) from error

    def fault(self, error: Exception) -> DataError:
        """The error for an image that can't be decoded."""
        if isinstance(error, UnidentifiedImageError):
            error = ValueError("its format is not known, or its beginning is damaged")
        file = f" ({self.path})" if self.path else ""
        return DataError(
            f"{self.row}{file} does not decode as an image: {error}. Replace the file, or remove"
            " the row."
        )


class Decoded(NamedTuple):
    """n images.

    Attributes:
        pixels: (n, C, H, W) as they are stored.
        layers: the `FRAME` of each, where the format has padding.
        facts: (n,) of `FACTS`.
    """

    pixels: torch.Tensor
    layers: Mapping[str, torch.Tensor]
    facts: np.ndarray


class Decoder:
    """Decodes images on several threads, each as `decode` does.

    Args:
        images: the format that they are to have.
        threads: number of threads.
        nearest: resize without mixing pixels, as masks need it. None: only maps of labels, which
            have a palette, or are arrays of integers and get one.
    """

    def __init__(self, images: ImageFormat, threads: int, nearest: bool | None = False):
        self.images = images
        self.threads = threads
        self.nearest = nearest
        self._pool = ThreadPoolExecutor(threads)

    def __call__(self, images: Iterable[Encoded], count: int) -> Decoded:
        """Raises a DataError that names the row if one of the `count` images does not decode."""
        form = self.images
        pixels = np.empty((count, *form.shape), form.dtype)
        frames = np.empty((count if form.fit == "pad" else 0, 1, *form.size), np.uint8)
        facts = np.empty(count, FACTS)

        def fill(share: Sequence[tuple[int, Encoded]]) -> None:
            for place, image in share:
                pixels[place], frame, facts[place] = decode(image, form, self.nearest)
                if frame is not None:
                    frames[place] = frame

        numbered = enumerate(images)
        while batch := list(islice(numbered, _BATCH)):
            # Each thread has a share: a call for each image would take as long as a small image.
            list(self._pool.map(fill, (batch[i :: self.threads] for i in range(self.threads))))
        layers = {FRAME: torch.from_numpy(frames)} if len(frames) else {}
        return Decoded(torch.from_numpy(pixels), layers, facts)


def decode_rows(
    rows: Rows,
    column: str,
    form: ImageFormat,
    nearest: bool | None = False,
    field: str = "image_column",
) -> Decoded:
    """The images of `column`, which `field` of the configuration names.

    Raises:
        DataError: one can't be read or decoded, or the 16-bit images have fewer bits than that.
    """
    count, words = len(rows.table), f"Decoding {rows.words}"
    images = tqdm(encoded(rows, column, field), total=count, desc=words, unit="img")
    decoded = Decoder(form, torch.get_num_threads(), nearest)(images, count)
    check_depth(decoded.facts, form, rows.words)
    return decoded


def encoded(rows: Rows, column: str, field: str = "image_column") -> Iterator[Encoded]:
    """The images of a column, one after the other."""
    place = 0
    for batch in undecoded(rows.table.select_columns([column]), column).iter(_BATCH):
        for stored in batch[column]:
            yield Encoded.of(stored, f"{field}: {rows.name(place)}", rows.folders)
            place += 1


def undecoded(rows: Any, column: str) -> Any:
    """The rows with {"bytes", "path"} for each image, or path of one, in a column; or with arrays.

    One that failed to decode inside `datasets` could not be named.
    """
    if type(rows.features[column]) in ARRAYS:
        return rows.with_format("numpy")
    if isinstance(rows.features[column], datasets.Value):  # only short strings become images
        rows = rows.cast_column(column, datasets.Value("string"))
    return rows.cast_column(column, datasets.Image(decode=False))


def check_depth(facts: np.ndarray, form: ImageFormat, split: str) -> None:
    """Refuses 16-bit images that hold numbers of 14 bits or fewer: they would be nearly black."""
    deep = facts[facts["peak"] > 0]
    peak = deep["peak"].max(initial=0)
    if not len(deep) or peak >= 1 << 14:
        return
    bits = next(bits for bits in (8, 10, 12, 14) if peak < 1 << bits)
    mode = "image_mode to L, " if form.mode == "RGB" and deep["grey"].all() else ""
    raise DataError(
        f"image_column: the 16-bit images of {split!r} have no value above {peak:,}, of 65,535;"
        f" they seem to hold numbers of {bits} bits, and would be nearly black: set {mode}"
        f"image_dtype to uint16 and value_range to [0, {(1 << bits) - 1}]."
    )


def decode(
    encoded: Encoded, form: ImageFormat, nearest: bool | None = False
) -> tuple[np.ndarray, np.ndarray | None, np.ndarray]:
    """An image (C, H, W) as it is stored; its frame, if it may be padded; and facts.

    The first frame is read, as `read_rgb` does, or as `read_array` where that is needed. One that
    has the size passes bit-exactly.

    Raises:
        DataError: it does not decode; the message names the row.
    """
    data = encoded.read()
    try:
        if nearest is None and (form.mode, form.dtype) in (("RGB", "uint8"), ("RGBA", "uint8")):
            data = with_palette(data)
        image, facts = read(data, form)
    except Exception as error:  # Pillow's decoders raise OSError, SyntaxError, struct.error, ...
        raise encoded.fault(error) from error
    nearest = bool(facts["palette"]) if nearest is None else nearest
    image, frame, facts["fitted"] = fit(image, form, nearest)
    facts["digest"] = hashlib.sha256(data).digest()
    return image.transpose(2, 0, 1), frame, facts


def read(data: bytes, form: ImageFormat) -> tuple[np.ndarray, np.ndarray]:
    """An image (H, W, C) in its own size, of the format's channels and dtype; and its facts.

    Raises:
        Exception: of any kind, if it does not decode.
    """
    facts = np.zeros((), FACTS)
    if form.dtype != "uint8" or form.mode not in MODES or is_array(data):
        pixels = read_array(data, form)
        facts["grey"] = form.mode == "L"
        if (form.dtype, form.value_range) == ("uint16", None):
            facts["peak"] = pixels.max()
    else:
        image = Image.open(io.BytesIO(data))
        image.load()
        deep = image.mode.startswith("I")
        facts["grey"] = deep or image.mode in ("1", "L", "LA", "F")
        facts["clear"] = image.has_transparency_data
        facts["palette"] = image.mode == "P"
        facts["peak"] = np.asarray(image).max() if deep else 0
        rgb = read_rgb(image, alpha=form.mode == "RGBA")
        pixels = np.atleast_3d(np.asarray(rgb.convert("L") if form.mode == "L" else rgb))
    facts["size"] = pixels.shape[:2]
    return pixels, facts


def fit(
    image: np.ndarray, form: ImageFormat, nearest: bool
) -> tuple[np.ndarray, np.ndarray | None, bool]:
    """An image (H, W, C) in a format's size: cropped to its centre, padded or stretched if it has
    another shape, and resized with Lanczos, which antialiases, or without mixing pixels.

    Returns:
        The image; with the fit "pad" (H, W) uint8, 1 inside the image and 0 in padding, else None;
        and whether it had another shape.
    """
    (height, width), size = image.shape[:2], form.size
    differs = width * form.height != height * form.width
    if differs and form.fit == "crop":
        rows = min(height, max(1, round(width * form.height / form.width)))
        columns = min(width, max(1, round(height * form.width / form.height)))
        top, left = (height - rows) // 2, (width - columns) // 2
        image = image[top : top + rows, left : left + columns]
    if differs and form.fit == "pad":
        scale = min(form.height / height, form.width / width)
        size = max(1, round(height * scale)), max(1, round(width * scale))
    if image.shape[:2] != size:
        image = _resized(image, size, form, nearest)
    if form.fit != "pad":
        return image, None, differs
    left, right, top, bottom = form.padding(size)
    around = ((top, bottom), (left, right))
    image = np.pad(image, (*around, (0, 0)), constant_values=form.stored_middle)
    return image, np.pad(np.ones(size, np.uint8), around), differs


def _resized(
    image: np.ndarray, size: tuple[int, int], form: ImageFormat, nearest: bool
) -> np.ndarray:
    if image.dtype == np.uint8 and form.mode in MODES:  # as a whole: alpha weights the colours
        bands = [Image.fromarray(image.squeeze(2) if form.mode == "L" else image)]
    else:
        bands = [Image.fromarray(band.astype(np.float32)) for band in np.moveaxis(image, -1, 0)]
    kernel = Image.Resampling.NEAREST if nearest else Image.Resampling.LANCZOS
    resized = np.dstack([np.asarray(band.resize(size[::-1], kernel)) for band in bands])
    if resized.dtype == form.dtype:
        return resized
    return np.rint(resized).clip(*form.stored_range).astype(form.dtype)
