"""Samples of any task as files, PNG or .npy, shared by all processes.

Image i is drawn from (seed, i), so the images don't depend on the number of processes. Run again,
missing images are drawn.
"""

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import PartialState
from PIL import Image
from torch import Tensor
from tqdm.auto import tqdm

from ..data.decode import check_depth, read
from ..pipeline.format import ImageFormat
from ..pipeline.inputs import read_count, read_labels, read_masks
from ..pipeline.pipeline import MultiTaskPipeline
from ..tools.files import replaced_file, write_text
from ..tools.rng import generator
from ..tools.tensors import weights_digest

SETTINGS = "settings.json"
# Arguments that do not influence the images.
FREE = ("num_images", "output_dir", "device", "pipeline", "revision")
# Arguments of the pipeline that are the same for all images.
SAME = ("task", "strength", "guidance_scale", "image_guidance_scale", "guidance_interval")
SAME += ("num_inference_steps",)


def write_samples(pipe: MultiTaskPipeline, arguments: Mapping[str, Any], folder: Path) -> None:
    """Writes 00000.png, 00001.png, ...; batches are dealt to the processes in turn.

    Images that PNG does not hold are written as .npy, in the numbers of `output_type="np"`.

    Args:
        arguments: of mtl-diffusion sample; images and masks are the names of files.

    Raises:
        ValueError: one of them is refused, by the pipeline too, or the folder holds images of
            other settings. Nothing has been written then.
    """
    state, in_turn = PartialState(), _in_turn(pipe, arguments)
    suffix = "png" if pipe.format.pil_mode in ("L", "RGB", "RGBA", "I;16") else "npy"
    count = arguments["num_images"]
    if count is None:
        count = max(map(len, in_turn.values()), default=1)
    count = read_count(count, "num_images")
    size = read_count(arguments["batch_size"], "batch_size")
    settings = {k: v for k, v in arguments.items() if k not in FREE}
    settings["weights"] = weights_digest(pipe.unet)
    _check_settings(folder, settings)
    batches = [range(i, min(i + size, count)) for i in range(0, count, size)]
    mine = [
        numbers
        for numbers in batches[state.process_index :: state.num_processes]
        if not all(_file(folder, i, suffix).exists() for i in numbers)
    ]
    with tqdm(total=sum(map(len, mine)), unit="img", disable=not state.is_main_process) as progress:
        for numbers in mine:
            images = pipe(
                generator=[generator(arguments["seed"], i, device=pipe.device) for i in numbers],
                num_images_per_prompt=1 if in_turn else len(numbers),
                **{name: [v[i % len(v)] for i in numbers] for name, v in in_turn.items()},
                **{name: arguments[name] for name in SAME},
            ).images
            # Only after the first batch, because the pipeline may refuse an argument.
            folder.mkdir(parents=True, exist_ok=True)
            write_text(folder / SETTINGS, json.dumps(settings, indent=2) + "\n")
            for i, image in zip(numbers, images, strict=True):
                with replaced_file(_file(folder, i, suffix)) as part:
                    if suffix == "png":
                        image.save(part, format="PNG")
                    else:
                        with part.open("wb") as file:
                            np.save(file, np.asarray(image), allow_pickle=False)
            progress.update(len(numbers))
    state.wait_for_everyone()


def _in_turn(pipe: MultiTaskPipeline, arguments: Mapping[str, Any]) -> dict[str, list]:
    """The arguments of the pipeline whose entries are taken in turn, image by image."""
    classes = pipe.class_names
    labels = [  # numbers where no class has such a name
        int(text) if text.isdecimal() and text not in classes else text
        for text in arguments["class_label"] or []
    ]
    if labels:
        read_labels(labels, classes)
    images = [_source(path, pipe.format) for path in arguments["image"] or []]
    masks = [_mask(path, pipe.format) for path in arguments["mask_image"] or []]
    found = {"class_label": labels, "image": images, "mask_image": masks}
    return {name: values for name, values in found.items() if values}


@contextmanager
def _names(argument: str, path: str) -> Iterator[None]:
    """Adds both to an error: Pillow's decoders raise OSError, SyntaxError, struct.error and others.

    Raises:
        ValueError: in place of any.
    """
    try:
        yield
    except Exception as error:
        raise ValueError(f"{argument}: {path} can't be used: {error}") from error


def _source(path: str, form: ImageFormat) -> Tensor:
    """(C, H, W), read as training images are, but of the model's size already."""
    with _names("image", path):
        pixels, facts = read(Path(path).read_bytes(), form)
        check_depth(facts, form, path)
        form.check_size(*pixels.shape[:2], "it")
    return form.stored_as_array(torch.from_numpy(pixels.transpose(2, 0, 1).copy()))


def _mask(path: str, form: ImageFormat) -> Image.Image:
    with _names("mask_image", path), Image.open(path) as mask:
        mask.load()
        read_masks(mask, form)
    return mask


def _check_settings(folder: Path, settings: Mapping[str, Any]) -> None:
    path = folder / SETTINGS
    found = json.loads(path.read_text()) if path.exists() else settings
    # A flag that was added later is missing in the file: it had no value.
    if names := [name for name in settings if found.get(name) != settings[name]]:
        raise ValueError(
            f"output_dir: {folder} holds images of other settings ({', '.join(names)}); give "
            "another folder, or remove this one"
        )


def _file(folder: Path, number: int, suffix: str) -> Path:
    return folder / f"{number:05d}.{suffix}"
