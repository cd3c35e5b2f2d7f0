"""Any image that Pillow opens -> RGB of 8 bits as a model means it: upright, in sRGB, opaque."""

import io
from functools import lru_cache

import numpy as np
from PIL import ExifTags, Image, ImageCms, ImageOps

_MODES = {"RGB": "RGB", "GRAY": "L", "CMYK": "CMYK"}  # colour space of a profile -> Pillow's mode


def read_rgb(image: Image.Image, alpha: bool = False) -> Image.Image:
    """The image as RGB of 8 bits, of the same pixels where it is that already.

    Palettes, CMYK and the like are converted. Grey of 16 bits keeps its range: 65,535 becomes 255.
    Colours with an embedded profile are converted to sRGB; a profile that can't be read, or that is
    of another kind of pixels, is left out, as browsers do. Transparency is composited over white.
    EXIF's orientation is applied. Of several frames the current one is read.

    Args:
        alpha: give RGBA, and leave transparency as it is.

    Raises:
        ValueError: the pixels are floating point numbers, or integers outside 0 to 65,535.
        OSError: the file of an image that is not loaded yet is damaged.
    """
    profile, orientation = image.info.get("icc_profile"), _orientation(image)
    if image.mode.startswith("I"):
        image = _upper_8_bits(image)
    if image.mode == "F":
        raise ValueError(
            "its pixels are floating point numbers, whose range is not known; save it as integers"
        )
    rgb = _srgb(image, profile)
    if alpha or image.has_transparency_data:
        rgb.putalpha(image.convert("RGBA").getchannel("A"))
    if not alpha and rgb.mode == "RGBA":
        white = Image.new("RGBA", image.size, "white")
        rgb = Image.alpha_composite(white, rgb).convert("RGB")
    if orientation in range(2, 9):
        rgb = Image.fromarray(np.asarray(rgb))  # without the other tags, which may be damaged
        rgb.getexif()[ExifTags.Base.Orientation] = orientation
        rgb = ImageOps.exif_transpose(rgb)
    return rgb


def _orientation(image: Image.Image) -> int | None:
    try:
        return image.getexif().get(ExifTags.Base.Orientation)
    except Exception:  # none can be read
        return None


def _upper_8_bits(image: Image.Image) -> Image.Image:
    """Grey of 16 bits as 8 bits: `convert` would clip it at 255."""
    grey = np.asarray(image).astype(np.int64)
    if grey.min() < 0 or grey.max() > 65535:
        raise ValueError(f"it has values from {grey.min()} to {grey.max()}, not 0 to 65535")
    return Image.fromarray((grey >> 8).astype(np.uint8))


def _srgb(image: Image.Image, profile: bytes | None) -> Image.Image:
    """The colours of an image of 8 bits, without its transparency."""
    # By way of RGBA, as Pillow warns of palettes with transparency where it would be lost.
    rgb = (image.convert("RGBA") if image.mode == "P" else image).convert("RGB")
    if not profile:
        return rgb
    try:
        transform, mode = _transform(profile)
    except (ImageCms.PyCMSError, OSError, KeyError):
        return rgb
    if mode != "RGB" and image.mode not in (mode, mode + "A"):
        return rgb
    converted = ImageCms.applyTransform(rgb if mode == "RGB" else image.convert(mode), transform)
    difference = np.asarray(converted, np.int16) - np.asarray(rgb, np.int16)
    # The profile of sRGB itself: its conversion may round, so it is not applied.
    return rgb if np.abs(difference).max() <= 2 else converted


@lru_cache(16)
def _transform(profile: bytes) -> tuple[ImageCms.ImageCmsTransform, str]:
    """The transform to sRGB, and the mode of the pixels that it takes."""
    source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
    mode = _MODES[source.profile.xcolor_space.strip()]
    return ImageCms.buildTransform(source, ImageCms.createProfile("sRGB"), mode, "RGB"), mode
