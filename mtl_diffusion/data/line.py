"""One line about the data of a run."""

from collections.abc import Collection
from typing import Any

from .columns import listed
from .images import ImageDataset


def data_line(
    train: Any,
    held_out: ImageDataset,
    given: Collection[str] = (),
    *,
    random_flip: bool = False,
    balance_classes: bool = False,
) -> str:
    """One line about an ImageDataset or ImageStream: how many images and classes, from where, what
    was done to them, and what keeps more of them.

    Args:
        given: fields of the configuration that are not to be suggested.
        random_flip: images are mirrored. balance_classes: classes are drawn equally often.
    """
    names = train.class_names
    classes = f"{len(names):,} class{'' if len(names) == 1 else 'es'}" if names else "no classes"
    images = "a stream of"  # of which the number is not known, nor the classes of its images
    if isinstance(train, ImageDataset):
        images = f"{len(train):,}"
        if absent := train.absent_classes:
            classes += f", {len(absent):,} of them without a training image: {listed(absent)}"
    numbered = [
        f"class {number} is {name!r}"
        for number, name in enumerate(names)
        if name.isdecimal() and name != str(number)
    ]
    classes += f" ({listed(numbered)})" if numbered else ""
    if held_out.copies:
        classes += f", {held_out.copies:,} of the held-out images among the training images"
    words = _done(train, held_out, given)
    if random_flip:
        words.append("half of the training images are mirrored left to right (random_flip)")
    if balance_classes:
        words.append("all classes are drawn equally often (balance_classes)")
    return (
        f"Data: {images} training and {len(held_out):,} held-out images, {classes}, from "
        + "; ".join([f"{train.where} ({train.split}; {held_out.split})", *words])
    )


def _done(train: Any, held_out: ImageDataset, given: Collection[str]) -> list[str]:
    """Words for how images were changed, and for fields that would change less."""
    kind, seen = "training", train
    if not isinstance(train, ImageDataset):  # of a stream, the held-out images tell
        kind, seen = "held-out", held_out
    form, facts, words = seen.format, seen.facts, []
    if facts.fitted:
        done = {"crop": "cropped", "pad": "padded", "stretch": "stretched"}[form.fit]
        size = f"{form.width}x{form.height}"
        words.append(f"{facts.fitted:,} {kind} images {done} to the shape of {size} (image_fit)")
    if (form.mode, form.dtype) == ("RGB", "uint8") and facts.count:
        mode, advice = "", []
        if not {"image_mode", "image_dtype"} & {*given}:
            mode = "L" if facts.grey == facts.count else "RGBA" if facts.clear else ""
        if mode:
            advice.append(f"image_mode to {mode}")
        if facts.deep == facts.count and "image_dtype" not in given:
            advice.append("image_dtype to uint16")
        if advice:
            count = facts.clear if mode == "RGBA" else facts.count
            kinds = {"L": "grey", "RGBA": "with transparency"}.get(mode, "of 16 bits")
            words.append(
                f"{count:,} {kind} images are {kinds} and read as RGB of 8 bits: set "
                f"{' and '.join(advice)} to keep that"
            )
    return words
