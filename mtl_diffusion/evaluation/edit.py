"""How good edits are: is the class reached, and how much of the source is left.

Neither says anything without the other: a method that ignores the source reaches every class, and
one that returns it is perfectly faithful. So every method is a curve over its strengths, and the
methods are compared where they reach the class equally often, each baseline with the guidance that
serves it best there.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..pictures.grids import grid, to_pictures
from ..pictures.plots import curves
from ..pipeline.inversion import read_inversion_steps
from ..pipeline.pipeline import TASKS
from ..tools.tensors import to_uint8, to_unit_range
from .baselines import ddim_inversion, flowedit, sdedit
from .bulk import Drawn, Job
from .denoise import generate_denoiser, noise_levels
from .equal_class import FOUND, EditsAtStrength, at_class_found
from .likeness import feature_distance, low_frequency_error, ssim
from .parts import Context, Part, Seen, mean

LIKENESS = ("ssim_to_source", "low_frequency_error", "feature_distance")
# Ways to use the edit task.
EDIT, EDIT_SOURCE_CLASS, EDIT_IN_MASK = "edit", "edit_source_class", "edit_in_class_mask"


# From the noise level that edit starts from, in as many steps.
def _sdedit(source, target, image, sigmas, strength, generators) -> Tensor:
    return sdedit(target, image, _start(strength, sigmas), len(sigmas) - 1, generators)


def _ddim_inversion(source, target, image, sigmas, strength, generators) -> Tensor:
    inversion_steps = TASKS["edit"].default_inversion_steps
    level, steps = _start(strength, sigmas), len(sigmas) - 1
    return ddim_inversion(source, target, image, level, steps, inversion_steps)


def _start(strength: float, sigmas: Sequence[float]) -> float:
    return min(TASKS["edit"].start(strength), sigmas[0])


# Name -> (D of the source, D of the target, image, sigmas, strength, generators) -> images.
BASELINES: dict[str, Callable[..., Tensor]] = {
    "sdedit": _sdedit,
    "ddim_inversion": _ddim_inversion,
    "flowedit": flowedit,
}


@dataclass(frozen=True)
class Method:
    """A way to edit.

    Attributes:
        guidance: guidance scale of the class.
        inversion_steps: evaluations that invert the source before an edit.
        edit: (sources (b, 3, H, W) uint8, own labels (b,), requested labels (b,), strength, rows)
            -> images (b, 3, H, W) uint8.
    """

    name: str
    guidance: float
    edit: Callable[[Tensor, Tensor, Tensor, float, range], Tensor]
    inversion_steps: int = 0


class Edit(Part):
    """Held-out images of every class, turned into every class: their own is the control."""

    name = "edit"
    task = "edit"

    def __init__(self, context: Context):
        super().__init__(context)
        self.sources, self.own, self.asked = pairs(context)
        count = context.settings.num_strengths
        self.ladder = [k / count for k in range(1, count + 1)]
        further = {TASKS["edit"].default_strength, *context.settings.strengths}
        self.strengths = sorted({*self.ladder, *further})
        self.baselines = list(BASELINES) if context.has_baselines else []
        self.guidances = context.settings.baseline_guidance_scales
        ways = [EDIT]
        if not context.pipe.chains:
            ways.append(EDIT_SOURCE_CLASS)
        if "generate" in context.pipe.tasks:
            ways.append(EDIT_IN_MASK)
        self.methods = [self._edit(way, None) for way in ways]
        for scale in context.settings.edit_guidance_scales:
            self.methods += [self._edit(way, scale) for way in ways]
        for name in self.baselines:
            self.methods += [self._baseline(name, scale) for scale in self.guidances]

    @cached_property
    def sources_seen(self) -> Seen:
        """Features and classes of the sources."""
        return Seen.of(self.context, self.sources)

    def _edit(self, way: str, guidance: float | None) -> Method:
        """The edit task: without the source's class, with it, or inside the mask of the new class.

        Args:
            guidance: None for the model's.
        """
        name, context = way, self.context
        if guidance is None:
            guidance = context.pipe.default_guidance("edit")
        else:
            name = _guided(name, guidance)

        inversion_steps = read_inversion_steps(
            None, TASKS["edit"].default_inversion_steps, context.pipe.chains
        )

        def edit(sources: Tensor, own: Tensor, asked: Tensor, strength: float, rows: range):
            pair = {"image": sources.float() / 255, "class_label": asked.tolist()}
            if way == EDIT_SOURCE_CLASS:
                pair["source_class"] = own.tolist()
            if way == EDIT_IN_MASK:
                random = context.generators("mask", rows=rows)
                pair["mask_image"] = context.pipe.generate_mask(**pair, generator=random)
            return context.sample(
                "edit",
                rows=rows,
                **pair,
                strength=strength,
                guidance_scale=guidance,
                num_inference_steps=self.steps,
                num_inversion_steps=inversion_steps,
            )

        return Method(name, guidance, edit, inversion_steps)

    def _baseline(self, name: str, guidance: float) -> Method:
        def edit(sources: Tensor, own: Tensor, asked: Tensor, strength: float, rows: range):
            pipe = self.context.pipe
            images = BASELINES[name](
                generate_denoiser(pipe, own.to(pipe.device)),
                generate_denoiser(pipe, asked.to(pipe.device), guidance),
                to_unit_range(sources.to(pipe.device)),
                noise_levels(pipe.scheduler, self.steps),
                strength,
                self.context.generators("edit", rows=rows),
            )
            return to_uint8(images)

        inverts = TASKS["edit"].default_inversion_steps if name == "ddim_inversion" else 0
        return Method(_guided(name, guidance), guidance, edit, inverts)

    def jobs(self) -> list[Job]:
        return [self._job(way, strength) for way in self.methods for strength in self.strengths]

    def _job(self, method: Method, strength: float) -> Job:
        context = self.context

        def draw(rows: range) -> Tensor:
            part = slice(rows.start, rows.stop)
            return method.edit(self.sources[part], self.own[part], self.asked[part], strength, rows)

        return context.job(
            _name(method, strength),
            len(self.own),
            draw,
            steps=self.steps,
            guidance=method.guidance,
            data=context.test.fingerprint,
            inversion=method.inversion_steps,
        )

    def score(self, drawn: Mapping[str, Drawn], folder: Path) -> dict[str, Any]:
        results = {method.name: self._score_method(method, drawn) for method in self.methods}
        self._plots(results, drawn, folder)
        for name in self.baselines:
            ways = [results[_guided(name, scale)] for scale in self.guidances]
            results[name] = {share: best(way[share] for way in ways) for share in FOUND}
        return results

    def _score_method(self, method: Method, drawn: Mapping[str, Drawn]) -> dict[str, Any]:
        others = self.own != self.asked
        results: dict[str, Any] = {}
        curve = [self._measured(0.0, 0.0, self.compared(self.sources), others)]
        for strength in self.strengths:
            entry = drawn[_name(method, strength)]
            compared = self.compared(entry.values)
            results[f"strength_{strength:g}"] = {
                "num_inference_steps": self.steps,
                "evaluations": entry.evaluations,
                "guidance_scale": method.guidance,
                **edit_scores(compared, others),
            }
            if strength in self.ladder:
                curve.append(self._measured(strength, entry.evaluations, compared, others))
        for name, share in FOUND.items():
            results[name] = {
                "guidance_scale": method.guidance,
                **at_class_found(curve, share),
            }
        return results

    def compared(self, edited: Tensor) -> dict[str, Tensor]:
        """See `compare`. edited: (N, 3, H, W) uint8, one for each source."""
        return compare(self.context, self.sources, self.sources_seen, edited, self.own, self.asked)

    @staticmethod
    def _measured(
        strength: float, evaluations: float, compared: Mapping[str, Tensor], rows: Tensor
    ) -> EditsAtStrength:
        likeness = {name: compared[name][rows] for name in LIKENESS}
        return EditsAtStrength(strength, evaluations, compared["class_accuracy"][rows], likeness)

    def _plots(self, results: Mapping[str, Any], drawn: Mapping[str, Drawn], folder: Path) -> None:
        def points(method: Method) -> list[tuple[float, float]]:
            entries = (results[method.name][f"strength_{s:g}"] for s in self.strengths)
            return [(e["ssim_to_source"], e["class_accuracy"]) for e in entries]

        n = int((self.own != self.asked).sum())
        curves(
            {method.name: points(method) for method in self.methods},
            "SSIM to the source: how much of it is left",
            f"share whose class is the one asked for (n = {n})",
            folder / "edit_curves.png",
        )
        self._picture(drawn, TASKS["edit"].default_strength, folder)

    def _picture(self, drawn: Mapping[str, Drawn], strength: float, folder: Path) -> None:
        """Writes edit.png: the first source of each class, and its edits into the next class."""
        count = self.context.num_classes
        rows = [((self.own == k) & (self.asked == (k + 1) % count)).nonzero() for k in range(count)]
        first = [int(found[0, 0]) for found in rows if len(found)]
        shown = [self.sources, *(drawn[_name(m, strength)].values for m in self.methods)]
        rows = [[to_pictures(images[i : i + 1])[0] for images in shown] for i in first]
        names = self.context.pipe.class_names
        labels = [f"{names[self.own[i]]} to {names[self.asked[i]]}" for i in first]
        titles = ["source"]
        for method in self.methods:
            titles.append(method.name.replace("_guidance_", " ").replace("class_mask", "mask"))
        grid(rows, labels, titles, cell=84).save(folder / "edit.png")


def _guided(name: str, guidance: float) -> str:
    return f"{name}_guidance_{guidance:g}"


def best(entries: Iterable[Mapping[str, Any]]) -> Mapping[str, Any]:
    """The entry most similar to the source among those that reached the share, if any did."""
    return max(
        entries, key=lambda e: (e["reached"], e.get("ssim_to_source", e.get("largest_share")))
    )


def _name(method: Method, strength: float) -> str:
    return f"{method.name}-{strength:g}"


def pairs(context: Context) -> tuple[Tensor, Tensor, Tensor]:
    """The first `edit_images` of each class, once for each class they are turned into.

    Returns:
        sources (N, 3, H, W) uint8; own labels (N,); requested labels (N,).
    """
    labels, count = context.test.labels, context.num_classes
    rows, asked = [], []
    for k in range(count):
        mine = (labels == k).nonzero()[: context.settings.edit_images, 0]
        rows.append(mine.repeat(count))
        asked.append(torch.arange(count).repeat_interleave(len(mine)))
    index = torch.cat(rows)
    return context.test.images[index], labels[index], torch.cat(asked)


def compare(
    context: Context, sources: Tensor, seen: Seen, edited: Tensor, own: Tensor, asked: Tensor
) -> dict[str, Tensor]:
    """Figure name -> values (N,), one for each edit.

    Args:
        sources: (N, 3, H, W) uint8.
        seen: features and classes of the sources.
        edited: (N, 3, H, W) uint8.
        own: (N,) classes of the sources.
        asked: (N,) requested classes.
    """
    found = Seen.of(context, edited)
    a, b = sources.float() / 255, edited.float() / 255
    return {
        "class_accuracy": found.classes == asked,
        "source_class_kept": found.classes == own,
        "ssim_to_source": ssim(a, b),
        "low_frequency_error": low_frequency_error(a, b),
        "feature_distance": feature_distance(seen.features, found.features),
    }


def edit_scores(compared: Mapping[str, Tensor], others: Tensor) -> dict[str, Any]:
    """Means over the edits into another class, and, under "control", over those into their own.

    Args:
        compared: the result of `compare`. others: (N,) bool, the edits into another class.
    """

    def scores(rows: Tensor) -> dict[str, Any]:
        found = {"n": int(rows.sum())}
        for name, values in compared.items():
            found |= mean(name, values[rows])
        return found

    control = scores(~others)
    # For an edit into its own class this equals the class accuracy.
    del control["source_class_kept"], control["source_class_kept_standard_error"]
    return {**scores(others), "control": control}
