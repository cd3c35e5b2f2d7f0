"""An uploaded file as pixels: read as training reads the images of a dataset."""

import io
from contextlib import suppress

import numpy as np
from PIL import Image, ImageCms, ImageOps, UnidentifiedImageError

MOST_PIXELS = 50_000_000  # of an upload: a small file can hold more than the memory does
_MODES = {"RGB": "RGB", "GRAY": "L", "CMYK": "CMYK"}  # colour space of a profile -> Pillow's mode


def read_file(file) -> Image.Image:
    """The first frame of a picture as RGB of 8 bits.

    Args:
        file: a path, or an open file.

    Raises:
        ValueError: it is no picture, is damaged or has too many pixels; for the page to show.
    """
    try:
        with Image.open(file) as image:
            if image.width * image.height > MOST_PIXELS:
                raise ValueError(
                    f"This picture is {image.width}x{image.height} pixels, of which at most "
                    f"{MOST_PIXELS // 10**6} million are read; make it smaller."
                )
            image.load()
            return read_rgb(image)
    except UnidentifiedImageError as error:
        raise ValueError(
            "This file can't be read as a picture; give a PNG or a JPEG, for example."
        ) from error
    except (OSError, SyntaxError, Image.DecompressionBombError) as error:
        raise ValueError(f"This picture is damaged or too large ({error}).") from error


def read_rgb(image: Image.Image) -> Image.Image:
    """An image as RGB of 8 bits, of the same pixels where it is that already.

    Grey of 16 bits keeps its range. Colours with an embedded profile are converted to sRGB; one
    that can't be read is left out. Transparency is composited over white, and EXIF's orientation
    is applied. This is what training does with the images of a dataset.

    Raises:
        ValueError: the pixels are floating point numbers, or integers outside 0 to 65,535.
    """
    with suppress(Exception):  # no orientation can be read
        image = ImageOps.exif_transpose(image)
    profile = image.info.get("icc_profile")
    if image.mode.startswith("I"):  # `convert` would clip it at 255
        grey, clear = np.asarray(image).astype(np.int64), image.info.get("transparency")
        if grey.min() < 0 or grey.max() > 65535:
            raise ValueError(f"This picture has values from {grey.min()} to {grey.max()}.")
        grey = np.where(grey == clear, 65535, grey) if isinstance(clear, int) else grey
        image = Image.fromarray((grey >> 8).astype(np.uint8))
    if image.mode == "F":
        raise ValueError("This picture has floating point numbers; save it with integers.")
    rgb = _srgb(image, profile)
    if image.has_transparency_data:
        rgb.putalpha(image.convert("RGBA").getchannel("A"))
        rgb = Image.alpha_composite(Image.new("RGBA", image.size, "white"), rgb).convert("RGB")
    return rgb


def _srgb(image: Image.Image, profile: bytes | None) -> Image.Image:
    """The colours of an image of 8 bits, without its transparency."""
    srgb = ImageCms.createProfile("sRGB")
    if image.mode == "LAB":
        lab = ImageCms.createProfile("LAB")
        return ImageCms.profileToProfile(image, lab, srgb, outputMode="RGB")
    rgb = image.convert("RGB")
    if not profile:
        return rgb
    try:
        source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        mode = _MODES[source.profile.xcolor_space.strip()]
        transform = ImageCms.buildTransform(source, srgb, mode, "RGB")
    except (ImageCms.PyCMSError, OSError, KeyError):
        return rgb
    if mode != "RGB" and image.mode not in (mode, f"{mode}A"):
        return rgb
    converted = ImageCms.applyTransform(rgb if mode == "RGB" else image.convert(mode), transform)
    difference = np.asarray(converted, np.int16) - np.asarray(rgb, np.int16)
    # The profile of sRGB itself: its conversion may round, so it is not applied.
    return rgb if np.abs(difference).max() <= 2 else converted
