"""How good edits are: is the class reached, and how much of the source is left.

Neither says anything without the other: a method that ignores the source reaches every class, and
one that returns it is perfectly faithful. So every method is a curve over its strengths, and the
methods are compared where they reach the class equally often.
"""

from collections.abc import Callable, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..pictures.grids import grid, to_pictures
from ..pictures.plots import curves
from ..pipeline.pipeline import TASKS
from ..tools.tensors import to_uint8, to_unit_range
from .bulk import Arguments, Drawn, Job
from .equal_class import FOUND, EditsAtStrength, at_class_found
from .likeness import feature_distance, psnr, ssim
from .methods.ddim_inversion import ddim_inversion
from .methods.denoisers import generate_denoiser, noise_levels
from .methods.flowedit import flowedit
from .methods.sdedit import sdedit
from .parts import Context, Part, Seen, mean

# The edit task: as it is called by default, told the class of the source, inside the mask of the
# new class.
EDIT, EDIT_SOURCE_CLASS, EDIT_IN_MASK = "edit", "edit_source_class", "edit_in_class_mask"


# From the noise level where edit starts, in as many steps.
def _sdedit(source, target, image, sigmas, strength, generators) -> Tensor:
    return sdedit(target, image, _start(strength, sigmas[0]), len(sigmas) - 1, generators)


def _ddim_inversion(source, target, image, sigmas, strength, generators) -> Tensor:
    level, up = _start(strength, sigmas[0]), TASKS["edit"].default_inversion_steps
    return ddim_inversion(source, target, image, level, len(sigmas) - 1, up)


def _start(strength: float, highest: float) -> float:
    return min(TASKS["edit"].start(strength), highest)


# Name -> (D of the source, D of the target, image, sigmas, strength, generators) -> images.
BASELINES: dict[str, Callable[..., Tensor]] = {
    "sdedit": _sdedit,
    "ddim_inversion": _ddim_inversion,
    "flowedit": flowedit,
}


class Edit(Part):
    """Held-out images of every class, turned into every class: their own is the control."""

    name = "edit"
    task = "edit"

    def __init__(self, context: Context):
        super().__init__(context)
        self.sources, self.own, self.asked = pairs(context)
        count = context.settings.num_strengths
        even = (k / count for k in range(1, count + 1))
        self.strengths = sorted({*even, TASKS["edit"].default_strength})
        self.ways = [EDIT]
        if context.has_baselines:
            several = context.pipe.chains is None  # else there are few noise levels, and no scale
            self.ways += [EDIT_SOURCE_CLASS] if several else []
            self.ways += [EDIT_IN_MASK, *(BASELINES if several else ())]

    @cached_property
    def sources_seen(self) -> Seen:
        """Features and classes of the sources."""
        return Seen.of(self.context, self.sources)

    def guidance(self, way: str) -> float:
        """The guidance scale of the class."""
        context = self.context
        of_edit = context.pipe.default_guidance("edit")
        return context.settings.baseline_guidance_scale if way in BASELINES else of_edit

    def jobs(self) -> list[Job]:
        return [self._job(way, strength) for way in self.ways for strength in self.strengths]

    def _job(self, way: str, strength: float) -> Job:
        context, pipe = self.context, self.context.pipe
        same = {
            "task": "edit",
            "strength": strength,
            "guidance_scale": self.guidance(way),
            "num_inference_steps": self.steps,
        }

        def each(rows: range) -> Arguments:
            part = slice(rows.start, rows.stop)
            found = {"image": self.sources[part], "class_label": self.asked[part].tolist()}
            if way in (EDIT_SOURCE_CLASS, *BASELINES):
                found["source_class"] = self.own[part].tolist()
            return found

        def in_mask(rows: range, image: Tensor, class_label: list[int], **same) -> Tensor:
            random = context.generators("mask", rows=rows)
            mask = pipe.generate_mask(image.float() / 255, class_label, generator=random)
            return context.sample(
                rows, image=image, class_label=class_label, mask_image=mask, **same
            )

        def baseline(rows: range, image: Tensor, class_label, source_class, **same) -> Tensor:
            images = BASELINES[way](
                generate_denoiser(pipe, torch.tensor(source_class)),
                generate_denoiser(pipe, torch.tensor(class_label), same["guidance_scale"]),
                to_unit_range(image.to(pipe.device)),
                noise_levels(pipe.scheduler, same["num_inference_steps"]),
                same["strength"],
                context.generators(same["task"], rows=rows),
            )
            return to_uint8(images)

        draw = in_mask if way == EDIT_IN_MASK else baseline if way in BASELINES else context.sample
        return Job(f"{way}-{strength:g}", len(self.own), draw, same, each)

    def score(self, drawn: Mapping[str, Drawn], folder: Path) -> dict[str, Any]:
        results = {way: self._score(way, drawn) for way in self.ways}
        n, lines = int((self.own != self.asked).sum()), {}
        for way, entries in results.items():
            points = (entries[f"strength_{strength:g}"] for strength in self.strengths)
            lines[way] = [(e["ssim_to_source"], e["class_accuracy"]) for e in points]
        curves(
            lines,
            "SSIM to the source: how much of it is left",
            f"share whose class is the one asked for (n = {n})",
            folder / "edit_curves.png",
        )
        self._picture(drawn, folder)
        return results

    def _score(self, way: str, drawn: Mapping[str, Drawn]) -> dict[str, Any]:
        others, shared = self.own != self.asked, {"guidance_scale": self.guidance(way)}
        results: dict[str, Any] = {}
        curve = [EditsAtStrength(0.0, 0.0, _of(self.compare(self.sources), others))]
        for strength in self.strengths:
            entry = drawn[f"{way}-{strength:g}"]
            compared = self.compare(entry.values)
            results[f"strength_{strength:g}"] = {
                "num_inference_steps": self.steps,
                **entry.cost,
                **shared,
                **scores(_of(compared, others)),
            }
            if not others.all():
                results[f"strength_{strength:g}"]["control"] = scores(_of(compared, ~others))
            evaluations = entry.cost["evaluations"]
            curve.append(EditsAtStrength(strength, evaluations, _of(compared, others)))
        return results | {
            name: {**shared, **at_class_found(curve, share)} for name, share in FOUND.items()
        }

    def compare(self, edited: Tensor) -> dict[str, Tensor]:
        """Figure -> values (N,), one for each edit (N, 3, H, W) uint8 of the sources."""
        found = Seen.of(self.context, edited)
        a, b = self.sources.float() / 255, edited.float() / 255
        return {
            "class_accuracy": found.classes == self.asked,
            "source_class_kept": found.classes == self.own,
            "ssim_to_source": ssim(a, b),
            "psnr_to_source": psnr(a, b),
            "feature_distance": feature_distance(self.sources_seen.features, found.features),
        }

    def _picture(self, drawn: Mapping[str, Drawn], folder: Path) -> None:
        """Writes edit.png: a source of each class, and its edits into another class."""
        names, strength = self.context.pipe.class_names, TASKS["edit"].default_strength
        shown = [self.sources, *(drawn[f"{way}-{strength:g}"].values for way in self.ways)]
        first = (self.own != self.asked).nonzero()[: len(names), 0].tolist()
        rows = [[to_pictures(images[i : i + 1])[0] for images in shown] for i in first]
        labels = [f"{names[self.own[i]]} to {names[self.asked[i]]}" for i in first]
        titles = ["source", *(way.replace("class_mask", "mask") for way in self.ways)]
        grid(rows, labels, titles, cell=84).save(folder / "edit.png")


def pairs(context: Context) -> tuple[Tensor, Tensor, Tensor]:
    """Edits of held-out images: first each class into the next one, at the end into its own.

    Edit i is the same for any number of edits. Its source is none of those before, as long as the
    class has other images.

    Returns:
        sources (N, 3, H, W) uint8; own labels (N,); requested labels (N,).
    """
    labels, count = context.test.labels, context.num_classes
    of_class = [(labels == k).nonzero()[:, 0] for k in range(count)]
    of_class = [rows for rows in of_class if len(rows)]
    turns = [divmod(i, len(of_class)) for i in range(context.settings.edit_images)]
    rows = torch.stack([of_class[k][turn % len(of_class[k])] for turn, k in turns])
    own = labels[rows]
    asked = (own + 1 + torch.tensor([turn for turn, _ in turns])) % count
    return context.test.images[rows], own, asked


def scores(compared: Mapping[str, Tensor]) -> dict[str, Any]:
    """The mean of each figure over N edits, with its standard error."""
    found = {"n": len(compared["class_accuracy"])}
    for name, values in compared.items():
        found |= mean(name, values)
    return found


def _of(compared: Mapping[str, Tensor], rows: Tensor) -> dict[str, Tensor]:
    return {name: values[rows] for name, values in compared.items()}
