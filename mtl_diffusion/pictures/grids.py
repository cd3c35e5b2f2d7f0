"""Labelled grids of images: samples of each task, from fixed seeds, none picked by hand."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont

from ..classifiers.classifier import Classifier
from ..pipeline.format import ImageFormat
from ..pipeline.inputs import read_images
from ..pipeline.masks import draw_masks
from ..pipeline.pipeline import MultiTaskPipeline
from ..tools.rng import generator

Picture = Image.Image
Source = Picture | np.ndarray | torch.Tensor  # an image as a pipeline takes it or gives it
LIMIT = 2000  # pixels: no row of pictures is wider or higher
ROWS, SAMPLES = 10, 10  # samples in a row; classes of edits, at most, are ROWS too
CANDIDATES = 16  # samples of a class, of which a classifier chooses one
HOLES = ("center", "half", "boxes", "strokes", "border")  # two of them a row, in turn
_MARGIN, _TEXT, _SQUARE = 4, 14, 6  # pixels
_FONT = ImageFont.load_default(11)


def grid(
    rows: Sequence[Sequence[Source | None]],
    row_labels: Sequence[str] = (),
    column_labels: Sequence[str] = (),
    cell: int = 64,
    margin: int = _MARGIN,
    form: ImageFormat | None = None,
) -> Picture:
    """Images of one size in rows, scaled to `cell` pixels, `margin` apart. None: left blank.

    Transparency is drawn over a chequered ground. `form` is the format of images that are not
    pictures of 8 bits. Labels that are too long are cut.
    """
    row_labels = [_cut(label, 2 * cell) for label in row_labels]
    left = max((int(_FONT.getlength(label)) for label in row_labels), default=0)
    left += 2 * _MARGIN if left else margin
    top = _TEXT + _MARGIN if column_labels else margin
    columns = max(len(row) for row in rows)
    pitch = cell + margin
    sheet = Image.new("RGB", (left + columns * pitch, top + len(rows) * pitch), "white")
    draw = ImageDraw.Draw(sheet)
    for j, label in enumerate(column_labels):
        center = left + j * pitch + cell // 2
        place = (center, _MARGIN // 2)
        draw.text(place, _cut(label, cell), fill="black", font=_FONT, anchor="ma")
    for i, row in enumerate(rows):
        if i < len(row_labels):
            middle = top + i * pitch + cell // 2
            draw.text((_MARGIN, middle), row_labels[i], fill="black", font=_FONT, anchor="lm")
        for j, image in enumerate(row):
            if image is not None:
                image = picture(image, form)
                longer = max(image.size)
                kernel = Image.Resampling.NEAREST if longer <= cell else Image.Resampling.LANCZOS
                size = [max(1, round(side * cell / longer)) for side in image.size]
                x, y = ((cell - side) // 2 for side in size)
                tile = _on_squares(image.resize(size, kernel))
                sheet.paste(tile, (left + j * pitch + x, top + i * pitch + y))
    return sheet


def _on_squares(image: Picture) -> Picture:
    """Over a ground of light squares, where it is transparent."""
    if image.mode != "RGBA":
        return image
    y, x = np.indices(image.size[::-1]) // _SQUARE
    ground = np.where((x + y) % 2, 255, 204).astype(np.uint8)
    return Image.alpha_composite(Image.fromarray(ground).convert("RGBA"), image).convert("RGB")


def picture(image: Source, form: ImageFormat | None) -> Picture:
    """An image as it is drawn: RGB, or RGBA where it has transparency, of 8 bits."""
    if isinstance(image, Image.Image) and image.mode in ("L", "RGB", "RGBA"):
        return image.convert("RGB") if image.mode == "L" else image
    pixels, frame = read_images(image, form)
    pixels = form.from_array(pixels)
    if form.mode != "RGBA":
        pixels = form.rgb(pixels)
    pixels = ((pixels + 1) * 127.5).round().to(torch.uint8)[0].permute(1, 2, 0)
    inside = frame[0, 0] > 0  # reading may have added padding
    return Image.fromarray(pixels[inside.any(1)][:, inside.any(0)].numpy())


def side_by_side(pictures: Sequence[Picture]) -> Picture:
    """Pictures in one row, their tops aligned; at most `LIMIT` pixels wide and high."""
    gap = 4 * _MARGIN
    width = sum(picture.width + gap for picture in pictures) - gap
    sheet = Image.new("RGB", (width, max(picture.height for picture in pictures)), "white")
    left = 0
    for picture in pictures:
        sheet.paste(picture, (left, 0))
        left += picture.width + gap
    sheet.thumbnail((LIMIT, LIMIT), Image.Resampling.LANCZOS)  # does nothing to smaller ones
    return sheet


def _cut(label: str, width: int) -> str:
    """The label, or as much of its beginning as fits into `width` pixels."""
    label = " ".join(label.split())
    if _FONT.getlength(label) <= width:
        return label
    kept = next(n for n in range(len(label), -1, -1) if _FONT.getlength(label[:n] + "…") <= width)
    return label[:kept] + "…"


def to_pictures(images: torch.Tensor, form: ImageFormat) -> list[Picture]:
    """(B, C, H, W) as they are stored -> PIL images as they are drawn."""
    return [picture(image, form) for image in form.stored_as_array(images.cpu())]


def pictures_of(
    pipe: MultiTaskPipeline, sources: Sequence[Source] = (), seed: int = 0, **options
) -> dict[str, Picture]:
    """A picture of each task that the model has learned. First seeds, nothing is picked.

    Args:
        sources: images to inpaint and edit, of which `ROWS` are taken. Without any: samples of the
            model, of every class in turn; grey images if it has not learned to generate.
        options: further arguments of the pipeline.
    """
    form, count = pipe.format, len(pipe.class_names)
    small = {"cell": 48, "margin": 2}
    how = {"form": form, **small}
    labels = [i % count if count else None for i in range(ROWS)]  # of every class in turn
    samples = [form.stored_as_array(torch.full(form.shape, form.stored_middle))] * (ROWS * SAMPLES)
    if "generate" in pipe.tasks:
        given = {"class_label": [label for label in labels for _ in range(SAMPLES)]}
        given["generator"] = generator(seed, "sources")
        samples = pipe(task="generate", **given, **options).images
    if sources:
        sources, labels_of_sources = sources[:ROWS], [None] * len(sources)
    else:
        sources, labels_of_sources = samples[::SAMPLES], labels
    found = {}
    for task in pipe.tasks:
        random = generator(seed, task)
        if task == "generate":
            rows = [samples[i : i + SAMPLES] for i in range(0, len(samples), SAMPLES)]
            found[task] = grid(rows, _names(pipe, labels), ["samples"], **how)
        elif task == "inpaint":
            found[task] = _holes(pipe, sources, seed, random, how, options)
        elif task == "edit":
            found[task] = _edits(pipe, sources, random, how, options)
        else:
            given = (task, sources, labels_of_sources, seed)
            found[task] = task_picture(pipe, *given, options, **small)
    return found


def surest_samples(
    pipe: MultiTaskPipeline, classifier: Classifier, seed: int = 0, **options
) -> list[Source]:
    """A sample of each class in turn, `ROWS` in all, as sources of `pictures_of`.

    Of the first `CANDIDATES` samples of the class it is the one that the classifier is surest of.

    Args:
        classifier: of images of the model's size and classes.
        options: further arguments of the pipeline.
    """
    form, found = pipe.format, []
    for name in pipe.class_names[:ROWS]:
        given = {"class_label": name, "num_images_per_prompt": CANDIDATES}
        given["generator"] = generator(seed, "candidates", name)
        images = pipe(task="generate", output_type="pt", **given, **options).images
        logits = classifier(form.rgb(form.from_array(images)))
        place = classifier.class_names.index(name)
        found.append(images[logits.log_softmax(1)[:, place].argmax()])
    return [found[i % len(found)] for i in range(ROWS)]


def _holes(pipe, sources, seed, random, how, options) -> Picture:
    """A row for each source, which gets two kinds of holes, each shown before and after."""
    kinds = [HOLES[i % len(HOLES)] for i in range(2 * len(sources))]
    masks = [
        draw_masks(1, pipe.format.size, generator(seed, i // 2, kind), kind)[0]
        for i, kind in enumerate(kinds)
    ]
    images = [source for source in sources for _ in range(2)]
    given = {"image": images, "mask_image": torch.stack(masks), "generator": random}
    results = pipe(task="inpaint", **given, **options).images
    cells = [
        cell
        for image, mask, result in zip(images, masks, results, strict=True)
        for cell in (_masked(picture(image, pipe.format), mask), result)
    ]
    rows = [cells[i : i + 4] for i in range(0, len(cells), 4)]
    return grid(rows, column_labels=["hole", "filled"] * 2, **how)


def _edits(pipe, sources, random, how, options) -> Picture:
    """A row for each source: the source, and its edits into each class, `ROWS` at most."""
    names = pipe.class_names[:ROWS]
    images = [source for source in sources for _ in names]
    given = {"image": images, "class_label": list(names) * len(sources), "generator": random}
    results = pipe(task="edit", **given, **options).images
    rows = [
        [source, *results[i * len(names) : (i + 1) * len(names)]]
        for i, source in enumerate(sources)
    ]
    return grid(rows, column_labels=["source", *names], **how)


def task_picture(
    pipe: MultiTaskPipeline,
    task: str,
    sources: Sequence[Source],
    labels: Sequence[int | None],
    seed: int,
    options: Mapping[str, Any] = {},
    **how,
) -> Picture:
    """One grid for any task: sources, what the network is shown of them, and the results.

    A task that needs a class gets the one after the source's own, and one that takes none gets
    none. A label may be None or negative, for no class.

    Args:
        options: further arguments of the pipeline.
        how: further arguments of `grid`.
    """
    spec, form = pipe.spec(task), pipe.format
    takes = spec.required | spec.optional
    random = generator(seed, task, "picture")
    known = [None if label is None or label < 0 else label for label in labels]
    if "class_label" in spec.required:
        after = [0 if label is None else label + 1 for label in known]
        known = [label % len(pipe.class_names) for label in after]
    names = _names(pipe, known)
    arguments = {"class_label": known} if "class_label" in takes else {}
    if "image" not in takes:
        several = {} if arguments else {"num_images_per_prompt": len(known)}
        images = pipe(task=task, generator=random, **arguments, **several, **options).images
        return grid([images], ["result"], names, form=form, **how)
    mask = torch.ones(len(sources), 1, *form.size)
    if "mask_image" in spec.required:
        mask = arguments["mask_image"] = draw_masks(len(sources), pipe.format.size, random)
    arguments |= {"image": list(sources), "generator": random}
    results = pipe(task=task, **arguments, **options).images
    image, frame = read_images(list(sources), form)
    image = form.from_array(image)
    strength = torch.full((len(sources),), spec.default_strength or 0.0)
    hint = spec.condition(image, mask, strength, torch.randn(image.shape, generator=random))
    shown = to_pictures(form.to_stored(hint.within(frame, image).image), form)
    rows = list(zip(sources, shown, results, strict=True))
    return grid(rows, names, ["source", "shown", "result"], form=form, **how)


def _names(pipe: MultiTaskPipeline, labels: Sequence[int | None]) -> list[str]:
    """For each image, or none at all where no image has a class."""
    if all(label is None for label in labels):
        return []
    return ["any" if label is None else pipe.class_names[label] for label in labels]


def _masked(image: Picture, mask: torch.Tensor) -> Picture:
    """The image with its hole in mid-grey; mask: (1, H, W), 1 = hole."""
    hole = Image.fromarray((mask[0].numpy() * 255).astype(np.uint8))
    left, top = ((a - b) // 2 for a, b in zip(hole.size, image.size, strict=True))
    hole = hole.crop((left, top, left + image.width, top + image.height))  # without padding
    grey = Image.new("RGB", image.size, (128, 128, 128)).convert(image.mode)
    return Image.composite(grey, image, hole)
