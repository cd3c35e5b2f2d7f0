"""Samples of any task as PNG files, shared by all processes.

Image i is drawn from (seed, i), so the images don't depend on the number of processes. Run again,
missing images are drawn.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from accelerate import PartialState
from PIL import Image
from tqdm.auto import tqdm

from ..data.columns import DataError
from ..data.decode import Encoded, check_depth, decode
from ..pipeline.inputs import read_count, read_images, read_labels, read_masks
from ..pipeline.pipeline import MultiTaskPipeline
from ..tools.files import replaced_file, write_text
from ..tools.rng import generator
from .bulk import weights_digest

SETTINGS = "settings.json"
# Arguments that do not influence the images.
FREE = ("num_images", "output_dir", "device", "pipeline", "revision")
# Arguments of the pipeline that are the same for all images.
SAME = (
    *("task", "strength", "guidance_scale", "image_guidance_scale", "guidance_interval"),
    *("num_inference_steps", "num_inversion_steps"),
)


@dataclass(frozen=True)
class Request:
    """The samples that are requested.

    Attributes:
        in_turn: arguments of the pipeline whose entries are taken in turn, image by image.
        same: its other arguments.
        mask_share: of the pixels in the mask of each image's class; None: no such mask.
        count: images.
        batch_size: images at a time.
        settings: everything that the images depend on, as JSON.
    """

    in_turn: Mapping[str, Sequence[Any]]
    same: Mapping[str, Any]
    mask_share: float | None
    count: int
    batch_size: int
    seed: int
    settings: Mapping[str, Any]

    @property
    def batches(self) -> list[range]:
        size = self.batch_size
        return [range(i, min(i + size, self.count)) for i in range(0, self.count, size)]


def read_request(pipe: MultiTaskPipeline, arguments: Mapping[str, Any]) -> Request:
    """Reads the arguments of mtl-diffusion sample, and the images that they name.

    Raises:
        ValueError: one of them is refused; the message names it.
    """
    in_turn = {
        **{
            name: _labels(arguments[name], pipe.class_names, name)
            for name in ("class_label", "source_class")
        },
        "image": _sources(arguments["image"], pipe.size),
        "mask_image": _masks(arguments["mask_image"], pipe.size),
    }
    in_turn = {name: values for name, values in in_turn.items() if values}
    masked = {"class_label", "image"}
    if arguments["mask_share"] is not None and in_turn.keys() - {"source_class"} != masked:
        raise ValueError("mask_share needs class_label and image, and takes no mask_image")
    count = arguments["num_images"]
    if count is None:
        count = max(map(len, in_turn.values()), default=1)
    return Request(
        in_turn,
        {name: arguments[name] for name in SAME},
        arguments["mask_share"],
        read_count(count, "num_images"),
        read_count(arguments["batch_size"], "batch_size"),
        arguments["seed"],
        {
            "weights": weights_digest(pipe.unet),
            **{name: value for name, value in arguments.items() if name not in FREE},
        },
    )


def _labels(given: Sequence[str] | None, classes: Sequence[str], name: str) -> list[str | int]:
    """Names of classes, or numbers where no class has such a name."""
    labels = [
        int(label) if label.isdecimal() and label not in classes else label for label in given or []
    ]
    if labels:
        read_labels(labels, classes, name)
    return labels


def _sources(paths: Sequence[str] | None, size: int) -> list[Image.Image]:
    """Decoded as training images are, but of the model's size already."""
    images = []
    for path in paths or []:
        _open(path, size, "image")
        try:
            image, peak = decode(Encoded(None, path, path), size)
            check_depth(peak, path)
        except DataError as error:
            raise ValueError(f"image: {path} can't be used: {error.__cause__ or error}") from error
        read_images(image, size)
        images.append(image)
    return images


def _masks(paths: Sequence[str] | None, size: int) -> list[Image.Image]:
    masks = [_open(path, size, "mask_image") for path in paths or []]
    for path, mask in zip(paths or [], masks, strict=True):
        try:
            read_masks(mask, size)
        except ValueError as error:
            raise ValueError(f"mask_image: {path} can't be used: {error}") from error
    return masks


def _open(path: str, size: int, name: str) -> Image.Image:
    if not Path(path).is_file():
        raise ValueError(f"{name}: there is no file {path}")
    try:
        image = Image.open(path)
        image.load()
    except Exception as error:  # Pillow's decoders raise OSError, SyntaxError, struct.error, ...
        raise ValueError(f"{name}: {path} can't be read as an image: {error}") from error
    if image.size != (size, size):
        width, height = image.size
        raise ValueError(
            f"{name}: {path} is {width}x{height} pixels; this model takes {size}x{size}: resize it"
        )
    return image


def draw(pipe: MultiTaskPipeline, request: Request, numbers: range) -> list[Image.Image]:
    """The images of these numbers."""
    own = {name: [v[i % len(v)] for i in numbers] for name, v in request.in_turn.items()}
    if request.mask_share is not None:
        random = [generator(request.seed, "mask", i, device=pipe.device) for i in numbers]
        own["mask_image"] = pipe.generate_mask(
            own["image"], own["class_label"], request.mask_share, random
        )
    return pipe(
        generator=[generator(request.seed, i, device=pipe.device) for i in numbers],
        **own,
        **({} if request.in_turn else {"num_images_per_prompt": len(numbers)}),
        **request.same,
    ).images


def write_samples(pipe: MultiTaskPipeline, request: Request, folder: Path) -> None:
    """Writes 00000.png, 00001.png, ...; batches are dealt to the processes in turn.

    Raises:
        ValueError: the folder holds images of other settings, or the pipeline refuses an argument.
            Nothing has been written then.
    """
    state = PartialState()
    _check_settings(folder, request.settings)
    mine = [
        numbers
        for numbers in request.batches[state.process_index :: state.num_processes]
        if not all(_file(folder, i).exists() for i in numbers)
    ]
    with tqdm(total=sum(map(len, mine)), unit="img", disable=not state.is_main_process) as progress:
        for numbers in mine:
            drawn = draw(pipe, request, numbers)
            # Only after the first batch, because the pipeline may refuse an argument.
            folder.mkdir(parents=True, exist_ok=True)
            write_text(folder / SETTINGS, json.dumps(request.settings, indent=2) + "\n")
            for i, image in zip(numbers, drawn, strict=True):
                with replaced_file(_file(folder, i)) as part:
                    image.save(part, format="PNG")
            progress.update(len(numbers))
    state.wait_for_everyone()


def _check_settings(folder: Path, settings: Mapping[str, Any]) -> None:
    path = folder / SETTINGS
    if not path.exists():
        return
    found = json.loads(path.read_text())
    # A flag that was added later is missing in the file: it had no value.
    if names := [name for name in settings if found.get(name) != settings[name]]:
        raise ValueError(
            f"output_dir: {folder} holds images of other settings ({', '.join(names)}); give "
            "another folder, or remove this one"
        )


def _file(folder: Path, number: int) -> Path:
    return folder / f"{number:05d}.png"
