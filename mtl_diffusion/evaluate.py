"""What an exported pipeline does, as figures: it sees the pipeline, a judge and held-out images."""

import math
from collections.abc import Sequence

import torch
from tqdm.auto import tqdm

from .classifier import Classifier
from .data import ImageDataset, to_unit_range
from .hub.pipeline import TASKS, MultiTaskPipeline
from .keyed import generator


def class_accuracy(
    pipe: MultiTaskPipeline,
    judge: Classifier,
    dataset: ImageDataset,
    num_images: int,
    seed: int = 0,
    batch_size: int = 100,
    **options,
) -> dict[str, dict]:
    """How often the judge finds the class that was asked for, in the tasks that take a class.

    `generate` asks for the classes in turn. `edit` starts from the first held-out images and asks
    for another class than the image's own, every ordered pair of classes in turn.

    Args:
        judge: a classifier that no training or filtering has seen.
        dataset: held-out images, for the edits' sources.
        num_images: images a task, at most the dataset's length for `edit`.
        options: further arguments of the pipeline, such as num_inference_steps.

    Returns:
        task -> {"accuracy", "standard_error", "n", and for edit "kept": how often the judge still
        finds the source's class}.
    """
    if set(judge.class_names) != set(pipe.class_names):
        raise ValueError(
            f"classifier knows {', '.join(judge.class_names)}; the pipeline knows "
            f"{', '.join(pipe.class_names)}; train one on the pipeline's dataset"
        )
    dataset = dataset.relabelled(pipe.class_names)
    count = len(pipe.class_names)
    results = {}
    for task in ("generate", "edit"):
        if task not in pipe.tasks:
            continue
        own = dataset.labels[:num_images] if task == "edit" else torch.arange(num_images)
        turns = torch.arange(len(own)) // count % (count - 1)
        asked = (own + 1 + turns) % count if task == "edit" else own % count
        found = []
        for rows in tqdm(torch.arange(len(own)).split(batch_size), desc=task, unit="batch"):
            sources = to_unit_range(dataset.images[rows]) / 2 + 0.5
            images = pipe(
                task=task,
                image=sources if "image" in TASKS[task].required else None,
                class_label=asked[rows].tolist(),
                generator=[generator(seed, task, int(i), device=pipe.device) for i in rows],
                output_type="pt",
                **options,
            ).images
            found.append(judge(2 * images - 1).argmax(1).cpu())
        names = [pipe.class_names.index(name) for name in judge.class_names]
        found = torch.tensor(names)[torch.cat(found)]
        results[task] = _share(found == asked)
        if task == "edit":
            results[task]["kept"] = _share(found == own)["accuracy"]
    return results


def _share(right: torch.Tensor) -> dict:
    """A share of n trials with its standard error."""
    p, n = right.float().mean().item(), len(right)
    return {"accuracy": p, "standard_error": math.sqrt(p * (1 - p) / n), "n": n}


def below(results: dict[str, dict], limit: float) -> Sequence[str]:
    """The tasks whose accuracy is under a limit."""
    return [task for task, entry in results.items() if entry["accuracy"] < limit]
