"""Encoded images to square RGB pixels, and a cache of the decoded pixels."""

import hashlib
import io
import logging
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import datasets
import fsspec
import numpy as np
import torch
from datasets.utils import tqdm
from PIL import ExifTags, Image, UnidentifiedImageError

from ..pipeline.rgb import read_rgb
from ..tools.files import replaced_file
from .columns import DataError, Rows

logger = logging.getLogger(__name__)

_DECODING = 3  # part of the cache's key; raise it when decoding changes
_BATCH = 1024  # rows that are read at a time


@dataclass(frozen=True)
class Encoded:
    """An encoded image.

    Attributes:
        data: the bytes of its file, or None if it lies at `path`; a row may have neither.
        path: path or URL, or None.
        row: words for the row, for messages.
    """

    data: bytes | None
    path: str | None
    row: str

    @classmethod
    def of(cls, stored: dict | None, row: str, folders: Sequence[str] = ()) -> "Encoded":
        """The image of a row, which `datasets` has as {"bytes", "path"}.

        Args:
            folders: of the files that name the images: relative paths are relative to them.

        Raises:
            DataError: a relative path leads to images in two of the folders.
        """
        data, path = (stored or {}).get("bytes"), (stored or {}).get("path")
        if data is None and path and folders and "://" not in path:
            paths = [os.path.join(folder, path) for folder in folders]  # absolute ones stay
            there = sorted({path for path in paths if os.path.isfile(path)})
            if len(there) > 1:
                raise DataError(
                    f"image_column: {row} names {path}, which is both {there[0]} and {there[1]};"
                    " give absolute paths, or keep each table in a folder with its images."
                )
            path = (there or paths)[0]
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
        file = f" ({self.path})" if self.path else ""
        return DataError(
            f"image_column: {self.row}{file} does not decode as an image: {error};"
            " remove the row or replace the file."
        )


class Decoder:
    """Decodes images on several threads, each as `decode` does.

    Args:
        resolution: side in pixels.
        threads: number of threads.
    """

    def __init__(self, resolution: int, threads: int):
        self.resolution = resolution
        self.threads = threads
        self._pool = ThreadPoolExecutor(threads)

    def __call__(self, images: Sequence[Encoded]) -> tuple[torch.Tensor, int]:
        """(n, 3, H, W) uint8, and the largest value of those that have 16 bits, 0 without them.

        Raises:
            DataError: one does not decode; the message names the row.
        """
        shares = self._pool.map(self._decode, _shares(images, self.threads))
        pixels, peaks = zip(*shares, strict=True)
        pixels = torch.from_numpy(np.concatenate(pixels))
        return pixels.permute(0, 3, 1, 2).contiguous(), max(peaks)

    def _decode(self, images: Sequence[Encoded]) -> tuple[np.ndarray, int]:
        pixels = np.empty((len(images), self.resolution, self.resolution, 3), np.uint8)
        peaks = [0]
        for place, encoded in enumerate(images):
            pixels[place], peak = decode(encoded, self.resolution)
            peaks.append(peak)
        return pixels, max(peaks)


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
    rows: Rows, column: str, resolution: int, threads: int, digests: Sequence[bytes]
) -> torch.Tensor:
    """The images of `column` as (N, 3, H, W) uint8, from the cache if these were decoded before.

    Args:
        digests: of the stored files, the key of the cache: see `digests_of`.

    Raises:
        DataError: one can't be read or decoded, or the 16-bit images have fewer bits than that.
    """
    digest = hashlib.sha256(f"{_DECODING} {resolution}".encode())
    digest.update(b"".join(digests))
    cached = Path(datasets.config.HF_DATASETS_CACHE, "mtl_diffusion", f"{digest.hexdigest()}.npy")
    try:
        return torch.from_numpy(np.load(cached))
    except (OSError, ValueError, EOFError):  # not there, or not whole
        pass
    decoder = Decoder(resolution, threads)
    images = torch.empty(len(rows.table), 3, resolution, resolution, dtype=torch.uint8)
    start, peaks = 0, [0]
    with tqdm(total=len(images), desc=f"Decoding {rows.words}", unit="img") as progress:
        for batch in _batches(rows, column):
            images[start : start + len(batch)], peak = decoder(batch)
            peaks.append(peak)
            start += len(batch)
            progress.update(len(batch))
    check_depth(max(peaks), rows.words)
    try:
        cached.parent.mkdir(parents=True, exist_ok=True)
        with replaced_file(cached) as part, part.open("wb") as file:
            np.save(file, images.numpy())
    except OSError as error:
        logger.warning("the decoded images are not kept for the next run: %s", error)
    return images


def undecoded(rows: Any, column: str) -> Any:
    """The rows with {"bytes", "path"} for each image, or path of one, in a column.

    One that failed to decode inside `datasets` could not be named.
    """
    if isinstance(rows.features[column], datasets.Value):  # only short strings become images
        rows = rows.cast_column(column, datasets.Value("string"))
    return rows.cast_column(column, datasets.Image(decode=False))


def _batches(rows: Rows, column: str) -> Iterator[list[Encoded]]:
    first = 0
    for batch in undecoded(rows.table.select_columns([column]), column).iter(_BATCH):
        named = enumerate(batch[column], first)
        yield [Encoded.of(item, rows.name(place), rows.folders) for place, item in named]
        first += len(batch[column])


def check_depth(peak: int, split: str) -> None:
    """Refuses 16-bit images that hold numbers of 14 bits or fewer: they would be nearly black.

    Args:
        peak: the largest value of any of them, 0 if there are none.
    """
    if not peak or peak >= 1 << 14:
        return
    bits = next(bits for bits in (8, 10, 12, 14) if peak < 1 << bits)
    raise DataError(
        f"image_column: the 16-bit images of {split!r} have no value above {peak:,}, of 65,535;"
        f" they seem to hold numbers of {bits} bits, and would be nearly black: multiply them by"
        f" {1 << (16 - bits)} and save them again."
    )


def decode(encoded: Encoded, resolution: int) -> tuple[Image.Image, int]:
    """A square RGB image, and its largest value if it has 16 bits, else 0.

    The first frame is read, as `read_rgb` does. One of another size is cropped to the square at its
    centre and resized with Lanczos, which antialiases; one that has the size passes bit-exactly.

    Raises:
        DataError: it does not decode; the message names the row.
    """
    data = encoded.read()
    try:
        image = Image.open(io.BytesIO(data))
        image.load()
        rgb, peak = read_rgb(image), _peak(image, data)
    except UnidentifiedImageError as error:
        unknown = ValueError("its format is not known, or its beginning is damaged")
        raise encoded.fault(unknown) from error
    except Exception as error:  # Pillow's decoders raise OSError, SyntaxError, struct.error, ...
        raise encoded.fault(error) from error
    side = min(rgb.size)
    left, top = (rgb.width - side) // 2, (rgb.height - side) // 2
    rgb = rgb.crop((left, top, left + side, top + side))
    if side != resolution:
        rgb = rgb.resize((resolution, resolution), Image.Resampling.LANCZOS)
    return rgb, peak


def _peak(image: Image.Image, data: bytes) -> int:
    if image.mode.startswith("I"):
        return int(np.asarray(image).max())
    if image.format == "PNG":
        deep = data[24] == 16  # the bit depth, in the header
    else:
        deep = image.format == "TIFF" and 16 in image.tag_v2.get(ExifTags.Base.BitsPerSample, ())
    # Pillow keeps the upper 8 bits of each colour.
    return max(top for _, top in image.convert("RGB").getextrema()) * 256 + 255 if deep else 0
