"""Encoded images to square RGB pixels, and a cache of the decoded pixels."""

import hashlib
import io
import logging
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import datasets
import fsspec
import numpy as np
import torch
from datasets.utils import tqdm
from PIL import ExifTags, Image, UnidentifiedImageError

from ..tools.files import replaced_file
from .columns import DataError, Rows

logger = logging.getLogger(__name__)

_DECODING = 2  # part of the cache's key; raise it when decoding changes
_BATCH = 1024  # rows that are read at a time
_PNG = b"\x89PNG\r\n\x1a\n"
_KEPT_CHUNKS = (b"tRNS", b"eXIf")  # optional parts of a PNG that are used here
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


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
    def of(cls, stored: dict | None, row: str) -> "Encoded":
        """`stored`: {"bytes", "path"}, as `datasets` has an undecoded image."""
        stored = stored or {"bytes": None, "path": None}
        return cls(stored["bytes"], stored["path"], row)

    def read(self) -> bytes:
        """The bytes of its file.

        Raises:
            DataError: they can't be read; the message names the row.
        """
        if self.data is not None:
            return self.data
        try:
            if self.path is None:
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
    """Decodes images on several threads.

    Every image becomes `resolution` x `resolution` RGB. Greyscale, palette and CMYK images are
    converted, transparency is composited over white, EXIF orientation is applied, and only the
    first frame is read. An image of another size is centre-cropped to a square and resized with
    Lanczos, which antialiases; an RGB image that has the size already passes bit-exactly.

    Args:
        resolution: side in pixels.
        threads: number of threads that decode.
    """

    def __init__(self, resolution: int, threads: int):
        self.resolution = resolution
        self.threads = threads
        self._pool = ThreadPoolExecutor(threads)

    def __call__(self, images: Sequence[Encoded]) -> tuple[torch.Tensor, int | None]:
        """(n, 3, H, W) uint8, and the largest value of those that have 16 bits, None without them.

        Raises:
            DataError: one does not decode; the message names the row.
        """
        size, place = self.resolution, 0
        pixels = np.empty((len(images), size, size, 3), np.uint8)
        peaks: list[int] = []
        for share in self._pool.map(self._decode, _shares(images, self.threads)):
            for image, peak in share:
                pixels[place] = image
                place += 1
                peaks += [] if peak is None else [peak]
        return torch.from_numpy(pixels).permute(0, 3, 1, 2).contiguous(), max(peaks, default=None)

    def _decode(self, images: Sequence[Encoded]) -> list[tuple[Image.Image, int | None]]:
        return [decode(image, self.resolution) for image in images]


def digests_of(rows: Rows, column: str, threads: int) -> list[bytes]:
    """The sha256 of each image as it is stored now; files are read whole."""
    with ThreadPoolExecutor(threads) as pool:
        return [
            digest
            for batch in _batches(rows, column)
            for share in pool.map(_digests, _shares(batch, threads))
            for digest in share
        ]


def _digests(images: Sequence[Encoded]) -> list[bytes]:
    return [hashlib.sha256(image.read()).digest() for image in images]


def _shares(images: Sequence[Encoded], count: int) -> list[Sequence[Encoded]]:
    """The images in order, cut in so many parts."""
    edges = [len(images) * i // count for i in range(count + 1)]
    return [images[start:end] for start, end in pairwise(edges)]


def decode_rows(rows: Rows, column: str, resolution: int, threads: int) -> torch.Tensor:
    """The images of `column` as (N, 3, H, W) uint8, from the cache if these were decoded before.

    The key of the cache is a hash of the stored files, so they are read whole each time; that is
    faster than decoding them.

    Raises:
        DataError: one can't be read or decoded, or the 16-bit images have fewer bits than that.
    """
    digest = hashlib.sha256(f"{_DECODING} {resolution}".encode())
    digest.update(b"".join(digests_of(rows, column, threads)))
    cached = Path(datasets.config.HF_DATASETS_CACHE, "mtl_diffusion", f"{digest.hexdigest()}.npy")
    try:
        return torch.from_numpy(np.load(cached))
    except (OSError, ValueError, EOFError):  # not there, or not whole
        pass
    decoder = Decoder(resolution, threads)
    images = torch.empty(len(rows.table), 3, resolution, resolution, dtype=torch.uint8)
    start, peaks = 0, []
    with tqdm(total=len(images), desc=f"Decoding {rows.words}", unit="img") as progress:
        for batch in _batches(rows, column):
            images[start : start + len(batch)], peak = decoder(batch)
            peaks += [] if peak is None else [peak]
            start += len(batch)
            progress.update(len(batch))
    check_depth(max(peaks, default=None), rows.words)
    _keep(cached, images)
    return images


def _batches(rows: Rows, column: str) -> Iterator[list[Encoded]]:
    # Undecoded, because a row that fails to decode inside `datasets` cannot be named.
    table = rows.table.select_columns([column]).cast_column(column, datasets.Image(decode=False))
    first = 0
    for batch in table.iter(_BATCH):
        stored = batch[column]
        yield [Encoded.of(item, rows.name(place)) for place, item in enumerate(stored, first)]
        first += len(stored)


def _keep(cached: Path, images: torch.Tensor) -> None:
    """Writes the file atomically. An error is logged: the next run then decodes again."""
    try:
        cached.parent.mkdir(parents=True, exist_ok=True)
        with replaced_file(cached) as part, part.open("wb") as file:
            np.save(file, images.numpy())
    except OSError as error:
        logger.warning("the decoded images are not kept for the next run: %s", error)


def check_depth(peak: int | None, split: str) -> None:
    """Refuses 16-bit images that hold numbers of 14 bits or fewer: they would be nearly black.

    Args:
        peak: the largest value of any of them, or None if there are none.
    """
    if peak is None or peak >= 1 << 14:
        return
    bits = next(bits for bits in (8, 10, 12, 14) if peak < 1 << bits)
    raise DataError(
        f"image_column: the 16-bit images of {split!r} have no value above {peak:,}, of 65,535;"
        f" they seem to hold numbers of {bits} bits, and would be nearly black: multiply them by"
        f" {1 << (16 - bits)} and save them again."
    )


def decode(encoded: Encoded, resolution: int) -> tuple[Image.Image, int | None]:
    """A square RGB image, and its largest value if it has 16 bits, else None.

    Raises:
        DataError: it does not decode; the message names the row.
    """
    data = encoded.read()
    try:
        image, peak = _upright_rgb(_open(data), data)
        return _fit(image, resolution), peak
    except Exception as error:  # Pillow's decoders raise OSError, SyntaxError, struct.error, ...
        raise encoded.fault(error) from error


def _open(data: bytes) -> Image.Image:
    """The first frame, loaded. A PNG needs intact pixels only; its other parts may be damaged."""
    try:
        return _loaded(data)
    except Exception:
        # Pillow refuses long texts and damaged colour profiles, which are not used here. If the
        # pixels are damaged as well, the first error is raised.
        if data.startswith(_PNG):
            with suppress(Exception):
                return _loaded(_without_extras(data))
        raise


def _loaded(data: bytes) -> Image.Image:
    try:
        image = Image.open(io.BytesIO(data))
    except UnidentifiedImageError:
        raise ValueError("its format is not known, or its beginning is damaged") from None
    image.load()
    return image


def _without_extras(png: bytes) -> bytes:
    """The PNG without its optional chunks, whose kinds begin with a lower-case letter."""
    chunks, start = [_PNG], len(_PNG)
    while start < len(png):
        kind = png[start + 4 : start + 8]
        end = start + 12 + int.from_bytes(png[start : start + 4], "big")
        if kind in _KEPT_CHUNKS or kind[:1].isupper():
            chunks.append(png[start:end])
        start = end
    return b"".join(chunks)


def _upright_rgb(image: Image.Image, data: bytes) -> tuple[Image.Image, int | None]:
    """The image as RGB, with the EXIF orientation applied; its largest value if it has 16 bits."""
    if image.mode == "F":
        raise ValueError("its pixels are floating point numbers, whose range is not known")
    turn, deep = _turn(image), _has_16_bits(image, data)
    peak = None
    if image.mode.startswith("I"):  # `convert` would clip it at 255
        grey = np.asarray(image).astype(np.int64)
        if grey.min() < 0 or grey.max() > 65535:
            raise ValueError(f"it has values from {grey.min()} to {grey.max()}, not 0 to 65535")
        peak = int(grey.max())
        clear = image.info.get("transparency")
        if isinstance(clear, int):
            grey = np.where(grey == clear, 65535, grey)
        rgb = Image.fromarray((grey >> 8).astype(np.uint8)).convert("RGB")
    else:
        if deep:  # Pillow keeps the upper 8 bits of each colour
            colours = image.convert("RGB").getextrema()
            peak = max(high for _, high in colours) * 256 + 255
        rgb = _over_white(image)
    return (rgb if turn is None else rgb.transpose(turn)), peak


def _over_white(image: Image.Image) -> Image.Image:
    if image.has_transparency_data:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, "white")
        return Image.alpha_composite(white, image).convert("RGB")
    return image.convert("RGB")


def _turn(image: Image.Image) -> Image.Transpose | None:
    """The turn that EXIF's orientation asks for, or None. Other tags may be damaged."""
    try:
        return _TURNS.get(image.getexif().get(ExifTags.Base.Orientation))
    except Exception:  # no orientation can be read
        return None


def _has_16_bits(image: Image.Image, data: bytes) -> bool:
    if data.startswith(_PNG):
        return data[24] == 16  # the bit depth, in the header
    return image.format == "TIFF" and 16 in image.tag_v2.get(ExifTags.Base.BitsPerSample, ())


def _fit(image: Image.Image, resolution: int) -> Image.Image:
    side = min(image.size)
    left, top = (image.width - side) // 2, (image.height - side) // 2
    image = image.crop((left, top, left + side, top + side))
    if side == resolution:
        return image
    return image.resize((resolution, resolution), Image.Resampling.LANCZOS)
