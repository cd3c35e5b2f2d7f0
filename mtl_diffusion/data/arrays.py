"""Images of more than 8 bits, or of any number of bands, from the bytes of a file, as numbers.

Pillow would read colour of 16 bits as 8 bits. The numbers are those of the file: no colour profile
and no orientation is applied.
"""

import io

import numpy as np
from PIL import Image

from ..pipeline.format import ImageFormat

_NUMPY = b"\x93NUMPY"
_TIFF = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
# Red, green and blue of the labels 0 to 255: PASCAL VOC's, whose bits are spread over the three.
PALETTE = [
    sum((label >> (3 * bit + channel) & 1) << (7 - bit) for bit in range(3))
    for label in range(256)
    for channel in range(3)
]


def is_array(data: bytes) -> bool:
    """Whether they are the file of a numpy array."""
    return data.startswith(_NUMPY)


def to_bytes(array: np.ndarray) -> bytes:
    """The file of an array."""
    file = io.BytesIO()
    np.save(file, array, allow_pickle=False)
    return file.getvalue()


def with_palette(data: bytes) -> bytes:
    """A map of labels, the file of an array (H, W) of integers, as a PNG with `PALETTE`.

    Other files are returned as they are.

    Raises:
        ValueError: it has other labels than 0 to 255.
    """
    labels = np.load(io.BytesIO(data), allow_pickle=False) if is_array(data) else np.empty(0)
    if labels.ndim != 2 or labels.dtype.kind not in "uib":
        return data
    if labels.min() < 0 or labels.max() > 255:
        found = f"from {labels.min()} to {labels.max()}"
        raise ValueError(f"it is a map of labels {found}; the palette has colours for 0 to 255")
    picture, file = Image.fromarray(labels.astype(np.uint8)), io.BytesIO()
    picture.putpalette(PALETTE)
    picture.save(file, "PNG")
    return file.getvalue()


def read_array(data: bytes, images: ImageFormat) -> np.ndarray:
    """(H, W, C) of the format's channels and dtype, in the size of the file.

    Reads .npy, TIFF and all that Pillow reads. The channels are the last axis, or else the first.

    Raises:
        ValueError: it has other channels, or numbers that the format does not hold, or reading it
            needs a library that is not installed.
    """
    try:
        array = _numbers(data)
    except ImportError as error:
        needed = f"to read it {error.name} is needed: pip install 'mtl_diffusion[deep]'"
        raise ValueError(needed) from error
    count, shape = images.channels, array.shape
    if array.ndim == 2 and count == 1:
        array = array[..., None]
    elif array.ndim == 3 and array.shape[-1] != count:
        array = np.moveaxis(array, 0, -1)
    if array.ndim != 3 or array.shape[-1] != count:
        one = "(H, W), " if count == 1 else ""
        raise ValueError(
            f"it has the shape {shape}; image_mode {images.mode} needs {one}(H, W, {count})"
            f" or ({count}, H, W): set image_mode to L, RGB, RGBA or the number of bands"
        )
    is_float = images.dtype == "float32"
    if array.dtype.kind not in ("fuib" if is_float else "uib"):
        raise ValueError(f"it has numbers of {array.dtype}; set image_dtype to float32")
    low, high = images.stored_range
    least, most = array.min(), array.max()
    if not (low <= least and most <= high):  # NaN is neither
        fitting = "float32" if is_float or least < 0 or most > 65535 else "uint16"
        raise ValueError(
            f"it has numbers from {least} to {most}, and {images.dtype} holds {low:g} to {high:g}"
            f" here: set image_dtype to {fitting}, and value_range to the lowest and highest number"
            " of all images"
        )
    return array.astype(images.dtype)


def _numbers(data: bytes) -> np.ndarray:
    if is_array(data):
        return np.load(io.BytesIO(data), allow_pickle=False)
    if data.startswith(_TIFF):
        import tifffile

        with tifffile.TiffFile(io.BytesIO(data)) as file:
            return file.series[0].asarray()
    if data.startswith(b"\x89PNG") and data[24] == 16 and data[25]:  # 16 bits, and not grey
        import imagecodecs

        return imagecodecs.png_decode(data)
    image = Image.open(io.BytesIO(data))
    return np.asarray(image.convert("RGB") if image.mode == "P" else image)
