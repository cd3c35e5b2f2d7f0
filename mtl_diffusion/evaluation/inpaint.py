"""How good completions are, for each kind of hole, beside RePaint with the same weights."""

from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..pictures.grids import grid, to_pictures
from ..pipeline.masks import MASKS, draw_masks
from ..tools.rng import generator
from ..tools.tensors import to_uint8, to_unit_range
from .baselines import repaint
from .bulk import Drawn, Job
from .denoise import generate_denoiser, noise_levels
from .distances import frechet_distance
from .likeness import feature_distance, psnr, ssim
from .parts import Context, Part, Seen, mean


class Inpaint(Part):
    """The first held-out images, with a hole of each kind, completed without a class."""

    name = "inpaint"
    task = "inpaint"

    def __init__(self, context: Context):
        super().__init__(context)
        self.count = min(context.settings.inpaint_images, len(context.test))
        self.images = context.test.images[: self.count]
        self.masks = {
            kind: draw_masks(
                self.count,
                context.pipe.size,
                generator(context.settings.seed, "scorecard", kind),
                kind,
            )
            for kind in MASKS
        }

    @cached_property
    def originals(self) -> Seen:
        """The unpainted images."""
        return Seen.of(self.context, self.images)

    def jobs(self) -> list[Job]:
        seeds = range(self.context.settings.inpaint_seeds)
        found = [self._completion(kind, seed) for kind in MASKS for seed in seeds]
        return found + [self._repaint(kind) for kind in MASKS if self.context.has_baselines]

    def _completion(self, kind: str, seed: int) -> Job:
        context, steps = self.context, self.steps

        def draw(rows: range) -> Tensor:
            return context.sample(
                *("inpaint", kind, seed),
                rows=rows,
                image=self.images[rows.start : rows.stop].float() / 255,
                mask_image=self.masks[kind][rows.start : rows.stop],
                num_inference_steps=steps,
            )

        name = f"inpaint-{kind}-{seed}"
        return context.job(name, self.count, draw, steps=steps, data=context.test.fingerprint)

    def _repaint(self, kind: str) -> Job:
        context, steps = self.context, self.steps

        def draw(rows: range) -> Tensor:
            device = context.pipe.device
            known = to_unit_range(self.images[rows.start : rows.stop].to(device))
            D = generate_denoiser(context.pipe, torch.full((len(rows),), -1, device=device))
            painted = repaint(
                D,
                known,
                self.masks[kind][rows.start : rows.stop].to(device),
                noise_levels(context.pipe.scheduler, steps),
                context.generators("inpaint", kind, 0, rows=rows),
            )
            return to_uint8(painted)

        name = f"repaint-{kind}"
        return context.job(name, self.count, draw, steps=steps, data=context.test.fingerprint)

    def score(self, drawn: Mapping[str, Drawn], folder: Path) -> dict[str, Any]:
        settings = self.context.settings
        results: dict[str, Any] = {"floor": self._floor()}
        for kind, mask in self.masks.items():
            repeats = [drawn[f"inpaint-{kind}-{seed}"] for seed in range(settings.inpaint_seeds)]
            results[kind] = self._entry(repeats[0], mask)
            if len(repeats) > 1:
                drawn_all = torch.stack([repeat.values for repeat in repeats])
                results[kind] |= mean("diversity", diversity(drawn_all, mask))
                results[kind] |= mean_completion(self.images, drawn_all, mask)
            if self.context.has_baselines:
                results[kind]["repaint"] = self._entry(drawn[f"repaint-{kind}"], mask)
        self._picture(drawn, folder)
        return results

    def _entry(self, entry: Drawn, mask: Tensor) -> dict[str, Any]:
        return {
            "n": self.count,
            "num_inference_steps": self.steps,
            "evaluations": entry.evaluations,
            **completion_scores(self.context, self.images, self.originals, entry.values, mask),
        }

    def _floor(self) -> dict[str, Any]:
        """The distance of as many training images to the originals."""
        features = self.context.space.features(self.context.train.images[: self.count])
        return {
            "n": len(features),
            "frechet_distance": frechet_distance(features, self.originals.features),
        }

    def _picture(self, drawn: Mapping[str, Drawn], folder: Path) -> None:
        """For each kind: an original, what is left of it, completions, RePaint's."""
        seeds = range(self.context.settings.inpaint_seeds)
        jobs = [(f"seed {seed}", "inpaint-{}-" + str(seed)) for seed in seeds]
        jobs += [("RePaint", "repaint-{}")] if self.context.has_baselines else []
        rows = []
        for i, (kind, mask) in enumerate(self.masks.items()):
            one = slice(i % self.count, i % self.count + 1)
            left = torch.where(
                mask[one] > 0, torch.tensor(128, dtype=torch.uint8), self.images[one]
            )
            shown = [self.images[one], left, *(drawn[j.format(kind)].values[one] for _, j in jobs)]
            rows.append([to_pictures(image)[0] for image in shown])
        titles = ["original", "masked", *(title for title, _ in jobs)]
        grid(rows, list(MASKS), titles).save(folder / "inpaint.png")


def completion_scores(
    context: Context, originals: Tensor, seen: Seen, completed: Tensor, mask: Tensor
) -> dict[str, float]:
    """Completions against their originals, both (N, 3, H, W) uint8.

    Args:
        seen: of the originals. mask: (N, 1, H, W), 1 = hole.
    """
    a, b = originals.float() / 255, completed.float() / 255
    found = Seen.of(context, completed)
    return {
        **mean("psnr_in_hole", psnr(a, b, mask)),
        **mean("ssim_in_hole", ssim(a, b, mask)),
        **mean("feature_distance", feature_distance(seen.features, found.features)),
        **mean("same_class", seen.classes == found.classes),
        "frechet_distance": frechet_distance(found.features, seen.features),
    }


def mean_completion(originals: Tensor, repeats: Tensor, mask: Tensor) -> dict[str, float]:
    """The likeness of the mean over S seeds, which errs less than each of them, and is blurred.

    Args:
        originals: (N, 3, H, W) uint8. repeats: (S, N, 3, H, W) uint8. mask: (N, 1, H, W), 1 = hole.
    """
    average = repeats.float().mean(0) / 255
    found = mean("psnr_of_mean_in_hole", psnr(originals.float() / 255, average, mask))
    return {"mean_of": len(repeats), **found}


def diversity(repeats: Tensor, mask: Tensor) -> Tensor:
    """(N,) deviation inside the hole, in [0, 1], over S completions (S, N, 3, H, W) uint8."""
    spread = (repeats.float() / 255).var(0).mean(1, keepdim=True)  # (N, 1, H, W)
    return ((spread * mask).sum((1, 2, 3)) / mask.sum((1, 2, 3))).sqrt()
