"""An uploaded file as pixels: read as training reads the images of a dataset."""

from PIL import Image, UnidentifiedImageError

from ..pipeline.rgb import read_rgb

MOST_PIXELS = 50_000_000  # of an upload: a small file can hold more than the memory does


def read_file(file, alpha: bool = False) -> Image.Image:
    """The first frame of a picture as RGB of 8 bits.

    Args:
        file: a path, or an open file.
        alpha: give RGBA, and leave transparency as it is.

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
            return read_rgb(image, alpha)
    except UnidentifiedImageError as error:
        raise ValueError(
            "This file can't be read as a picture; give a PNG or a JPEG, for example."
        ) from error
    except (OSError, SyntaxError, Image.DecompressionBombError) as error:
        raise ValueError(f"This picture is damaged or too large ({error}).") from error
