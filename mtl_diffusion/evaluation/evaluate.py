"""The scorecard: figures, plots and pictures of an exported pipeline.

It needs the pipeline, a classifier and a dataset, and nothing of the training.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState

from ..classifiers.classifier import Classifier
from ..data.images import ImageDataset
from ..pipeline.pipeline import TASKS, MultiTaskPipeline
from ..tools.files import write_text
from ..tools.names import public
from .bulk import Bulk, Drawn
from .edit import BASELINES, EDIT_IN_MASK, EDIT_SOURCE_CLASS, Edit
from .equal_class import FOUND
from .features import FeatureSpace
from .generate import Generate, plot_quality
from .inpaint import Inpaint
from .likelihood import Likelihood
from .parts import Context, Part
from .settings import Settings

PARTS: dict[str, type[Part]] = {part.name: part for part in (Generate, Likelihood, Inpaint, Edit)}


def parts_for(pipe: MultiTaskPipeline) -> list[str]:
    """The parts of the scorecard that a model can have, by its tasks and classes."""
    possible = [name for name, part in PARTS.items() if part.task in pipe.tasks]
    if pipe.chains is not None:  # it is no denoiser at other noise levels than its own
        possible.remove("likelihood")
    return [name for name in possible if name != "edit" or len(pipe.class_names) > 1]


def context(
    pipe: MultiTaskPipeline,
    classifier: Classifier,
    space: FeatureSpace,
    train: ImageDataset,
    test: ImageDataset,
    settings: Settings,
    cache: Path,
) -> Context:
    """The inputs of all parts, with the splits labelled in the pipeline's order of classes.

    Raises:
        ValueError: the pipeline, the classifier and the dataset have different classes.
    """
    expected = set(pipe.class_names)
    if not expected:
        raise ValueError("pipeline: it has no classes, and the scorecard needs them")
    for name, classes in (
        ("classifier", classifier.class_names),
        ("dataset_name", test.class_names),
    ):
        if set(classes) != expected:
            raise ValueError(
                f"{name} has the classes {', '.join(classes)}; the pipeline knows "
                f"{', '.join(pipe.class_names)}; give what belongs to the pipeline's dataset"
            )
    settings = of_model(settings, pipe)
    splits = (split.relabelled(pipe.class_names) for split in (train, test))
    return Context(pipe, classifier, space, *splits, settings, cache)


def of_model(settings: Settings, pipe: MultiTaskPipeline) -> Settings:
    """The settings that fit the model: one of few steps has its own numbers of them."""
    if pipe.chains is None:
        return settings
    return replace(
        settings,
        step_counts=[len(levels) for levels in pipe.chains],
        guidance_interval=None,
        baselines=False,
    )


def evaluate(context: Context, parts: Sequence[str], folder: Path) -> dict[str, Any] | None:
    """Draws the samples of the parts, over all processes, and scores them on the main one.

    An interrupted evaluation continues when it is run again: samples are kept in `folder`/drawn.

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


def write_scorecard(
    context: Context,
    parts: Sequence[str] | None,
    folder: Path,
    data: Any,
    command: str,
    beside: Sequence[Path] = (),
) -> dict[str, Any] | None:
    """Evaluates, and writes metrics.json with how it was measured.

    Args:
        parts: None: all that the model can have.
        data: has pipeline, dataset_name, train_split and validation_split, for metrics.json.
        command: is written to metrics.json.
        beside: metrics.json of other models, for the plot of quality against evaluations.

    Returns:
        The contents of metrics.json. None on the other processes.

    Raises:
        ValueError: a part is not one that the model can have; or another model's figures can't
            be compared.
    """
    others = _others(beside, context)
    possible = parts_for(context.pipe)
    if unknown := set(parts or ()) - set(possible):
        raise ValueError(
            f"parts: found {', '.join(sorted(unknown))}; this pipeline can have "
            f"{', '.join(possible)}"
        )
    results = evaluate(context, parts or possible, folder)
    if results is None:
        return None
    space = context.space
    metrics = {
        **results,
        "pipeline": public(data.pipeline),
        "weights": context.model,
        "dataset": {
            "name": public(data.dataset_name),
            "train_split": data.train_split,
            "train_fingerprint": context.train.fingerprint,
            "validation_split": data.validation_split,
            "validation_fingerprint": context.test.fingerprint,
        },
        "feature_space": {"name": space.name, "weights": space.digest, **space.about},
        "classifier": context.classifier.metrics,
        "sampler": type(context.pipe.scheduler).__name__,
        "settings": vars(context.settings),
        "device": str(context.pipe.device),
        "processes": PartialState().num_processes,
        "command": command,
    }
    if "generate" in results:
        models = {metrics["pipeline"]: results["generate"], **others}
        plot_quality(models, context.settings.num_images, space.name, folder)
    write_text(folder / "metrics.json", json.dumps(metrics, indent=2) + "\n")
    return metrics


def _others(paths: Sequence[Path], context: Context) -> dict[str, Mapping[str, Any]]:
    """Name of the pipeline -> its figures of generate."""
    found = {}
    for path in paths:
        metrics = json.loads(path.read_text())
        if "generate" not in metrics:
            raise ValueError(f"beside: {path} has no figures of generate: evaluate that part too")
        space, n = metrics["feature_space"]["weights"], metrics["settings"]["num_images"]
        if (space, n) != (context.space.digest, context.settings.num_images):
            raise ValueError(
                f"beside: {path} has distances of {n:,} images in the feature space {space}, and "
                f"this is of {context.settings.num_images:,} in {context.space.digest}: they can't "
                "be compared"
            )
        found[metrics["pipeline"]] = metrics["generate"]
    return found


def _cost(entry: Drawn) -> dict[str, float]:
    return {
        "n": len(entry.values),
        "images_per_second": entry.images_per_second,
        "evaluations": entry.evaluations,
    }


def _peak_memory(device: torch.device) -> float | None:
    """Peak memory in MB, of the GPU, or of this process where there is none. None: not known."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 1e6
    try:
        import resource
    except ImportError:  # Windows
        return None
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3


def summary(results: Mapping[str, Any], context: Context) -> dict[str, Any]:
    """The main figures, each with its n, for the model card.

    Under "baselines", those of other methods with the same weights: method -> task -> figures.
    """
    sampled = Generate(context)
    steps, guided = sampled.steps, sampled.guided.name
    generate, inpaint, edit = (results.get(part, {}) for part in ("generate", "inpaint", "edit"))
    power = ("radial_power_largest_difference", "radial_power_largest_difference_by_class")
    distances = ("frechet_distance_to_train", "precision", "recall")
    hole = ("psnr_in_hole", "ssim_in_hole", "same_class", "frechet_distance", "evaluations")
    found = {
        "generate": {
            name: _pick(generate.get(name, {}), *distances, "class_accuracy", *power, "evaluations")
            for name in (f"unconditional_steps_{steps}", f"by_class_steps_{steps}", guided, "floor")
        },
        "likelihood": {"held_out": _pick(results.get("likelihood", {}), "bits_per_dim")},
        "inpaint": {kind: _pick(inpaint.get(kind, {}), *hole) for kind in inpaint},
        "edit": _edits(edit.get("edit", {})),
    }
    baselines = {
        "repaint": {
            "inpaint": {
                kind: _pick(entry.get("repaint", {}), *hole) for kind, entry in inpaint.items()
            }
        },
        **{
            name: {"edit": _edits(edit.get(name, {}))}
            for name in (EDIT_SOURCE_CLASS, EDIT_IN_MASK, *BASELINES)
        },
    }
    return _without_empty({**found, "baselines": baselines})


def _edits(entries: Mapping[str, Any]) -> dict[str, Any]:
    """Figures of one method: at the default strength, and at equal class accuracy."""
    reached = ("class_accuracy", "source_class_kept", "ssim_to_source", "feature_distance")
    equal = ("ssim_to_source", "feature_distance", "strength", "evaluations", "largest_share")
    equal += ("guidance_scale",)
    strength = f"strength_{TASKS['edit'].default_strength:g}"
    return {
        strength: _pick(entries.get(strength, {}), *reached, "evaluations"),
        **{name: _pick(entries.get(name, {}), *equal) for name in FOUND},
    }


def _pick(entry: Mapping[str, Any], *names: str) -> dict[str, Any]:
    """Some figures of an entry, with their standard errors and the entry's n."""
    wanted = [key for name in names for key in (name, f"{name}_standard_error")]
    kept = {key: entry[key] for key in wanted if key in entry}
    return {**kept, "n": entry["n"]} if kept else {}


def _without_empty(table: dict[str, Any]) -> dict[str, Any]:
    cleaned = {k: _without_empty(v) if isinstance(v, dict) else v for k, v in table.items()}
    return {key: value for key, value in cleaned.items() if value != {}}


def below(results: Mapping[str, Any], limit: float) -> list[str]:
    """The tasks whose class accuracy, at the default settings, is under a limit."""
    return [
        task
        for task in ("generate", "edit")
        for entry in results["summary"].get(task, {}).values()
        if entry.get("class_accuracy", 1.0) < limit
    ]
