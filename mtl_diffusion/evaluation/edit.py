"""How good edits are: is the class reached, and how much of the source is left.

Neither says anything without the other: a method that ignores the source reaches every class, and
one that returns it is perfectly faithful. So every method is a curve over its strengths, and the
methods are compared where they reach the class equally often: at the strength where 50, 70 or 90 %
of its edits do, interpolated linearly between the neighbouring strengths that were measured.
"""

import copy
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from diffusers.utils.torch_utils import randn_tensor
from torch import Tensor

from ..editing.whole import GUIDANCE_SCALE, whole_edit
from ..pictures.grids import grid, to_pictures
from ..pictures.plots import curves
from ..pipeline.denoiser import build_conditioning
from ..pipeline.noise import initial_latents, own_generators
from ..pipeline.pipeline import TASKS
from ..pipeline.solver import solve
from .bulk import Drawn, Job
from .distances import feature_distance, psnr, ssim
from .methods.ddim_inversion import ddim_inversion
from .methods.denoisers import generate_denoiser, local_weights, noise_levels
from .methods.flowedit import flowedit
from .methods.sdedit import sdedit
from .parts import Context, Part, mean

EDIT, WHOLE, BASELINES = "edit", "whole_edit", ("sdedit", "ddim_inversion", "flowedit")
INVERSION_STEPS = 8  # of DDIM inversion
FOUND = {f"class_found_{share:g}": share for share in (0.5, 0.7, 0.9)}  # result -> share


class Way(NamedTuple):
    """A method, its guidance scale of the class, and whether `local_weights` multiply that."""

    method: str
    guidance: float
    local: bool = False


class Edit(Part):
    """Held-out images of every class, turned into every class: their own is the control."""

    name = "edit"
    task = "edit"

    def __init__(self, context: Context):
        super().__init__(context)
        self.sources, self.own, self.asked = pairs(context)
        count = context.settings.num_strengths
        even = (k / count for k in range(1, count + 1))
        self.strengths = sorted({*even, context.pipe.spec(EDIT).default_strength})
        self.ways = {EDIT: Way(EDIT, context.pipe.default_guidance(EDIT))}
        if context.has_baselines:
            scale = context.settings.baseline_guidance_scale
            self.ways |= {WHOLE: Way(WHOLE, GUIDANCE_SCALE, local=True)}
            self.ways |= {name: Way(name, scale) for name in BASELINES}

    def jobs(self) -> list[Job]:
        each = {"image": self.sources, "class_label": self.asked.tolist()}
        each["source_class"], same = self.own.tolist(), {"steps": self.steps(EDIT)}
        return [
            Job(f"{name}-{s:g}", self._edited, {**way._asdict(), **same, "strength": s}, each)
            for name, way in self.ways.items()
            for s in self.strengths
        ]

    def _edited(
        self, rows, image: Tensor, class_label, source_class, strength, steps, **way
    ) -> Tensor:
        """Edits (b, C, H, W) as stored of these sources and classes, into the class labels."""
        method, guidance, local = Way(**way)
        if method == EDIT and not local:
            given = {"image": image, "class_label": class_label, "strength": strength}
            given |= {"guidance_scale": guidance, "num_inference_steps": steps}
            return self.context.sample(rows, EDIT, **given)
        pipe, random = self.context.pipe, self.context.generators(EDIT, rows=rows)
        image = pipe.format.from_stored(image.to(pipe.device))
        asked, own = torch.tensor([class_label, source_class], device=pipe.device)
        if method == WHOLE:
            strengths = torch.full((len(image),), strength, device=pipe.device)
            given = (torch.ones_like(image[:, :1]), asked, own, strengths)
            edited = whole_edit(pipe, image, *given, random, guidance, steps, local=local)
            return pipe.format.to_stored(edited)
        if local:
            noise = self.context.generators(EDIT, "weights", rows=rows)
            guidance = guidance * local_weights(pipe, image, asked, noise)
        source, target = generate_denoiser(pipe, own), generate_denoiser(pipe, asked, guidance)
        sigmas = noise_levels(pipe.scheduler, steps)
        # From the noise level where edit starts, in as many steps.
        start = min(TASKS[EDIT].start(torch.tensor(strength)).item(), sigmas[0])
        if method == EDIT:
            edited = one_stage(pipe, image, asked, strength, guidance, steps, random)
        elif method == "flowedit":
            edited = flowedit(source, target, image, sigmas, strength, random)
        elif method == "sdedit":
            edited = sdedit(target, image, start, steps, random)
        else:
            edited = ddim_inversion(source, target, image, start, steps, INVERSION_STEPS)
        return pipe.format.to_stored(edited)

    def score(self, drawn: Mapping[str, Drawn], folder: Path) -> dict[str, Any]:
        results = self.measure(drawn)
        self.plot(results, folder / "edit_curves.png")
        self._picture(drawn, folder)
        return results

    def measure(self, drawn: Mapping[str, Drawn]) -> dict[str, Any]:
        """Way -> its figures at each strength, and those where shares of the edits are found."""
        others, results = self.own != self.asked, {}
        self.features, _ = self.context.seen(self.sources)
        for name, way in self.ways.items():
            shared, entries = {"guidance_scale": way.guidance}, {}
            curve = [self._figures(Drawn(self.sources, 0.0), 0.0)]
            for strength in self.strengths:
                entry = drawn[f"{name}-{strength:g}"]
                curve.append(self._figures(entry, strength))
                entries[f"strength_{strength:g}"] = {
                    "num_inference_steps": self.steps(EDIT),
                    **shared,
                    **_means(curve[-1], others),
                    "evaluations": entry.evaluations,
                    "control": _means(curve[-1], ~others),
                }
            of_others = [{name: v[others] for name, v in figures.items()} for figures in curve]
            for found, share in FOUND.items():
                entries[found] = shared | at_class_found(of_others, share)
            results[name] = entries
        return results

    def plot(self, results: Mapping[str, Any], path: Path) -> None:
        """A curve for each way of what `measure` gives, over the strengths."""
        found = {way: list(entries.values())[: -len(FOUND)] for way, entries in results.items()}
        lines = {
            way: [(e["ssim_to_source"], e["class_accuracy"]) for e in entries]
            for way, entries in found.items()
        }
        y = f"share whose class is the one asked for (n = {int((self.own != self.asked).sum())})"
        curves(lines, "SSIM to the source: how much of it is left", y, path)

    def _figures(self, entry: Drawn, strength: float) -> dict[str, Tensor]:
        """Figure -> values (N,), one for each edit of the sources."""
        features, classes = self.context.seen(entry.values)
        a, b = self.context.unit(self.sources), self.context.unit(entry.values)
        return {
            "class_accuracy": classes == self.asked,
            "source_class_kept": classes == self.own,
            "ssim_to_source": ssim(a, b),
            "psnr_to_source": psnr(a, b),
            "feature_distance": feature_distance(self.features, features),
            "strength": torch.full((len(b),), strength),
            "evaluations": torch.full((len(b),), entry.evaluations),
        }

    def _picture(self, drawn: Mapping[str, Drawn], folder: Path) -> None:
        """Writes edit.png: a source of each class, and its edits into another class."""
        pipe = self.context.pipe
        names, strength = pipe.class_names, pipe.spec(EDIT).default_strength
        shown = [self.sources, *(drawn[f"{way}-{strength:g}"].values for way in self.ways)]
        first = (self.own != self.asked).nonzero()[: len(names), 0].tolist()
        columns = (to_pictures(images[first], self.context.pipe.format) for images in shown)
        rows = list(zip(*columns, strict=True))
        labels = [f"{names[self.own[i]]} to {names[self.asked[i]]}" for i in first]
        grid(rows, labels, ["source", *self.ways], cell=84).save(folder / "edit.png")


def pairs(context: Context) -> tuple[Tensor, Tensor, Tensor]:
    """Edits of held-out images: first each class into the next one, at the end into its own.

    Edit i is the same for any number of edits. Its source is none of those before, as long as the
    class has other images.

    Returns:
        sources (N, C, H, W) as stored; own labels (N,); requested labels (N,).
    """
    labels, count = context.test.labels, len(context.pipe.class_names)
    of_class = [(labels == k).nonzero()[:, 0] for k in range(count)]
    of_class = [rows for rows in of_class if len(rows)]
    turns = [divmod(i, len(of_class)) for i in range(context.settings.edit_images)]
    rows = torch.stack([of_class[k][turn % len(of_class[k])] for turn, k in turns])
    own = labels[rows]
    asked = (own + 1 + torch.tensor([turn for turn, _ in turns])) % count
    return context.test.images[rows], own, asked


def one_stage(
    pipe, image: Tensor, label: Tensor, strength: float, scale: Tensor, steps: int, generators: list
) -> Tensor:
    """The edit of a pipeline of many steps, with a scale (B, 1, H, W), which a call does not take.

    `image` is (B, C, H, W) in [-1, 1], and so is the edit, but not clipped; `label` is (B,).
    """
    noise, task = initial_latents(None, generators, tuple(image.shape), image.device), TASKS[EDIT]
    own, strengths = own_generators(noise), torch.full((len(image),), strength, device=image.device)
    degrading = randn_tensor(noise.shape, own, image.device, torch.float32)
    hint = task.condition(image, torch.ones_like(image[:, :1]), strengths, degrading)
    conditioning = build_conditioning(hint, task, label, pipe.vocabulary)
    call = copy.copy(pipe)
    call._guidance_scale = scale
    start = task.start(strengths).tolist()
    return solve(call, image, noise, conditioning, start, steps, own, None, [])


def at_class_found(curve: Sequence[Mapping[str, Tensor]], share: float) -> dict[str, Any]:
    """The figures at the smallest strength where `share` of the edits have the requested class.

    Args:
        curve: figure -> (N,) values of the same N edits, at each strength from 0, the source
            itself, upwards. "class_accuracy" is whether the class is found.
        share: in (0, 1].

    Returns:
        n; "reached", whether any strength has such a share; if not, the "largest_share"; if so,
        each other figure with its standard error, to which the error of the share contributes.
    """
    found = [figures["class_accuracy"].double() for figures in curve]
    shares, n = [one.mean().item() for one in found], len(found[0])
    above = next((i for i, one in enumerate(shares) if one >= share), None)
    if above is None:
        return {"n": n, "reached": False, "largest_share": max(shares)}
    below = max(above - 1, 0)
    rise = shares[above] - shares[below]  # 0 where the sources have the share
    weight = (share - shares[below]) / rise if rise else 1.0
    results: dict[str, Any] = {"n": n, "reached": True}
    for name in curve[0].keys() - {"class_accuracy"}:
        low, high = curve[below][name].double(), curve[above][name].double()
        values = low.lerp(high, weight)
        slope = (high.mean() - low.mean()).item() / rise if rise else 0.0
        # The influence of each edit on the figure, to first order: its own value, and the crossing.
        influence = values - slope * found[below].lerp(found[above], weight)
        error = influence.std().item() / math.sqrt(n) if n > 1 else 0.0
        results |= {name: values.mean().item(), f"{name}_standard_error": error}
    return results


def _means(figures: Mapping[str, Tensor], rows: Tensor) -> dict[str, Any]:
    """n, and the mean of each figure over some of the edits, with its standard error."""
    n, measured = int(rows.sum()), figures.keys() - {"strength", "evaluations"}
    means = (mean(name, figures[name][rows]) for name in sorted(measured) if n)
    return {"n": n, **{name: value for one in means for name, value in one.items()}}
