"""Encoded images to pixels of a format, and a cache of the decoded pixels."""

import hashlib
import io
import logging
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple
from zipfile import BadZipFile

import datasets
import fsspec
import numpy as np
import torch
from datasets.utils import tqdm
from PIL import ExifTags, Image, UnidentifiedImageError

from ..pipeline.format import MODES, ImageFormat
from ..pipeline.rgb import read_rgb
from ..tools.files import replaced_file
from .arrays import UnfitError, is_array, read_array, to_bytes
from .columns import ARRAYS, DataError, Rows
from .fit import fitted, placed

logger = logging.getLogger(__name__)

_DECODING = 4  # part of the cache's key; raise it when decoding changes
_BATCH = 1024  # rows that are read at a time


@dataclass(frozen=True)
class Encoded:
    """An encoded image.

    Attributes:
        data: the bytes of its file, or None if it lies at `path`; a row may have neither.
        path: path or URL, or None.
        row: words for the row, for messages.
        field: of the configuration, which names the column.
    """

    data: bytes | None
    path: str | None
    row: str
    field: str = "image_column"

    @classmethod
    def of(
        cls,
        stored: dict | np.ndarray | None,
        row: str,
        folders: Sequence[str] = (),
        field: str = "image_column",
    ) -> "Encoded":
        """The image of a row, which `datasets` has as {"bytes", "path"}, or as an array.

        Args:
            folders: of the files that name the images: relative paths are relative to them.

        Raises:
            DataError: a relative path leads to images in two of the folders.
        """
        if isinstance(stored, np.ndarray):
            return cls(to_bytes(stored), None, row, field)
        data, path = (stored or {}).get("bytes"), (stored or {}).get("path")
        if data is None and path and folders and "://" not in path:
            paths = [os.path.join(folder, path) for folder in folders]  # absolute ones stay
            there = sorted({path for path in paths if os.path.isfile(path)})
            if len(there) > 1:
                raise DataError(
                    f"{field}: {row} names {path}, which is both {there[0]} and {there[1]};"
                    " give absolute paths, or keep each table in a folder with its images."
                )
            path = (there or paths)[0]
        return cls(data, path, row, field)

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
        file = f" ({self.path})" if self.path else ""
        if isinstance(error, UnfitError):
            return DataError(f"{self.field}: {self.row}{file} does not fit: {error}.")
        return DataError(
            f"{self.field}: {self.row}{file} does not decode as an image: {error};"
            " remove the row or replace the file."
        )


@dataclass(frozen=True)
class Facts:
    """Of how many images something is true.

    Attributes:
        count: images in all.
        fitted: had another shape, and were cropped, padded or stretched.
        grey, clear, deep, labels: have one colour channel; some transparency; more than 8 bits; a
            palette.
        peak: the largest number of those of more than 8 bits, 0 without them.
    """

    count: int = 0
    fitted: int = 0
    grey: int = 0
    clear: int = 0
    deep: int = 0
    labels: int = 0
    peak: int = 0

    def __add__(self, other: "Facts") -> "Facts":
        sums = {name: n + getattr(other, name) for name, n in asdict(self).items()}
        return Facts(**{**sums, "peak": max(self.peak, other.peak)})


class Decoded(NamedTuple):
    """n images.

    Attributes:
        pixels: (n, C, H, W) as they are stored.
        frames: (n, 1, H, W) uint8, 0 in padding; None where nothing is padded.
        sizes: (n, 2) int32, height and width of the files.
    """

    pixels: torch.Tensor
    frames: torch.Tensor | None
    sizes: torch.Tensor
    facts: Facts


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

    def __call__(self, images: Sequence[Encoded]) -> Decoded:
        """Raises a DataError that names the row if one does not decode."""
        shares = self._pool.map(self._decode, _shares(images, self.threads))
        pixels, frames, sizes, facts = zip(*shares, strict=True)
        pixels = torch.from_numpy(np.concatenate(pixels)).permute(0, 3, 1, 2).contiguous()
        frames = torch.from_numpy(np.concatenate(frames)) if self.images.fit == "pad" else None
        sizes = torch.from_numpy(np.concatenate(sizes))
        return Decoded(pixels, frames, sizes, sum(facts, Facts()))

    def _decode(self, images: Sequence[Encoded]) -> tuple[np.ndarray, ...]:
        form = self.images
        pixels = np.empty((len(images), *form.size, form.channels), form.dtype)
        frames = np.zeros((len(images) if form.fit == "pad" else 0, 1, *form.size), np.uint8)
        sizes, facts = np.empty((len(images), 2), np.int32), Facts()
        for place, encoded in enumerate(images):
            pixels[place], inside, sizes[place], found = decode(encoded, form, self.nearest)
            if len(frames):
                frames[place, 0][inside] = 1
            facts += found
        return pixels, frames, sizes, facts


def digests_of(rows: Rows, column: str, threads: int) -> list[bytes]:
    """The sha256 of each image as it is stored now.

    Files are read whole, each time: that is faster than decoding them.
    """

    def digests(images: Sequence[Encoded]) -> list[bytes]:
        return [hashlib.sha256(image.read()).digest() for image in images]

    with ThreadPoolExecutor(threads) as pool:
        shares = (pool.map(digests, _shares(batch, threads)) for batch in _batches(rows, column))
        return [digest for parts in shares for part in parts for digest in part]


def _shares(images: Sequence[Encoded], count: int) -> list[Sequence[Encoded]]:
    """The images in order, cut in so many parts."""
    edges = [len(images) * i // count for i in range(count + 1)]
    return [images[start:end] for start, end in pairwise(edges)]


def decode_rows(
    rows: Rows,
    column: str,
    form: ImageFormat,
    threads: int,
    digests: Sequence[bytes],
    nearest: bool | None = False,
    field: str = "image_column",
) -> Decoded:
    """The images of `column`, from the cache if these were decoded before.

    Args:
        digests: of the stored files, the key of the cache: see `digests_of`.

    Raises:
        DataError: one can't be read or decoded, or the 16-bit images have fewer bits than that.
    """
    digest = hashlib.sha256(f"{_DECODING} {form} {nearest}".encode())
    digest.update(b"".join(digests))
    folder = Path(datasets.config.HF_DATASETS_CACHE, "mtl_diffusion")
    cached = folder / f"{digest.hexdigest()}.npz"
    with suppress(OSError, ValueError, EOFError, KeyError, BadZipFile), np.load(cached) as file:
        frames = torch.from_numpy(file["frames"]) if form.fit == "pad" else None
        pixels, sizes = torch.from_numpy(file["pixels"]), torch.from_numpy(file["sizes"])
        return Decoded(pixels, frames, sizes, Facts(*file["facts"].tolist()))
    decoder, parts = Decoder(form, threads, nearest), []
    pixels = torch.empty(len(rows.table), *form.shape, dtype=getattr(torch, form.dtype))
    start = 0
    with tqdm(total=len(pixels), desc=f"Decoding {rows.words}", unit="img") as progress:
        for batch in _batches(rows, column, field):
            part = decoder(batch)
            pixels[start : start + len(batch)] = part.pixels
            parts.append(part)
            start += len(batch)
            progress.update(len(batch))
    facts = sum((part.facts for part in parts), Facts())
    check_depth(facts, form, rows.words)
    frames = torch.cat([part.frames for part in parts]) if form.fit == "pad" else None
    sizes = torch.cat([part.sizes for part in parts])
    try:
        folder.mkdir(parents=True, exist_ok=True)
        arrays = {
            "pixels": pixels.numpy(),
            "sizes": sizes.numpy(),
            "facts": [*asdict(facts).values()],
        }
        arrays |= {} if frames is None else {"frames": frames.numpy()}
        with replaced_file(cached) as part, part.open("wb") as file:
            np.savez(file, **arrays)
    except OSError as error:
        logger.warning("the decoded images are not kept for the next run: %s", error)
    return Decoded(pixels, frames, sizes, facts)


def undecoded(rows: Any, column: str) -> Any:
    """The rows with {"bytes", "path"} for each image, or path of one, in a column.

    One that failed to decode inside `datasets` could not be named. Arrays stay what they are.
    """
    if type(rows.features[column]) in ARRAYS:
        return rows.with_format("numpy", columns=[column], output_all_columns=True)
    if isinstance(rows.features[column], datasets.Value):  # only short strings become images
        rows = rows.cast_column(column, datasets.Value("string"))
    return rows.cast_column(column, datasets.Image(decode=False))


def _batches(rows: Rows, column: str, field: str = "image_column") -> Iterator[list[Encoded]]:
    first = 0
    for batch in undecoded(rows.table.select_columns([column]), column).iter(_BATCH):
        named = enumerate(batch[column], first)
        yield [Encoded.of(item, rows.name(place), rows.folders, field) for place, item in named]
        first += len(batch[column])


def check_depth(facts: Facts, form: ImageFormat, split: str) -> None:
    """Refuses 16-bit images that hold numbers of 14 bits or fewer: they would be nearly black."""
    peak = facts.peak
    if not peak or peak >= 1 << 14:
        return
    bits = next(bits for bits in (8, 10, 12, 14) if peak < 1 << bits)
    mode = "" if form.mode != "RGB" or facts.grey < facts.deep else "image_mode to L, "
    raise DataError(
        f"image_column: the 16-bit images of {split!r} have no value above {peak:,}, of 65,535;"
        f" they seem to hold numbers of {bits} bits, and would be nearly black: set {mode}"
        f"image_dtype to uint16 and value_range to [0, {(1 << bits) - 1}]."
    )


def decode(
    encoded: Encoded, form: ImageFormat, nearest: bool | None = False
) -> tuple[np.ndarray, tuple[slice, slice], tuple[int, int], Facts]:
    """An image (H, W, C) as it is stored; where it is not padding; the size of its file; and facts.

    The first frame is read, as `read_rgb` does, or as `read_array` where that is needed. One of
    another shape is cropped to its centre, padded or stretched, and resized with Lanczos, which
    antialiases; one that has the size passes bit-exactly.

    Raises:
        DataError: it does not decode; the message names the row.
    """
    bands, facts = read(encoded, form)
    place = placed(bands[0].size, form)
    nearest = bool(facts.labels) if nearest is None else nearest
    pixels = to_pixels([fitted(band, place, form, nearest) for band in bands], form)
    left, top, width, height = *place.corner, *place.size
    inside = slice(top, top + height), slice(left, left + width)
    return pixels, inside, bands[0].size[::-1], replace(facts, fitted=int(place.fitted))


def to_pixels(bands: Sequence[Image.Image], form: ImageFormat) -> np.ndarray:
    """(H, W, C) as it is stored, of what `read` gave."""
    pixels = np.stack([np.asarray(band) for band in bands], -1).reshape(
        *bands[0].size[::-1], form.channels
    )
    if pixels.dtype == form.dtype:
        return pixels
    least, most = (int(n) if form.dtype != "float32" else n for n in form.stored_range)
    pixels = pixels if form.dtype == "float32" else np.rint(pixels)
    return pixels.clip(least, most).astype(form.dtype)


def read(encoded: Encoded, form: ImageFormat) -> tuple[list[Image.Image], Facts]:
    """An image in its own size: one of the format's mode, or one of mode F for each band.

    Raises:
        DataError: it does not decode; the message names the row.
    """
    data = encoded.read()
    try:
        if form.dtype != "uint8" or form.mode not in MODES or is_array(data):
            array = read_array(data, form)
            peak = int(array.max()) if (form.dtype, form.value_range) == ("uint16", None) else 0
            facts = Facts(1, deep=int(peak > 0), peak=peak, grey=int(form.mode == "L"))
            bands = [Image.fromarray(band.astype(np.float32)) for band in np.moveaxis(array, -1, 0)]
        else:
            image = Image.open(io.BytesIO(data))
            image.load()
            peak = _peak(image, data)
            facts = Facts(
                1,
                grey=int(image.mode in ("1", "L", "LA", "F") or image.mode.startswith("I")),
                clear=int(image.has_transparency_data),
                labels=int(image.mode == "P"),
                deep=int(peak > 0),
                peak=peak,
            )
            bands = [read_rgb(image, alpha=form.mode == "RGBA")]
            bands = [bands[0].convert("L")] if form.mode == "L" else bands
    except UnidentifiedImageError as error:
        unknown = ValueError("its format is not known, or its beginning is damaged")
        raise encoded.fault(unknown) from error
    except Exception as error:  # Pillow's decoders raise OSError, SyntaxError, struct.error, ...
        raise encoded.fault(error) from error
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
