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
from PIL import ExifTags, Image, UnidentifiedImageError

from ..pipeline.format import MODES, ImageFormat
from ..pipeline.rgb import read_rgb
from .arrays import is_array, read_array, to_bytes
from .columns import ARRAYS, DataError, Rows
from .fit import fit

FRAME = "frame"  # the layer that is 0 in padding and 1 inside the image: (N, 1, H, W) uint8
# What is known of an image: the size of its file; whether it has one colour channel, some
# transparency, or a palette; whether it had another shape, and was cropped, padded or stretched;
# and its largest number, if these have 16 bits.
FACTS = np.dtype(
    [
        ("size", "i4", 2),
        *((name, "?") for name in ("grey", "clear", "palette", "fitted")),
        ("peak", "i4"),
    ]
)
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
        if data is None and path and folders and "://" not in path:
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
        digests: the sha256 of each file.
    """

    pixels: torch.Tensor
    layers: Mapping[str, torch.Tensor]
    facts: np.ndarray
    digests: Sequence[bytes]


class Decoder:
    """Decodes images on several threads, each as `decode` does.

    Args:
        images: the format that they are to have.
        threads: number of threads.
        nearest: resize without mixing pixels, as masks need it. None: where there is a palette, as
            maps of labels have it.
    """

    def __init__(self, images: ImageFormat, threads: int, nearest: bool | None = False):
        self.images = images
        self.threads = threads
        self.nearest = nearest
        self._pool = ThreadPoolExecutor(threads)

    def __call__(self, images: Iterable[Encoded], count: int) -> Decoded:
        """Raises a DataError that names the row if one of the `count` images does not decode."""
        form, digests = self.images, [b""] * count
        pixels = np.empty((count, *form.shape), form.dtype)
        frames = np.empty((count if form.fit == "pad" else 0, 1, *form.size), np.uint8)
        facts = np.empty(count, FACTS)

        def fill(share: Sequence[tuple[int, Encoded]]) -> None:
            for place, image in share:
                found = decode(image, form, self.nearest)
                pixels[place], frame, facts[place], digests[place] = found
                if len(frames):
                    frames[place] = frame

        numbered = enumerate(images)
        while batch := list(islice(numbered, _BATCH)):
            # Each thread has a share: a call for each image would take as long as a small image.
            list(self._pool.map(fill, (batch[i :: self.threads] for i in range(self.threads))))
        layers = {FRAME: torch.from_numpy(frames)} if len(frames) else {}
        return Decoded(torch.from_numpy(pixels), layers, facts, digests)


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


def digests_of(rows: Rows, column: str) -> list[bytes]:
    """The sha256 of each image as it is stored now."""
    with ThreadPoolExecutor(torch.get_num_threads()) as pool:
        images, digests = encoded(rows, column), []
        while batch := list(islice(images, _BATCH)):
            digests += pool.map(lambda image: hashlib.sha256(image.read()).digest(), batch)
    return digests


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
) -> tuple[np.ndarray, np.ndarray, np.ndarray, bytes]:
    """An image (C, H, W) as it is stored; its frame (H, W); its facts; the sha256 of its file.

    The first frame is read, as `read_rgb` does, or as `read_array` where that is needed. One of
    another shape is cropped to its centre, padded or stretched, and resized with Lanczos, which
    antialiases; one that has the size passes bit-exactly.

    Raises:
        DataError: it does not decode; the message names the row.
    """
    data = encoded.read()
    try:
        bands, facts = read(data, form)
    except Exception as error:  # Pillow's decoders raise OSError, SyntaxError, struct.error, ...
        raise encoded.fault(error) from error
    nearest = bool(facts["palette"]) if nearest is None else nearest
    bands, frame, facts["fitted"] = fit(bands, form, nearest)
    return to_pixels(bands, form), frame, facts, hashlib.sha256(data).digest()


def to_pixels(bands: Sequence[Image.Image], form: ImageFormat) -> np.ndarray:
    """(C, H, W) as it is stored, of what `read` gave."""
    pixels = np.stack([np.asarray(band) for band in bands])
    pixels = pixels[0].transpose(2, 0, 1) if pixels.ndim == 4 else pixels
    if pixels.dtype == form.dtype:
        return pixels
    return np.rint(pixels).clip(*form.stored_range).astype(form.dtype)


def read(data: bytes, form: ImageFormat) -> tuple[list[Image.Image], np.ndarray]:
    """An image in its own size, and its facts: one of the format's mode, or one of mode F a band.

    Raises:
        Exception: of any kind, if it does not decode.
    """
    facts = np.zeros((), FACTS)
    if form.dtype != "uint8" or form.mode not in MODES or is_array(data):
        array = read_array(data, form)
        facts["grey"] = form.mode == "L"
        if (form.dtype, form.value_range) == ("uint16", None):
            facts["peak"] = array.max()
        bands = [Image.fromarray(band.astype(np.float32)) for band in np.moveaxis(array, -1, 0)]
    else:
        image = Image.open(io.BytesIO(data))
        image.load()
        facts["grey"] = image.mode in ("1", "L", "LA", "F") or image.mode.startswith("I")
        facts["clear"] = image.has_transparency_data
        facts["palette"] = image.mode == "P"
        facts["peak"] = _peak(image, data)
        bands = [read_rgb(image, alpha=form.mode == "RGBA")]
        bands = [bands[0].convert("L")] if form.mode == "L" else bands
    facts["size"] = bands[0].height, bands[0].width
    return bands, facts


def _peak(image: Image.Image, data: bytes) -> int:
    if image.mode.startswith("I"):
        return int(np.asarray(image).max())
    if image.format == "PNG":
        deep = data[24] == 16  # the bit depth, in the header
    else:
        deep = image.format == "TIFF" and 16 in image.tag_v2.get(ExifTags.Base.BitsPerSample, ())
    # Pillow keeps the upper 8 bits of each colour.
    return max(top for _, top in image.convert("RGB").getextrema()) * 256 + 255 if deep else 0
