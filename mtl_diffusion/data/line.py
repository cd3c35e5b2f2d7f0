"""One line about the data of a run."""

from typing import Any

from .columns import listed
from .images import ImageDataset
from .stream import ImageStream


def data_line(train: ImageDataset | ImageStream, held_out: ImageDataset, config: Any) -> str:
    """One line about the data: how many images and classes, from where, what was done to them, and
    what keeps more of them.

    Args:
        config: has `random_flip`, `balance_classes`, and `given`, the fields that are not to be
            suggested.
    """
    names, streamed = train.class_names, isinstance(train, ImageStream)
    classes = f"{len(names):,} class{'' if len(names) == 1 else 'es'}" if names else "no classes"
    # Of a stream the number is not known, nor the classes of its images.
    present = range(len(names)) if streamed else set(train.labels.tolist())
    if absent := [name for label, name in enumerate(names) if label not in present]:
        classes += f", {len(absent):,} of them without a training image: {listed(absent)}"
    if held_out.copies:
        classes += f", {held_out.copies:,} of the held-out images among the training images"
    words = [f"{train.where} ({train.split}; {held_out.split})"]
    words += _done("held-out", held_out, config) if streamed else _done("training", train, config)
    if config.random_flip:
        words.append("half of the training images are mirrored left to right (random_flip)")
    if config.balance_classes:
        words.append("all classes are drawn equally often (balance_classes)")
    images = "a stream of" if streamed else f"{len(train):,}"
    start = f"Data: {images} training and {len(held_out):,} held-out images, {classes}, from "
    return start + "; ".join(words)


def _done(kind: str, data: ImageDataset, config: Any) -> list[str]:
    """Words for how images were changed, and for fields that would change less."""
    form, facts, words = data.format, data.facts, []
    if fitted := facts["fitted"].sum():
        done = {"crop": "cropped", "pad": "padded", "stretch": "stretched"}[form.fit]
        size = f"{form.width}x{form.height}"
        words.append(f"{fitted:,} {kind} images {done} to the shape of {size} (image_fit)")
    if (form.mode, form.dtype) != ("RGB", "uint8") or not len(facts):
        return words
    # What is lost: field -> the value that keeps it.
    kinds, advice, count = "of 16 bits", {}, len(facts)
    if {"image_mode", "image_dtype"}.isdisjoint(config.given):
        if facts["grey"].all():
            kinds, advice["image_mode"] = "grey", "L"
        elif clear := facts["clear"].sum():
            kinds, advice["image_mode"], count = "with transparency", "RGBA", clear
    if (facts["peak"] > 0).all() and "image_dtype" not in config.given:
        advice["image_dtype"] = "uint16"
    if advice:
        fields = " and ".join(f"{field} to {value}" for field, value in advice.items())
        lost = f"{kinds} and read as RGB of 8 bits: set {fields} to keep that"
        words.append(f"{count:,} {kind} images are {lost}")
    return words
