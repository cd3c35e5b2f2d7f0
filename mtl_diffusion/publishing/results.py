"""The figures of metrics.json as the model card shows them."""

import re
from collections.abc import Mapping
from typing import Any

# Figure in metrics.json -> its name for people.
NAMES = {
    "class_accuracy": "class found",
    "frechet_distance_to_train": "Frechet distance",
    "frechet_distance": "Frechet distance",
    "precision": "precision",
    "recall": "recall",
    "psnr_in_hole": "PSNR in the hole",
    "ssim_in_hole": "SSIM in the hole",
    "same_class": "class kept",
    "source_class_kept": "source's class kept",
    "ssim_to_source": "SSIM to the source",
    "feature_distance": "feature distance",
    "psnr": "PSNR to the true image",
    "ssim": "SSIM to the true image",
    "largest_share": "largest share found",
    "evaluations": "evaluations",
}
# Part of the scorecard -> the sentence before its table.
TITLES = {
    "generate": "**Samples**, and real held-out images:",
    "inpaint": (
        "**Inpainting** of held-out images, by the kind of hole. A hole has many good answers: "
        "PSNR and SSIM favour their average."
    ),
    "edit": (
        "**Edits** of held-out images into each other class: at the default strength, and at the "
        "strength where the class is found in so many edits."
    ),
    "translate": "**Pairs**: held-out images, each made of the other image of its pair:",
}


def tables(metrics: Mapping[str, Any]) -> str:
    """The results as Markdown, and how they were measured.

    Raises:
        ValueError: this is no metrics.json.
    """
    if not isinstance(metrics, Mapping) or not isinstance(metrics.get("summary"), Mapping):
        raise ValueError("metrics: found no summary; give metrics.json of mtl-diffusion evaluate")
    parts = []
    for part, title in TITLES.items():
        settings = (metrics if part == "translate" else metrics["summary"]).get(part)
        if settings:
            parts += [title, _table(settings)]
    space, classifier = metrics["feature_space"], metrics["classifier"]
    parts += [
        f"Sampler: {metrics['sampler']}. An evaluation is one pass of an image through the "
        f"network. Frechet distances are taken in the feature space `{space['name']}` "
        f"({space['kind']}), and can't be compared with those of another space or another n. "
        f"Classes are found by a classifier that is right in {classifier['accuracy']:.2%} "
        f"of {classifier['n']:,} held-out images. The rest of the scorecard is in metrics.json.",
        f"Measured by `{metrics['command']}`.",
    ]
    return "\n\n".join(parts)


def _table(settings: Mapping[str, Mapping[str, Any]]) -> str:
    """A row a setting, with those figures as columns that any of them has."""
    figures = [figure for figure in NAMES if any(figure in entry for entry in settings.values())]
    head = ["", *(NAMES[figure] for figure in figures), "n"]
    lines = [
        [_words(setting), *(_value(entry, figure) for figure in figures), f"{entry['n']:,}"]
        for setting, entry in settings.items()
    ]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (head, ["---"] * len(head), *lines))


def _value(entry: Mapping[str, Any], figure: str) -> str:
    """The figure, and its standard error if it has one."""
    if figure not in entry:
        return ""
    error = entry.get(f"{figure}_standard_error")
    return f"{entry[figure]:.4g}" + (f" ± {error:.2g}" if error is not None else "")


def _words(setting: str) -> str:
    """by_class_guidance_2_interval_0_3_steps_18: by class, guidance 2 at sigma 0 to 3, 18 steps."""
    if setting == "floor":
        return "real images"
    words = re.sub("_interval_([^_]+)_", r" at sigma \1 to ", setting)
    words = words.replace("_guidance_", ", guidance ").replace("class_found_", "class found ")
    before, steps, count = words.partition("_steps_")
    words = f"{before}, {count} steps" if steps else before
    return words.replace("_", " ").replace("unconditional", "without a class")
