"""Images of other shapes are cropped, padded or stretched to a format's size."""

from typing import NamedTuple

from PIL import Image

from ..pipeline.format import ImageFormat


class Place(NamedTuple):
    """How an image comes to a format's size; all in PIL's order, width first.

    Attributes:
        box: what is cut out of it: left, top, right, bottom. size: what that is resized to.
        corner: where that is put. fitted: whether its shape was another one.
    """

    box: tuple[int, int, int, int]
    size: tuple[int, int]
    corner: tuple[int, int]
    fitted: bool


def placed(size: tuple[int, int], form: ImageFormat) -> Place:
    """Where an image of this width and height goes, by the fit of the format."""
    (width, height), whole = size, (0, 0, *size)
    frame = form.width, form.height
    differs = width * form.height != height * form.width
    if form.fit == "stretch" or not differs:
        return Place(whole, frame, (0, 0), differs)
    if form.fit == "crop":
        cut = min(width, max(1, round(height * form.width / form.height)))
        cut = cut, min(height, max(1, round(width * form.height / form.width)))
        left, top = (width - cut[0]) // 2, (height - cut[1]) // 2
        return Place((left, top, left + cut[0], top + cut[1]), frame, (0, 0), True)
    scale = min(form.width / width, form.height / height)
    inner = max(1, round(width * scale)), max(1, round(height * scale))
    left, _, top, _ = form.padding(inner[::-1])
    return Place(whole, inner, (left, top), True)


def fitted(image: Image.Image, place: Place, form: ImageFormat, nearest: bool) -> Image.Image:
    """The image there, resized with Lanczos, or without mixing pixels."""
    image = image.crop(place.box)
    if image.size != place.size:
        kernel = Image.Resampling.NEAREST if nearest else Image.Resampling.LANCZOS
        image = image.resize(place.size, kernel)
    if place.size == (form.width, form.height):
        return image
    middle = form.stored_middle
    if image.mode != "F":
        middle = (int(middle),) * len(image.getbands())
    padded = Image.new(image.mode, (form.width, form.height), middle)
    padded.paste(image, place.corner)
    return padded
