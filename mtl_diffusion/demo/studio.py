"""The page's calls of the pipeline: pictures of any size and plain numbers in, pictures out."""

from collections.abc import Sequence
from functools import cached_property
from uuid import uuid4

import torch
from PIL import Image, ImageChops

from ..pipeline.rgb import read_rgb

MAX_SEED = 2**31 - 1
SHOWN = 384  # pixels: the least that a picture is enlarged to, to be looked at and painted on
STRENGTH_STEPS = (-0.2, -0.1, 0.0, 0.1, 0.2)  # an edit is shown at these, around the one asked for


class Studio:
    """What the page asks a pipeline for."""

    def __init__(self, pipe):
        """pipe: a `MultiTaskPipeline`."""
        pipe.set_progress_bar_config(disable=True)
        self.pipe = pipe
        self.class_names = pipe.class_names
        height, width = pipe.format.size
        self.size = (width, height)
        times = -(-SHOWN // max(self.size))  # of a picture that is enlarged
        self.side = (width * times, height * times)
        # A browser has no images of several bands, or of more than 8 bits: these are only drawn.
        self.reads = pipe.format.pil_mode is not None and pipe.format.dtype == "uint8"
        self.tasks = tuple(task for task in pipe.tasks if self.reads or task == "generate")

    def draw(
        self,
        task: str,
        number: float,
        class_label: str | int | None,
        seed: int | None,
        steps: int,
        guidance_scale: float | None = None,
        image: Image.Image | None = None,
        layers: Sequence[Image.Image] = (),
    ) -> list[tuple[Image.Image, str]]:
        """The pictures of a task with their captions, after its source if it has one.

        Args:
            number: of images, each from a seed of its own. For edit it is the strength: that one
                and those around it are drawn, all from the same noise.
            class_label: a class's name or number, or None for any.
            seed: 0 to `MAX_SEED`. Image i is drawn from seed + i.
            steps: evaluations of the denoiser.
            guidance_scale: how much more the class counts; 1 is off. None: the task's default.
            image: the source of inpaint and edit, of any size and mode.
            layers: for inpaint; RGBA, of the image's shape, opaque where it is painted over.

        Raises:
            ValueError: something is missing or out of range; for the page to show.
        """
        if seed is None or not 0 <= seed <= MAX_SEED:
            raise ValueError(f"The seed is {seed}; give a whole number from 0 to {MAX_SEED}.")
        given, first = {}, []
        if task != "generate":
            given["image"] = source = self.fit(image)
            first = [(source, "source")]
        if task == "inpaint":
            given["mask_image"] = mask = hole(layers, self.size)
            grey = Image.new("RGB", source.size, "gray").convert(source.mode)
            first = [(Image.composite(grey, source, mask), "given")]
        if task == "edit":
            if class_label is None:
                raise ValueError("Choose the class that the picture is to be turned into.")
            strengths = sorted({min(max(round(number + d, 2), 0.0), 1.0) for d in STRENGTH_STEPS})
            given["strength"], seeds = strengths, [seed] * len(strengths)
            captions = [f"strength {value:g}" for value in strengths]
        else:
            given["num_images_per_prompt"], seeds = number, [seed + i for i in range(number)]
            captions = [f"seed {seed}" for seed in seeds]
        images = self.pipe(
            task=task,
            class_label=class_label,
            num_inference_steps=steps,
            guidance_scale=guidance_scale,
            generator=[torch.Generator().manual_seed(seed) for seed in seeds],
            output_type="pil" if self.reads else "pt",
            **given,
        ).images
        if not self.reads:
            form = self.pipe.format
            shown = ((form.rgb(form.from_array(images)) + 1) * 127.5).round().to(torch.uint8)
            images = [Image.fromarray(image) for image in shown.cpu().permute(0, 2, 3, 1).numpy()]
        return [*first, *zip(images, captions, strict=True)]

    @cached_property
    def examples(self) -> list[Image.Image]:
        """A sample of each class, or a few without one; drawn when it is first asked for."""
        names = list(self.class_names[:10])
        return self.pipe(
            task="generate",
            class_label=names or None,
            num_images_per_prompt=1 if names else 6,
            generator=torch.Generator().manual_seed(0),
        ).images

    def fit(self, image: Image.Image | None) -> Image.Image:
        """The middle of it, as `read_rgb` reads it, in the model's mode and size.

        It inverts `enlarged` exactly.

        Raises:
            ValueError: there is none.
        """
        if image is None:
            raise ValueError("There is no picture yet: upload a PNG or a JPEG, or take an example.")
        mode = self.pipe.format.mode
        image = middle(read_rgb(image, alpha=mode == "RGBA"), self.size).convert(mode)
        small = image.resize(self.size, Image.Resampling.NEAREST)
        if small.resize(image.size, Image.Resampling.NEAREST).tobytes() == image.tobytes():
            return small
        return image.resize(self.size, Image.Resampling.LANCZOS)

    def enlarged(self, image: Image.Image) -> Image.Image:
        """Every pixel as a square of pixels, so that the picture can be seen."""
        shown = image.resize(self.side, Image.Resampling.NEAREST)
        # gradio names a file after its content, and writes it again while a browser may be reading.
        shown.info["id"] = uuid4().hex
        return shown


def read_file(file, alpha: bool = False) -> Image.Image:
    """The first frame of an uploaded picture as RGB of 8 bits, as training reads a dataset's.

    Args:
        file: a path, or an open file.
        alpha: give RGBA, and leave transparency as it is.

    Raises:
        ValueError: it can't be read, or has more pixels than Pillow takes; for the page to show.
    """
    try:
        with Image.open(file) as image:
            image.load()
            return read_rgb(image, alpha)
    except (OSError, SyntaxError, Image.DecompressionBombError) as error:
        raise ValueError(
            "This file can't be read: it is no picture, damaged or too large. Give a PNG or a JPEG."
        ) from error


def middle(image: Image.Image, shape: tuple[int, int]) -> Image.Image:
    """The largest part in the middle that has the shape of this width and height."""
    width = min(image.width, max(1, round(image.height * shape[0] / shape[1])))
    height = min(image.height, max(1, round(image.width * shape[1] / shape[0])))
    left, top = (image.width - width) // 2, (image.height - height) // 2
    return image.crop((left, top, left + width, top + height))


def hole(layers: Sequence[Image.Image], size: tuple[int, int]) -> Image.Image:
    """White where at least half of a pixel of the model is painted over; mode L.

    Args:
        layers: any size; as of a picture, the middle counts.
        size: width and height.

    Raises:
        ValueError: nowhere.
    """
    mask = Image.new("L", size, 0)
    for layer in layers:
        alpha = middle(layer.convert("RGBA").getchannel("A"), size)
        mask = ImageChops.lighter(mask, alpha.resize(size, Image.Resampling.BOX))
    mask = mask.point(lambda value: 255 if value >= 128 else 0)
    if mask.getbbox() is None:
        raise ValueError("Nothing is painted over yet: paint over what is to be replaced.")
    return mask
