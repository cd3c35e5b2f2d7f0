"""The scorecard of a pipeline, by a classifier and a dataset, and nothing of the training."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from accelerate import PartialState

from ..classifiers.classifier import Classifier
from ..data.images import ImageDataset
from ..pipeline.pipeline import MultiTaskPipeline
from ..tools.files import write_text
from ..tools.names import public
from ..tools.tensors import weights_digest
from .bulk import Bulk
from .edit import EDIT, FOUND, Edit
from .features import FeatureSpace
from .generate import Generate
from .inpaint import Inpaint
from .parts import Context, Part
from .settings import Settings
from .translate import Translate

PARTS: dict[str, type[Part]] = {part.name: part for part in (Generate, Inpaint, Edit, Translate)}
# The figures of a summary.
FIGURES = ("frechet_distance_to_train", "frechet_distance", "precision", "recall")
FIGURES += ("class_accuracy", "source_class_kept", "same_class", "psnr_in_hole", "ssim_in_hole")
FIGURES += ("ssim_to_source", "feature_distance", "largest_share", "strength", "guidance_scale")


def parts_for(pipe: MultiTaskPipeline) -> list[str]:
    """The parts of the scorecard that a model can have, by its tasks and classes."""
    possible = {name for name, part in PARTS.items() if part.task in pipe.tasks}
    possible |= {Translate.name} if pipe.translations else set()
    if len(pipe.class_names) < 2:
        possible.discard("edit")
    return [name for name in PARTS if name in possible]


def context(
    pipe: MultiTaskPipeline,
    classifier: Classifier,
    space: FeatureSpace,
    train: ImageDataset,
    test: ImageDataset,
    settings: Settings,
) -> Context:
    """The inputs of all parts: the splits are labelled in the pipeline's order of classes.

    A model of few steps is measured at its numbers of steps.

    Raises:
        ValueError: the pipeline, the classifier and the dataset have different classes.
    """
    names = pipe.class_names
    if not names:
        raise ValueError("pipeline: it has no classes, and the scorecard needs them")
    for name, of in {"classifier": classifier, "dataset_name": test}.items():
        if set(classes := of.class_names) != set(names):
            raise ValueError(
                f"{name} has the classes {', '.join(classes)}; the pipeline knows "
                f"{', '.join(names)}; give what belongs to the pipeline's dataset"
            )
    if pipe.chains is not None:
        few = [len(levels) for levels in pipe.chains]
        settings = settings.model_copy(update={"step_counts": few})
    splits = train.relabelled(names), test.relabelled(names)
    return Context(pipe, classifier, space, *splits, settings)


def write_scorecard(
    context: Context, parts: Sequence[str] | None, folder: Path, data: Any, command: str
) -> dict[str, Any] | None:
    """Draws the samples over all processes, scores them on the main one, and writes metrics.json.

    An interrupted evaluation continues when it is run again: samples are kept in `folder`/drawn.

    Args:
        parts: None: all that the model can have; another one raises a ValueError.
        data: has pipeline, dataset_name, train_split and validation_split, for metrics.json.

    Returns:
        The contents of metrics.json: part -> its figures, each with its n; "summary", the few of
        them for a card; and how it was measured. None on the other processes.
    """
    pipe, settings, space = context.pipe, context.settings, context.space
    possible = parts_for(pipe)
    if unknown := set(parts or ()) - set(possible):
        raise ValueError(
            f"parts are {', '.join(sorted(unknown))}; this pipeline can have {', '.join(possible)}"
        )
    bulk = Bulk(folder / "drawn", pipe.unet, settings.batch_size, context.drawer())
    chosen = [PARTS[name](context) for name in parts or possible]
    jobs = {part: part.jobs() for part in chosen}
    bulk.draw([job for part in chosen for job in jobs[part]])
    if not bulk.state.is_main_process:
        return None
    folder.mkdir(parents=True, exist_ok=True)
    results = {
        part.name: part.score({job.name: bulk.read(job) for job in jobs[part]}, folder)
        for part in chosen
    }
    dataset = {"train_split": data.train_split, "validation_split": data.validation_split}
    dataset["train_fingerprint"] = context.train.fingerprint
    dataset["validation_fingerprint"] = context.test.fingerprint
    metrics = {
        **results,
        "summary": summary(results, context),
        "pipeline": public(data.pipeline),
        "weights": weights_digest(pipe.unet),
        "dataset": {"name": public(data.dataset_name), **dataset},
        "feature_space": {"name": space.name, "weights": space.digest, **space.about},
        "classifier": context.classifier.metrics,
        "sampler": type(pipe.scheduler).__name__,
        "settings": vars(settings),
        "device": str(pipe.device),
        "processes": PartialState().num_processes,
        "command": command,
    }
    write_text(folder / "metrics.json", json.dumps(metrics, indent=2) + "\n")
    return metrics


def summary(results: Mapping[str, Any], context: Context) -> dict[str, Any]:
    """The model's main figures, each with its n, for the model card: part -> entry -> figures."""
    generate, inpaint, edit = (results.get(part, {}) for part in ("generate", "inpaint", "edit"))
    main = ["floor", *(job.name for job in Generate(context).main)] if generate else []
    chosen = [f"strength_{context.pipe.spec(EDIT).default_strength:g}", *FOUND]
    found = {
        "generate": {name: generate[name] for name in main},
        "inpaint": inpaint,
        "edit": {name: edit[EDIT][name] for name in chosen if edit},
    }
    return _picked(found)


def _picked(table: Mapping[str, Any]) -> dict[str, Any]:
    """Of each entry the `FIGURES`, with their standard errors, n and evaluations."""
    if "n" in table:
        kept = {*FIGURES, *(f"{name}_standard_error" for name in FIGURES), "n", "evaluations"}
        return {key: value for key, value in table.items() if key in kept}
    found = {key: _picked(value) for key, value in table.items()}
    return {key: value for key, value in found.items() if value}


def below(results: Mapping[str, Any], limit: float) -> list[str]:
    """The tasks whose class accuracy, at the default settings, is under a limit."""
    summary = {task: results["summary"].get(task, {}) for task in ("generate", "edit")}
    entries = ((task, entry) for task, found in summary.items() for entry in found.values())
    return [task for task, entry in entries if entry.get("class_accuracy", 1.0) < limit]
