"""The model card: model_card.md filled in with what a model is and what was measured of it."""

from collections.abc import Iterator, Mapping
from numbers import Real
from pathlib import Path
from string import Template
from typing import Any

import yaml

from .. import __version__
from ..config import TrainConfig
from ..pipeline.pipeline import TASKS, MultiTaskPipeline

# A template with $names. Here it is a link to the file at the top of the repository.
TEMPLATE = Path(__file__).with_name("model_card.md")
BUILT_IN = "shapes"
_KINDS = {"generate": "unconditional-image-generation"}  # the Hub's names for tasks
_SETTINGS = ("n", "seed", "guidance_scale", "seconds", "num_images", "num_inference_steps")


def model_card(
    pipe: MultiTaskPipeline,
    config: TrainConfig,
    step: int,
    repository: str,
    metrics: Mapping[str, Any] | None = None,
    picture: str | None = None,
) -> str:
    """The card as Markdown with its YAML header.

    Args:
        step: optimiser steps that were done.
        repository: where the model is found, for the snippet.
        metrics: of scripts/evaluate.py. Every measured figure of the card is from here.
        picture: file name of the gallery beside the card.
    """
    metrics = metrics or {}
    rows = list(figures(metrics.get("summary", metrics)))
    name = repository.rpartition("/")[2]
    return Template(TEMPLATE.read_text(encoding="utf-8")).substitute(
        header=_header(name, config, rows),
        name=name,
        tasks=", ".join(f"`{task}`" for task in pipe.tasks),
        resolution=pipe.size,
        class_tag="- class-conditional\n" if pipe.class_names else "",
        classes=_classes(pipe),
        parameters=f"{sum(p.numel() for p in pipe.unet.parameters()) / 1e6:.1f}",
        dataset=_dataset(config),
        gallery=_gallery(picture),
        snippet=_snippet(pipe, repository),
        steps=f"{step:,}",
        batch_size=config.total_batch_size,
        images=f"{step * config.total_batch_size:,}",
        proportions=", ".join(f"{task} {share:.0%}" for task, share in config.shares.items()),
        weighting=config.task_weighting,
        weights="averaged (EMA)" if config.use_ema else "last",
        precision={"no": "float32", "bf16": "bfloat16 autocast"}[config.mixed_precision],
        seed=config.seed,
        results=_results(rows, metrics),
        version=__version__,
    )


def figures(metrics: Mapping[str, Any], path: tuple[str, ...] = ()) -> Iterator[dict[str, Any]]:
    """Whatever in metrics.json is a number with an `n` beside it, wherever it stands."""
    for name, value in metrics.items():
        if isinstance(value, Mapping):
            yield from figures(value, (*path, name))
        elif "n" in metrics and name not in _SETTINGS and _is_number(value):
            if name.endswith("standard_error"):
                continue
            error = metrics.get(f"{name}_standard_error")
            if error is None and name == next(iter(metrics)):
                error = metrics.get("standard_error")
            yield {
                "path": " ".join((*path, name)).replace("_", " "),
                "type": "accuracy" if name.endswith("accuracy") else name,
                "task": next((part for part in path if part in TASKS), None),
                "value": value,
                "error": error if _is_number(error) else None,
                "n": metrics["n"],
            }


def _is_number(value: Any) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool)


def _on_hub(config: TrainConfig) -> bool:
    """Whether the dataset's name means something to others; a folder's is nobody's business."""
    name = config.dataset_name
    return name != BUILT_IN and name.count("/") <= 1 and not Path(name).exists()


def _dataset(config: TrainConfig) -> str:
    if config.dataset_name == BUILT_IN:
        return "the shapes that mtl_diffusion draws"
    return f"`{config.dataset_name}`" if _on_hub(config) else "images of a local folder"


def _header(name: str, config: TrainConfig, rows: list[dict[str, Any]]) -> str:
    """What only some cards have; the rest stands in the template."""
    header: dict[str, Any] = {}
    if _on_hub(config):
        header["datasets"] = [config.dataset_name]
    results = [
        {
            "task": {"type": _KINDS.get(row["task"], "image-to-image")},
            "dataset": {
                "name": config.dataset_name if _on_hub(config) else _dataset(config),
                "type": config.dataset_name if _on_hub(config) else "other",
                "split": config.validation_split,
            },
            "metrics": [{"type": row["type"], "name": row["path"], "value": row["value"]}],
        }
        for row in rows
        if row["task"]
    ]
    if results:
        header["model-index"] = [{"name": name, "results": results}]
    return yaml.safe_dump(header, sort_keys=False).strip() if header else "# nothing was measured"


def _classes(pipe: MultiTaskPipeline) -> str:
    if not pipe.class_names:
        return "It has no classes: its training images had no labels."
    return f"Classes: {', '.join(pipe.class_names)}."


def _gallery(picture: str | None) -> str:
    if picture is None:
        return ""
    return (
        f"![What the model draws in each of its tasks]({picture})\n\n"
        "*Each task on samples of the model itself: first seeds, nothing picked.*\n"
    )


def _snippet(pipe: MultiTaskPipeline, repository: str) -> str:
    names = pipe.class_names
    first, last = (names[0], names[-1]) if names else (None, None)
    lines = [
        "from diffusers import DiffusionPipeline",
        "from PIL import Image",
        "",
        f'pipe = DiffusionPipeline.from_pretrained("{repository}", trust_remote_code=True)',
        "",
    ]
    if "generate" in pipe.tasks:
        lines.append(f'image = pipe(task="generate", class_label={last!r}).images[0]')
    else:
        lines.append('image = Image.new("RGB", (pipe.size, pipe.size), "gray")  # yours')
    calls = {
        "inpaint": [
            'mask = Image.new("L", image.size, 0)  # black is kept, byte for byte',
            "mask.paste(255, (0, 0, pipe.size // 2, pipe.size))  # white is repainted",
            'inpainted = pipe(task="inpaint", image=image, mask_image=mask).images[0]',
        ],
        "edit": [
            f'edited = pipe(task="edit", image=image, class_label="{first}").images[0]',
        ],
    }
    for task in pipe.tasks:
        if task != "generate":
            lines += calls.get(task, [f'{task}d = pipe(task="{task}", image=image).images[0]'])
    return "\n".join(lines).replace("'", '"')


def _results(rows: list[dict[str, Any]], metrics: Mapping[str, Any]) -> str:
    if not rows:
        return "Nothing was measured of this model."
    lines = ["| what | value | standard error | n |", "|---|---|---|---|"]
    for row in rows:
        error = "" if row["error"] is None else f"{row['error']:.4g}"
        lines.append(f"| {row['path']} | {row['value']:.4g} | {error} | {row['n']} |")
    text = "\n".join(lines)
    if "feature_space" in metrics:  # of a scorecard, which says how it measured
        space, classifier = metrics["feature_space"], metrics["classifier"]
        text += (
            f"\n\nSampler: {metrics['sampler']}. Frechet distances are taken in the feature space "
            f"`{space['name']}` ({space['kind']}), and can't be held beside those of another one. "
            f"The classifier is right in {classifier['accuracy']:.2%} of {classifier['n']:,} "
            "held-out images. The rest of the scorecard is in metrics.json."
        )
    if "command" in metrics:
        text += f"\n\nMeasured by `{metrics['command']}`."
    return text
