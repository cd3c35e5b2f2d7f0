"""Methods of editing by one model, each at the guidance scale that is best on other images."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from ..evaluation.bulk import Bulk
from ..evaluation.edit import BASELINES, EDIT, FOUND, WHOLE, Edit, Way
from ..evaluation.parts import Context
from .report import markdown

# Each method without local weights, and with them.
KINDS = {m + "_local" * w: Way(m, 1.0, w) for m in (WHOLE, EDIT, *BASELINES) for w in (False, True)}
FIGURES = {"ssim_to_source": ".3f", "psnr_to_source": ".2f", "feature_distance": ".3f"}


class Edits(Edit):
    """Each image of some rows of the held-out split, edited into one other class, in these ways."""

    def __init__(self, context: Context, rows: range, ways: Mapping[str, Way]):
        super().__init__(context)
        data, count = context.test, len(context.pipe.class_names)
        self.sources, self.own = data.images[list(rows)], data.labels[list(rows)]
        self.asked = (self.own + 1 + torch.arange(len(rows)) % (count - 1)) % count
        self.ways = ways

    def _figures(self, entry, strength):
        seconds = torch.full((len(self.own),), entry.seconds)
        return super()._figures(entry, strength) | {"seconds": seconds}


def compare_edits(
    contexts: Sequence[Context], tuned_on: range, rows: range, scales: list[float], folder: Path
) -> list[dict[str, Any]]:
    """Draws the edits that are missing in `folder`, and writes compare_edits.png there.

    Args:
        contexts: one for each classifier; the first one's chooses the scales.
        tuned_on: rows of the held-out split, on which scales are chosen.
        rows: other ones, which are reported.

    Returns:
        What `Edit.measure` gives for each of `KINDS` at its best scale, by each classifier; and at
        the end for each of `KINDS` at each scale, where they are chosen.
    """
    first, size = contexts[0], len(contexts[0].test)
    if not first.has_baselines or EDIT not in first.pipe.tasks or len(first.pipe.class_names) < 2:
        raise ValueError("pipeline: give one of many steps with generate, edit and two classes")
    if max(tuned_on.stop, rows.stop) > size or set(tuned_on) & set(rows):
        raise ValueError(
            f"tune_images are {tuned_on.start}:{tuned_on.stop}, images {rows.start}:{rows.stop}; "
            f"give rows up to {size}, none of them in both: no scale is chosen on reported images"
        )
    if wrong := [scale for scale in scales if not 0 < scale <= 100]:
        raise ValueError(f"guidance_scales has {wrong[0]:g}; give numbers above 0, up to 100")
    bulk = Bulk(folder / "drawn", first.pipe.unet, first.settings.batch_size, first.drawer())

    def measured(rows: range, ways: Mapping[str, Way]) -> tuple[Edits, list[dict[str, Any]]]:
        parts = [Edits(context, rows, ways) for context in contexts]
        bulk.draw(jobs := parts[0].jobs())
        drawn = {job.name: bulk.read(job) for job in jobs}
        return parts[0], [part.measure(drawn) for part in parts]

    tried = {f"{k}-{s:g}": way._replace(guidance=s) for k, way in KINDS.items() for s in scales}
    tuning = measured(tuned_on, tried)[1][0]
    best = {k: max(scales, key=lambda s: likeness(tuning[f"{k}-{s:g}"])) for k in KINDS}
    part, results = measured(rows, {k: KINDS[k]._replace(guidance=best[k]) for k in KINDS})
    part.plot(results[0], folder / "compare_edits.png")
    return [*results, tuning]


def likeness(entries: Mapping[str, Any]) -> list[float]:
    """SSIM where 90 % of the edits reach their class; scales that don't get there, at 70 %."""
    return [entries[share].get("ssim_to_source", -math.inf) for share in reversed(FOUND)]


def table(results: Mapping[str, Any]) -> str:
    """Markdown: a row for each share of edits that reach their class, and each of `KINDS`."""
    rows = []
    for share, name in ((share, name) for share in FOUND for name in results):
        entry = results[name][share]
        cells = [f"at most {entry.get('largest_share', 1):.0%} reach it", *[""] * 5]
        if entry["reached"]:
            errors = {figure: entry[f"{figure}_standard_error"] for figure in FIGURES}
            cells = [f"{entry[k]:{form}} ± {errors[k]:{form}}" for k, form in FIGURES.items()]
            cells += [f"{entry[k]:.3g}" for k in ("strength", "evaluations", "seconds")]
        rows.append([f"{FOUND[share]:.0%}", name, f"{entry['guidance_scale']:g}", *cells])
    head = ["reached by", "method", "scale", "SSIM", "PSNR, dB", "features", "strength"]
    return markdown([*head, "evaluations", "seconds"], rows)
