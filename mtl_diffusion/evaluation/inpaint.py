"""How good completions are, for each kind of hole, beside RePaint with the same weights."""

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..data.images import MASK
from ..pictures.grids import grid, to_pictures
from ..pipeline.masks import MASKS, draw_masks
from ..tools.rng import generator
from .bulk import Arguments, Drawn, Job
from .distances import feature_distance, frechet_distance, masked_mean, psnr, ssim
from .methods.denoisers import generate_denoiser, noise_levels
from .methods.repaint import repaint
from .parts import Context, Part, Seen, mean


class Inpaint(Part):
    """The first held-out images, with a hole of each kind, completed without a class."""

    name = "inpaint"
    task = "inpaint"

    def __init__(self, context: Context):
        super().__init__(context)
        self.count = min(context.settings.inpaint_images, len(context.test))
        self.images = context.test.images[: self.count]
        self.seeds = range(context.settings.inpaint_seeds)
        self.masks = {}
        for kind in MASKS:  # each mask is drawn on its own: the same for any number of images
            keys = ((context.settings.seed, "scorecard", kind, i) for i in range(self.count))
            masks = (draw_masks(1, context.format.size, generator(*key), kind) for key in keys)
            self.masks[kind] = torch.cat(list(masks))  # (N, 1, H, W)
        regions = context.test.layers.get(MASK, torch.zeros(0, 1, 1, 1))
        regions = regions[
            regions.float().mean((1, 2, 3)).frac() > 0
        ]  # no empty one, nor everything
        if len(regions):  # the masks of the held-out images, in turn
            self.masks["dataset"] = regions[torch.arange(self.count) % len(regions)].float()

    def jobs(self) -> list[Job]:
        found, sample = [], self.context.sample
        for kind in self.masks:
            each = partial(self._each, kind)
            for seed in self.seeds:
                same = {"task": "inpaint", "key": (kind, seed), "num_inference_steps": self.steps}
                found.append(Job(f"inpaint-{kind}-{seed}", self.count, sample, same, each))
            if self.context.has_baselines:
                same = {"key": ("inpaint", kind, 0), "steps": self.steps}
                found.append(Job(f"repaint-{kind}", self.count, self._repaint, same, each))
        return found

    def _each(self, kind: str, rows: range) -> Arguments:
        part = slice(rows.start, rows.stop)
        return {"image": self.images[part], "mask_image": self.masks[kind][part]}

    def _repaint(
        self, rows: range, image: Tensor, mask_image: Tensor, key: tuple, steps: int
    ) -> Tensor:
        pipe = self.context.pipe
        D = generate_denoiser(pipe, torch.full((len(rows),), -1))
        form, mask = self.context.format, mask_image.to(pipe.device)
        known = form.from_stored(image.to(pipe.device))
        random = self.context.generators(*key, rows=rows)
        levels = noise_levels(pipe.scheduler, steps)
        return form.to_stored(repaint(D, known, mask, levels, random))

    def score(self, drawn: Mapping[str, Drawn], folder: Path) -> dict[str, Any]:
        originals = Seen.of(self.context, self.images)
        features = self.context.space.features(
            self.context.rgb(self.context.train.images[: self.count])
        )
        floor = frechet_distance(features, originals.features)
        results: dict[str, Any] = {"floor": {"n": len(features), "frechet_distance": floor}}
        for kind, mask in self.masks.items():
            repeats = [drawn[f"inpaint-{kind}-{seed}"] for seed in self.seeds]
            results[kind] = self._figures(repeats[0], originals, mask)
            if len(repeats) > 1:
                values = torch.stack([self.context.unit(repeat.values) for repeat in repeats])
                results[kind] |= mean("diversity", diversity(values, mask))
                whole = self.context.unit(self.images)
                results[kind] |= mean_completion(whole, values, mask)
            if self.context.has_baselines:
                found = self._figures(drawn[f"repaint-{kind}"], originals, mask)
                results[kind]["repaint"] = found
        self._picture(drawn, folder)
        return results

    def _figures(self, entry: Drawn, originals: Seen, mask: Tensor) -> dict[str, Any]:
        """Completions against their originals; mask: (N, 1, H, W), 1 = hole."""
        a, b = self.context.unit(self.images), self.context.unit(entry.values)
        seen = Seen.of(self.context, entry.values)
        return {
            "n": self.count,
            "num_inference_steps": self.steps,
            **entry.cost,
            **mean("psnr_in_hole", psnr(a, b, mask)),
            **mean("ssim_in_hole", ssim(a, b, mask)),
            **mean("feature_distance", feature_distance(originals.features, seen.features)),
            **mean("same_class", originals.classes == seen.classes),
            "frechet_distance": frechet_distance(seen.features, originals.features),
        }

    def _picture(self, drawn: Mapping[str, Drawn], folder: Path) -> None:
        """For each kind: an original, what is left of it, completions, RePaint's."""
        rows, form = [], self.context.format
        grey = torch.tensor(form.stored_middle).to(self.images.dtype)
        for i, (kind, mask) in enumerate(self.masks.items()):
            i %= self.count
            entries = (entry for name, entry in drawn.items() if name.split("-")[1] == kind)
            left = self.images[i].where(mask[i] == 0, grey)
            shown = [self.images[i], left, *(entry.values[i] for entry in entries)]
            rows.append(to_pictures(torch.stack(shown), form))
        titles = ["original", "masked", *(f"seed {seed}" for seed in self.seeds), "RePaint"]
        grid(rows, list(self.masks), titles[: len(rows[0])]).save(folder / "inpaint.png")


def mean_completion(originals: Tensor, repeats: Tensor, mask: Tensor) -> dict[str, float]:
    """The likeness of the mean over S seeds, which errs less than each of them, and is blurred.

    Args:
        originals: (N, C, H, W) in [0, 1]. repeats: (S, N, C, H, W) alike. mask: (N, 1, H, W).
    """
    likeness = psnr(originals, repeats.mean(0), mask)
    return {"mean_of": len(repeats), **mean("psnr_of_mean_in_hole", likeness)}


def diversity(repeats: Tensor, mask: Tensor) -> Tensor:
    """(N,) deviation inside the hole, in [0, 1], over S completions (S, N, C, H, W) alike."""
    return masked_mean(repeats.var(0), mask).sqrt()
