"""The summary of metrics.json as the tables of the model card."""

from collections.abc import Mapping
from typing import Any

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
NO_COLUMNS = ("n", "guidance_scale")  # n is the last one; the scale is in the label


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
        f"of {classifier['n']:,} held-out images. Other figures, and other methods, are in "
        "metrics.json.",
        f"Measured by `{metrics['command']}`.",
    ]
    return "\n\n".join(parts)


def _table(settings: Mapping[str, Mapping[str, Any]]) -> str:
    """A row a setting, with the figures of all of them as columns, by their names in the file."""
    named = dict.fromkeys(figure for entry in settings.values() for figure in entry)
    figures = [f for f in named if f not in NO_COLUMNS and not f.endswith("_standard_error")]
    head = ["", *(figure.replace("_", " ") for figure in figures), "n"]
    lines = [
        [
            "real images" if setting == "floor" else setting.replace("_", " "),
            *(_value(entry, figure) for figure in figures),
            f"{entry['n']:,}",
        ]
        for setting, entry in settings.items()
    ]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (head, ["---"] * len(head), *lines))


def _value(entry: Mapping[str, Any], figure: str) -> str:
    """The figure, and its standard error if it has one."""
    if figure not in entry:
        return ""
    error = entry.get(f"{figure}_standard_error")
    return f"{entry[figure]:.4g}" + (f" ± {error:.2g}" if error is not None else "")
