"""The figures of metrics.json as the model card shows them: tables, and metadata for the Hub."""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from huggingface_hub import EvalResult

# Figure in metrics.json -> its name for people.
NAMES = {
    "class_accuracy": "class found",
    "frechet_distance_to_train": "Frechet distance",
    "frechet_distance": "Frechet distance",
    "precision": "precision",
    "recall": "recall",
    "radial_power_largest_difference": "power spectrum, largest difference",
    "psnr_in_hole": "PSNR in the hole",
    "ssim_in_hole": "SSIM in the hole",
    "same_class": "class kept",
    "source_class_kept": "source's class kept",
    "ssim_to_source": "SSIM to the source",
    "feature_distance": "feature distance to the source",
    "bits_per_dim": "bits per dimension",
    "evaluations": "evaluations",
}
METHODS = {
    "edit_source_class": "edit with source_class",
    "edit_in_class_mask": "edit inside generate_mask",
    "repaint": "RePaint",
    "sdedit": "SDEdit",
    "flowedit": "FlowEdit",
    "ddim_inversion": "DDIM inversion",
}
_KINDS = {"generate": "unconditional-image-generation"}  # the Hub's names for tasks


@dataclass(frozen=True)
class Dataset:
    """The data of the figures: its description, its type on the Hub, and the split."""

    name: str
    type: str
    split: str


def eval_results(metrics: Mapping[str, Any], dataset: Dataset) -> list[EvalResult]:
    """The model's own figures, not those of baselines or of real images."""
    return [
        EvalResult(
            task_type=_KINDS.get(task, "image-to-image"),
            dataset_type=dataset.type,
            dataset_name=dataset.name.strip("`"),
            dataset_split=dataset.split,
            metric_type="accuracy" if figure == "class_accuracy" else figure,
            metric_name=f"{task}, {_words(setting)}: {name}",
            metric_value=entry[figure],
        )
        for task, settings in _summary(metrics).items()
        if task in ("generate", "inpaint", "edit")
        for setting, entry in settings.items()
        if setting != "floor"
        for figure, name in NAMES.items()
        if figure in entry and figure != "evaluations"
    ]


def tables(metrics: Mapping[str, Any]) -> str:
    """The results as Markdown, and how they were measured."""
    summary = _summary(metrics)
    parts = [*_generate(summary), *_inpaint(summary), *_edit(summary), *_method(metrics)]
    return "\n\n".join(parts)


def _summary(metrics: Mapping[str, Any]) -> Mapping[str, Any]:
    if not isinstance(metrics, Mapping) or not isinstance(metrics.get("summary"), Mapping):
        raise ValueError("metrics: found no summary; give metrics.json of mtl-diffusion evaluate")
    return metrics["summary"]


def _generate(summary: Mapping[str, Any]) -> Iterator[str]:
    if entries := summary.get("generate"):
        yield "**Samples.** The last row is of real held-out images."
        rows = {"real images" if k == "floor" else _words(k): entry for k, entry in entries.items()}
        yield _table("samples", rows)
    for entry in summary.get("likelihood", {}).values():
        bits = _value(entry, "bits_per_dim")
        yield f"Held-out images: {bits} bits per dimension (n = {entry['n']:,})."


def _inpaint(summary: Mapping[str, Any]) -> Iterator[str]:
    if not (kinds := summary.get("inpaint")):
        return
    repaint = summary.get("baselines", {}).get("repaint", {}).get("inpaint", {})
    rows = {}
    for kind, entry in kinds.items():
        rows["real images" if kind == "floor" else f"{kind}, this model"] = entry
        if kind in repaint:
            rows[f"{kind}, {METHODS['repaint']}"] = repaint[kind]
    beside = ", beside RePaint with the same weights" if repaint else ""
    yield (
        f"**Inpainting** of held-out images, by the kind of hole{beside}. A hole has many good "
        "answers: PSNR and SSIM favour their average."
    )
    yield _table("hole", rows)


def _edit(summary: Mapping[str, Any]) -> Iterator[str]:
    if not (own := summary.get("edit")):
        return
    baselines = summary.get("baselines", {})
    methods = {"this model's edit task": own} | {
        METHODS[name]: tasks["edit"] for name, tasks in baselines.items() if "edit" in tasks
    }
    yield "**Edits** of held-out images into each other class, at the default strength:"
    yield _table("edit", {_words(k): v for k, v in own.items() if k.startswith("strength_")})
    shares = [name for name in own if name.startswith("class_found_")]
    if not shares:
        return
    if len(methods) == 1:
        yield "SSIM to the source at the strength where the class is found in so many edits:"
    else:
        yield (
            "Beside other methods with the same weights: SSIM to the source where the class is "
            "found in equally many edits, each method at the strength that it needs for that, each "
            "baseline at its better guidance, and the evaluations that this costs."
        )
    head = ["method", *(f"{share.rpartition('_')[2]} found" for share in shares), "n"]
    lines = [
        [name, *(_at_class_found(entries.get(share, {})) for share in shares), f"{_n(entries):,}"]
        for name, entries in methods.items()
    ]
    yield _markdown(head, lines)


def _at_class_found(entry: Mapping[str, Any]) -> str:
    if "ssim_to_source" in entry:
        return f"{_value(entry, 'ssim_to_source')}, {entry['evaluations']:.3g} evaluations"
    return f"not reached: {entry['largest_share']:.2f}" if "largest_share" in entry else ""


def _n(entries: Mapping[str, Any]) -> int:
    return next(iter(entries.values()))["n"]


def _method(metrics: Mapping[str, Any]) -> Iterator[str]:
    space, classifier = metrics["feature_space"], metrics["classifier"]
    yield (
        f"Sampler: {metrics['sampler']}. An evaluation is one pass of an image through the "
        f"network. Frechet distances are taken in the feature space `{space['name']}` "
        f"({space['kind']}), and can't be compared with those of another space or another n. The "
        "power spectrum is compared with that of real images in four rings of frequency, in "
        f"decades. Classes are found by a classifier that is right in {classifier['accuracy']:.2%} "
        f"of {classifier['n']:,} held-out images. The rest of the scorecard is in metrics.json."
    )
    yield f"Measured by `{metrics['command']}`."


def _table(first: str, rows: Mapping[str, Mapping[str, Any]]) -> str:
    """A row an entry, with those figures as columns that any of them has."""
    figures = [figure for figure in NAMES if any(figure in entry for entry in rows.values())]
    lines = [
        [label, *(_value(entry, figure) for figure in figures), f"{entry['n']:,}"]
        for label, entry in rows.items()
    ]
    return _markdown([first, *(NAMES[figure] for figure in figures), "n"], lines)


def _markdown(head: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    rule = ["---"] * len(head)
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (head, rule, *lines))


def _value(entry: Mapping[str, Any], figure: str) -> str:
    """The figure, and its standard error if it has one."""
    if figure not in entry:
        return ""
    error = entry.get(f"{figure}_standard_error")
    return f"{entry[figure]:.4g}" + (f" ± {error:.2g}" if error is not None else "")


def _words(setting: str) -> str:
    """by_class_guidance_2_interval_0_3_steps_18: by class, guidance 2 at sigma 0 to 3, 18 steps."""
    words = re.sub("_interval_([^_]+)_", r" at sigma \1 to ", setting)
    words = words.replace("_guidance_", ", guidance ").replace("class_found_", "class found ")
    before, steps, count = words.partition("_steps_")
    words = f"{before}, {count} steps" if steps else before
    return words.replace("_", " ").replace("unconditional", "without a class")
