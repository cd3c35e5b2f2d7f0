"""Pictures of what a pipeline does: grids with labels, from fixed seeds, none picked by hand."""

from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont

from ..pipeline.masks import MASKS, draw_masks
from ..pipeline.pipeline import TASKS, MultiTaskPipeline
from ..tools.rng import generator
from ..tools.tensors import to_uint8, to_unit_range

Picture = Image.Image
_MARGIN, _TEXT = 4, 14  # pixels


def grid(
    rows: Sequence[Sequence[Picture | None]],
    row_labels: Sequence[str] = (),
    column_labels: Sequence[str] = (),
    cell: int = 64,
) -> Picture:
    """Images of one size in rows, enlarged to `cell` pixels without smoothing. None: left blank."""
    font = ImageFont.load_default(11)
    left = max((int(font.getlength(label)) for label in row_labels), default=0)
    left += 2 * _MARGIN if left else _MARGIN
    top = _TEXT + _MARGIN if column_labels else _MARGIN
    columns = max(len(row) for row in rows)
    pitch = cell + _MARGIN
    sheet = Image.new("RGB", (left + columns * pitch, top + len(rows) * pitch), "white")
    draw = ImageDraw.Draw(sheet)
    for j, label in enumerate(column_labels):
        center = left + j * pitch + cell // 2
        draw.text((center, _MARGIN // 2), label, fill="black", font=font, anchor="ma")
    for i, row in enumerate(rows):
        if i < len(row_labels):
            middle = top + i * pitch + cell // 2
            draw.text((_MARGIN, middle), row_labels[i], fill="black", font=font, anchor="lm")
        for j, image in enumerate(row):
            if image is not None:
                tile = image.resize((cell, cell), Image.Resampling.NEAREST)
                sheet.paste(tile, (left + j * pitch, top + i * pitch))
    return sheet


def side_by_side(pictures: Sequence[Picture]) -> Picture:
    """Pictures of any sizes in one row, their tops aligned."""
    gap = 4 * _MARGIN
    width = sum(picture.width + gap for picture in pictures) - gap
    sheet = Image.new("RGB", (width, max(picture.height for picture in pictures)), "white")
    left = 0
    for picture in pictures:
        sheet.paste(picture, (left, 0))
        left += picture.width + gap
    return sheet


def to_pictures(images: torch.Tensor) -> list[Picture]:
    """(B, 3, H, W) uint8 -> PIL images."""
    return [Image.fromarray(image) for image in images.permute(0, 2, 3, 1).cpu().numpy()]


def own_samples(pipe: MultiTaskPipeline, count: int, seed: int = 0) -> list[Picture]:
    """Sources for inpainting and editing that the model drew itself, of every class in turn."""
    random = generator(seed, "sources")
    labels = labels_in_turn(pipe, count)
    return pipe(task="generate", class_label=labels, generator=random).images


def labels_in_turn(pipe: MultiTaskPipeline, count: int) -> list[int | None]:
    """So many class labels, of every class in turn; None for a model without classes."""
    names = pipe.class_names
    return [i % len(names) if names else None for i in range(count)]


def generate_picture(pipe: MultiTaskPipeline, count: int = 10, seed: int = 0, **options) -> Picture:
    """A row for each class and one without a class, `count` samples each."""
    labels = [*pipe.class_names, None]
    images = pipe(
        task="generate",
        class_label=labels,
        num_images_per_prompt=count,
        generator=generator(seed, "generate"),
        **options,
    ).images
    rows = [images[i * count : (i + 1) * count] for i in range(len(labels))]
    return grid(rows, [label or "any" for label in labels])


def inpaint_picture(
    pipe: MultiTaskPipeline, sources: Sequence[Picture], seed: int = 0, **options
) -> Picture:
    """For each kind of mask: the original, what is left of it, and the result."""
    rows, labels = [], []
    for k, kind in enumerate(MASKS):
        random = generator(seed, "inpaint", kind)
        masks = draw_masks(2, pipe.size, random, kind)
        images = [sources[(2 * k + i) % len(sources)] for i in range(2)]
        results = pipe(
            task="inpaint", image=images, mask_image=masks, generator=random, **options
        ).images
        rows.append(
            [
                picture
                for image, mask, result in zip(images, masks, results, strict=True)
                for picture in (image, _masked(image, mask), result)
            ]
        )
        labels.append(kind)
    return grid(rows, labels, ["original", "masked", "result"] * 2)


def edit_picture(
    pipe: MultiTaskPipeline, sources: Sequence[Picture], seed: int = 0, **options
) -> Picture:
    """A row for each source: the source, and the source turned into each class."""
    rows = [
        [
            source,
            *pipe(
                task="edit",
                image=source,
                class_label=list(pipe.class_names),
                generator=generator(seed, "edit", i),
                **options,
            ).images,
        ]
        for i, source in enumerate(sources)
    ]
    return grid(rows, column_labels=["source", *pipe.class_names])


def task_picture(
    pipe: MultiTaskPipeline,
    task: str,
    sources: Sequence[Picture],
    labels: Sequence[int | None],
    seed: int,
) -> Picture:
    """One grid for any task: sources, what the network is shown of them, and the results.

    A task that needs a class gets the one after the source's own. A label may be None or negative,
    for no class.
    """
    spec = TASKS[task]
    takes = spec.required | spec.optional
    random = generator(seed, task, "picture")
    known = [None if label is None or label < 0 else label for label in labels]
    arguments = {"class_label": known}
    if "image" not in takes:
        images = pipe(task=task, generator=random, **arguments).images
        return grid([images], ["result"], _names(pipe, known))
    if "class_label" in spec.required:
        after = [0 if label is None else label + 1 for label in known]
        arguments["class_label"] = [label % len(pipe.class_names) for label in after]
    mask = torch.ones(len(sources), 1, pipe.size, pipe.size)
    if "mask_image" in spec.required:
        mask = arguments["mask_image"] = draw_masks(len(sources), pipe.size, random)
    results = pipe(task=task, image=list(sources), generator=random, **arguments).images
    pixels = torch.from_numpy(np.stack([np.asarray(source) for source in sources]))
    image = to_unit_range(pixels.permute(0, 3, 1, 2))
    strength = torch.full((len(sources),), spec.default_strength or 0.0)
    hint = spec.condition(image, mask, strength, torch.randn(image.shape, generator=random))
    shown = to_pictures(to_uint8(hint.image))
    names = _names(pipe, arguments["class_label"])
    return grid([list(sources), shown, results], ["source", "shown", "result"], names)


def _names(pipe: MultiTaskPipeline, labels: Sequence[int | None]) -> list[str]:
    return ["any" if label is None else pipe.class_names[label] for label in labels]


def _masked(image: Picture, mask: torch.Tensor) -> Picture:
    """The image with its hole in mid-grey; mask: (1, H, W), 1 = hole."""
    hole = Image.fromarray((mask[0].numpy() * 255).astype(np.uint8))
    return Image.composite(Image.new("RGB", image.size, (128, 128, 128)), image, hole)
