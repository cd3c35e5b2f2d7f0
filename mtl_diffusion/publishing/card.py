"""The model card: model_card.md, filled in with the model's facts and its measured figures."""

import json
import shlex
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from string import Template
from typing import Any

from huggingface_hub import ModelCardData

from .. import __version__
from ..checkpoints.resume import MAY_CHANGE, SOURCES
from ..config import TrainConfig, to_dict
from ..pipeline.pipeline import MultiTaskPipeline
from .results import tables
from .upload import signed

# A template with $names. The file at the top of the repository is its source.
TEMPLATE = Path(__file__).with_name("model_card.md")
BUILT_IN = "shapes"
PIPELINE = "pipeline"  # the folder of a run's export
GALLERY = (
    "![Samples of the model in each of its tasks]({})\n\n"
    "*Each task, on samples of the model itself, of which none was picked by hand.*\n"
)
MOST_CLASSES = 20  # that a card lists
TAGS = ("diffusers", "multi-task", "inpainting", "image-editing", "image-generation")


@dataclass(frozen=True)
class Trained:
    """A trained model, with the facts for its card.

    Attributes:
        step: optimiser steps that were done.
        minutes: of training, by hardware; empty if they were not noted.
        on_hub: those of the configuration's `SOURCES` that are names on the Hub.
    """

    pipeline: MultiTaskPipeline
    config: TrainConfig
    step: int
    minutes: Mapping[str, float] = field(default_factory=dict)
    on_hub: Collection[str] = ()

    def hub_name(self, source: str) -> str | None:
        """The value of a field of `SOURCES`, if it is a name on the Hub."""
        name = getattr(self.config, source)
        return name if source in self.on_hub and name != BUILT_IN else None


def model_card(
    trained: Trained,
    source: str,
    metrics: Mapping[str, Any] | None = None,
    picture: str | None = None,
) -> str:
    """The card as Markdown with its YAML header, signed.

    Args:
        source: the name that the snippet loads: user/name on the Hub, or a folder.
        metrics: metrics.json of mtl-diffusion evaluate. Every measured figure is from there.
        picture: file name of the gallery beside the card.

    Raises:
        ValueError: `metrics` are not those of mtl-diffusion evaluate.
    """
    pipe, config = trained.pipeline, trained.config
    name = source.rpartition("/")[2]
    if name == PIPELINE:  # a run's own export, which has no name of its own
        name = config.repository.rpartition("/")[2]
    dataset, built_in = trained.hub_name("dataset_name"), config.dataset_name == BUILT_IN
    data = "the shapes that mtl_diffusion draws" if built_in else "images of a local folder"
    header = ModelCardData(
        license="apache-2.0",
        library_name="diffusers",
        pipeline_tag="image-to-image",
        tags=[*TAGS, *(["class-conditional"] if pipe.class_names else [])],
        datasets=[dataset] if dataset else None,
        base_model=trained.hub_name("pretrained_model_name_or_path"),
    )
    form = pipe.format
    given = "" if form.value_range is None else ", {:g} to {:g}".format(*form.value_range)
    spent = " and ".join(f"{n:,.1f} minutes on {where}" for where, n in trained.minutes.items())
    text = Template(TEMPLATE.read_text(encoding="utf-8")).substitute(
        header=header.to_yaml(),
        name=name,
        tasks=", ".join(f"`{task}`" for task in pipe.tasks),
        images=form.words + given,
        classes=_classes(pipe.class_names),
        parameters=f"{sum(p.numel() for p in pipe.unet.parameters()) / 1e6:.1f}",
        dataset=f"`{dataset}`" if dataset else data,
        base=_base(trained),
        gallery=GALLERY.format(picture) if picture else "",
        snippet=snippet(pipe, source),
        steps=f"{trained.step:,}",
        batch_size=config.total_batch_size,
        samples=f"{trained.step * config.total_batch_size:,}",
        proportions=", ".join(f"{task} {share:.0%}" for task, share in config.shares.items()),
        minutes=f" Training took {spent}, validation included." if spent else "",
        command=training_command(trained),
        results=tables(metrics) if metrics else "Nothing was measured of this model.",
        version=__version__,
    )
    return signed(text)


def _base(trained: Trained) -> str:
    if trained.config.pretrained_model_name_or_path is None:
        return ""
    name = trained.hub_name("pretrained_model_name_or_path")
    base = f"`{name}`" if name else "a pipeline in a local folder"
    if (chains := trained.pipeline.chains) is None:
        return f" It was fine-tuned from {base}."
    counts = ", ".join(str(len(levels)) for levels in chains)
    if "edit" in trained.pipeline.tasks and trained.pipeline.spec("edit").at_once:
        counts += f" (of an edit {' or '.join(map(str, trained.pipeline.step_counts('edit')))})"
    return (
        f" It was distilled from {base} to sample in few steps: `num_inference_steps` is one of "
        f"{counts}, a step costs one evaluation, and guidance is built in."
    )


def _classes(names: Collection[str]) -> str:
    if not names:
        return "It has no classes: its training images had no labels."
    shown = ", ".join(" ".join(name.split()) for name in list(names)[:MOST_CLASSES])
    more = len(names) - MOST_CLASSES
    return f"Classes: {shown}{f', and {more} more' if more > 0 else ''}."


def training_command(trained: Trained) -> str:
    """The command that trains such a model: all that differs from the defaults and matters.

    The names of local folders are shortened: they are of no use to others.
    """
    values, defaults = to_dict(trained.config), to_dict(TrainConfig())
    inputs = {*SOURCES, "alignment_classifier", "feature_classifier", "teacher_model_name_or_path"}
    unimportant = MAY_CHANGE - inputs - {"max_train_steps", "mixed_precision"}
    values = {name: value for name, value in values.items() if name not in unimportant}
    for name in inputs:
        value = getattr(trained.config, name)
        if value and value != BUILT_IN and not (name in SOURCES and trained.hub_name(name)):
            values[name] = f"path/to/{Path(value).name}"
    flags = [
        f"--{name} {shlex.quote(value if isinstance(value, str) else json.dumps(value))}"
        for name, value in values.items()
        if value != defaults[name]
    ]
    return " \\\n    ".join(["mtl-diffusion train", *flags])


def snippet(pipe: MultiTaskPipeline, source: str) -> str:
    """Python that loads the pipeline and does each of its tasks; it runs as it stands.

    A task gets what it requires. Those that need no image come first: the first of them draws the
    image of the others.
    """
    form, (height, width) = pipe.format, pipe.format.size
    names = [_literal(name) for name in pipe.class_names]
    tasks = [
        task for task in map(pipe.spec, pipe.tasks) if names or "class_label" not in task.required
    ]
    tasks.sort(key=lambda task: "image" in task.required)
    required, lines = set().union(*(task.required for task in tasks)), []
    if "mask_image" in required:
        lines.append(f"mask = np.zeros(({height}, {width}))  # 0 is kept, byte for byte")
        lines.append(f"mask[:, :{width // 2}] = 1  # 1 is repainted")
    if all("image" in task.required for task in tasks):
        shape = f"({height}, {width}, {form.channels})"
        lines.append(f"image = np.full({shape}, {form.array_range[0]})  # yours")
    imports = ["import numpy as np"] if lines else []
    for i, task in enumerate(tasks):
        has_image = "image" in task.required
        given = {"image": "image", "mask_image": "mask", "strength": task.default_strength}
        given |= {"image_guidance_scale": 1.5}
        given = {name: value for name, value in given.items() if name in task.required}
        takes = task.required if has_image else task.required | task.optional
        if names and "class_label" in takes:  # that of an edit is not that of its source
            given["class_label"] = names[0 if has_image else -1]
        call = "".join(f", {name}={value}" for name, value in given.items())
        result = f"{task.name}_image" if i or has_image else "image"
        lines.append(f'{result} = pipe(task="{task.name}"{call}).images[0]')
    load = f"DiffusionPipeline.from_pretrained({_literal(source)}, trust_remote_code=True)"
    imports += ["from diffusers import DiffusionPipeline", "", f"pipe = {load}", ""]
    return "\n".join(imports + lines)


def _literal(text: str) -> str:
    """A text as a Python literal in double quotes."""
    return json.dumps(text, ensure_ascii=False).encode("utf-8", "backslashreplace").decode()
