"""Images of other shapes are cropped, padded or stretched to a format's size."""

from collections.abc import Sequence

import numpy as np
from PIL import Image

from ..pipeline.format import ImageFormat


def fit(
    bands: Sequence[Image.Image], form: ImageFormat, nearest: bool
) -> tuple[list[Image.Image], np.ndarray, bool]:
    """An image in a format's size, resized with Lanczos, or without mixing pixels.

    Args:
        bands: the image, or each of its bands.

    Returns:
        The bands; (H, W) uint8, 1 inside the image and 0 in padding; whether it had another shape.
    """
    (width, height), whole = bands[0].size, (form.width, form.height)
    # What is cut out of it, what that is resized to, and where that is put; width first.
    box, size, (left, top) = (0, 0, width, height), whole, (0, 0)
    differs = width * form.height != height * form.width
    if differs and form.fit == "crop":
        cut = min(width, max(1, round(height * form.width / form.height)))
        cut = cut, min(height, max(1, round(width * form.height / form.width)))
        x, y = (width - cut[0]) // 2, (height - cut[1]) // 2
        box = x, y, x + cut[0], y + cut[1]
    if differs and form.fit == "pad":
        scale = min(form.width / width, form.height / height)
        size = max(1, round(width * scale)), max(1, round(height * scale))
        left, _, top, _ = form.padding(size[::-1])
    frame = np.zeros(form.size, np.uint8)
    frame[top : top + size[1], left : left + size[0]] = 1
    fitted = []
    for band in bands:
        band = band.crop(box)
        if band.size != size:
            kernel = Image.Resampling.NEAREST if nearest else Image.Resampling.LANCZOS
            band = band.resize(size, kernel)
        if size != whole:
            middle, inside = form.stored_middle, band
            middle = middle if band.mode == "F" else (int(middle),) * len(band.getbands())
            band = Image.new(inside.mode, whole, middle)
            band.paste(inside, (left, top))
        fitted.append(band)
    return fitted, frame, differs
