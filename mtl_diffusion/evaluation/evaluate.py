"""The scorecard: what an exported pipeline does, as figures, plots and pictures.

It sees the pipeline, a judge and a dataset, and nothing of the training.
"""

from __future__ import annotations

import resource
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from ..data.images import ImageDataset
from ..pipeline.pipeline import TASKS, MultiTaskPipeline
from .bulk import Bulk, Drawn
from .classifier import Classifier
from .density import Likelihood
from .edit import Edit, nearest_strength
from .features import FeatureSpace
from .generate import Generate
from .inpaint import Inpaint
from .parts import Context, Part
from .settings import Settings

PARTS: dict[str, type[Part]] = {part.name: part for part in (Generate, Likelihood, Inpaint, Edit)}


def parts_for(pipe: MultiTaskPipeline) -> list[str]:
    """The parts of the scorecard that a model can have, by its tasks and classes."""
    possible = [name for name, part in PARTS.items() if part.task in pipe.tasks]
    return [name for name in possible if name != "edit" or len(pipe.class_names) > 1]


def context(
    pipe: MultiTaskPipeline,
    judge: Classifier,
    space: FeatureSpace,
    train: ImageDataset,
    test: ImageDataset,
    settings: Settings,
    cache: Path,
) -> Context:
    """What the parts look at, with the splits labelled in the pipeline's order.

    Raises:
        ValueError: the pipeline, the judge and the dataset don't know the same classes.
    """
    expected = set(pipe.class_names)
    if not expected:
        raise ValueError("pipeline: it has no classes, and a scorecard goes by what a class is")
    for name, classes in (("classifier", judge.class_names), ("dataset_name", test.class_names)):
        if set(classes) != expected:
            raise ValueError(
                f"{name} has the classes {', '.join(classes)}; the pipeline knows "
                f"{', '.join(pipe.class_names)}; give what belongs to the pipeline's dataset"
            )
    splits = (split.relabelled(pipe.class_names) for split in (train, test))
    return Context(pipe, judge, space, *splits, settings, cache)


def evaluate(context: Context, parts: Sequence[str], folder: Path) -> dict[str, Any] | None:
    """Draws what the parts need, over all processes, and scores it on the main one.

    Run again, it goes on where it was interrupted: what was drawn lies in `folder`/drawn.

    Returns:
        part -> its figures, each with its n; "speed"; and "summary", the few of them for a card.
        None on the other processes.
    """
    folder.mkdir(parents=True, exist_ok=True)
    bulk = Bulk(folder / "drawn", context.pipe.unet, context.settings.batch_size)
    chosen = [PARTS[name](context) for name in parts]
    bulk.draw([job for part in chosen for job in part.jobs()])
    if not bulk.state.is_main_process:
        return None
    results: dict[str, Any] = {}
    speed: dict[str, Any] = {}
    for part in chosen:
        drawn = {job.name: bulk.read(job) for job in part.jobs()}
        results[part.name] = part.score(drawn, folder)
        speed |= {name: _cost(entry) for name, entry in drawn.items()}
    results["speed"] = speed | {"peak_memory_mb": _peak_memory(context.pipe.device)}
    results["summary"] = summary(results, context)
    return results


def _cost(entry: Drawn) -> dict[str, float]:
    return {
        "n": len(entry.values),
        "images_per_second": entry.images_per_second,
        "evaluations": entry.evaluations,
    }


def _peak_memory(device: torch.device) -> float:
    """Of the accelerator, or of this process where there is none; in MB."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 1e6
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3


def summary(results: Mapping[str, Any], context: Context) -> dict[str, Any]:
    """The figures that stand for the whole, each with its n: the card's table is made of them."""
    steps = context.settings.num_inference_steps
    guided = f"by_class_guidance_{TASKS['generate'].default_guidance_scale:g}_steps_{steps}"
    strength = nearest_strength(context.settings.strengths)
    chosen = {
        "generate": {
            f"unconditional_steps_{steps}": ("frechet_distance_to_train", "precision", "recall"),
            f"by_class_steps_{steps}": ("frechet_distance_to_train",),
            guided: (
                "class_accuracy",
                "frechet_distance_to_train",
                "radial_power_largest_difference",
                "radial_power_largest_difference_by_class",
            ),
            "floor": ("frechet_distance_to_train", "radial_power_largest_difference"),
        },
        "likelihood": {"": ("bits_per_dim",)},
        "inpaint": {
            kind: ("psnr_in_hole", "ssim_in_hole", "judge_agrees")
            for kind in results.get("inpaint", {})
            if kind != "floor"
        },
        "edit": {
            f"edit/strength_{strength:g}": ("class_accuracy", "source_class_kept", "ssim_to_source")
        },
    }
    found: dict[str, Any] = {}
    for part, entries in chosen.items():
        if part not in results:
            continue
        for place, names in entries.items():
            entry = results[part]
            for step in filter(None, place.split("/")):
                entry = entry.get(step, {})
            kept = {
                key: entry[key]
                for name in names
                for key in (name, f"{name}_standard_error")
                if key in entry
            }
            if kept:
                found.setdefault(part, {})[place.rpartition("/")[2] or part] = {
                    **kept,
                    "n": entry["n"],
                }
    return found


def below(results: Mapping[str, Any], limit: float) -> list[str]:
    """The tasks whose class accuracy, at the default settings, is under a limit."""
    return [
        task
        for task, entries in results["summary"].items()
        for entry in entries.values()
        if entry.get("class_accuracy", 1.0) < limit
    ]
