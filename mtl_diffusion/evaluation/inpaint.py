"""How good completions are, for each kind of hole, beside RePaint with the same weights."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..data.images import MASK
from ..pictures.grids import grid, to_pictures
from ..pipeline.masks import MASKS, draw_masks
from ..tools.rng import generator
from .bulk import Drawn, Job
from .distances import frechet_distance, psnr, ssim
from .methods.denoisers import generate_denoiser, noise_levels
from .methods.repaint import repaint
from .parts import Context, Part, mean


class Inpaint(Part):
    """The first held-out images, with a hole of each kind, completed without a class."""

    name = "inpaint"
    task = "inpaint"

    def __init__(self, context: Context):
        super().__init__(context)
        self.count = min(context.settings.inpaint_images, len(context.test))
        self.images = context.test.images[: self.count]
        self.masks = {}  # kind -> (N, 1, H, W)
        for kind in MASKS:  # each mask is drawn on its own: the same for any number of images
            keys = ((context.settings.seed, "scorecard", kind, i) for i in range(self.count))
            masks = [draw_masks(1, context.pipe.format.size, generator(*key), kind) for key in keys]
            self.masks[kind] = torch.cat(masks)
        regions = context.test.layers.get(MASK, torch.zeros(0, 1, 1, 1))
        share = regions.float().mean((1, 2, 3))
        regions = regions[(share > 0) & (share < 1)]  # neither empty nor everything
        if len(regions):  # the masks of the held-out images, in turn
            self.masks["dataset"] = regions[torch.arange(self.count) % len(regions)].float()

    def jobs(self) -> list[Job]:
        found, sample, steps = [], self.context.sample, self.steps(self.task)
        for kind, masks in self.masks.items():
            each = {"image": self.images, "mask_image": masks}
            same = {"task": "inpaint", "key": (kind, 0), "num_inference_steps": steps}
            found.append(Job(f"inpaint-{kind}", sample, same, each))
            if self.context.has_baselines:
                same = {"key": ("inpaint", kind, 0), "steps": steps}
                found.append(Job(f"repaint-{kind}", self._repaint, same, each))
        return found

    def _repaint(
        self, rows: range, image: Tensor, mask_image: Tensor, key: tuple, steps: int
    ) -> Tensor:
        pipe, form = self.context.pipe, self.context.pipe.format
        D = generate_denoiser(pipe, torch.full((len(rows),), -1))
        known, mask = form.from_stored(image.to(pipe.device)), mask_image.to(pipe.device)
        random = self.context.generators(*key, rows=rows)
        levels = noise_levels(pipe.scheduler, steps)
        return form.to_stored(repaint(D, known, mask, levels, random))

    def score(self, drawn: Mapping[str, Drawn], folder: Path) -> dict[str, Any]:
        context = self.context
        originals = context.seen(self.images)
        features = context.space.features(context.rgb(context.train.images[: self.count]))
        floor = frechet_distance(features, originals[0])
        results: dict[str, Any] = {"floor": {"n": len(features), "frechet_distance": floor}}
        for kind, mask in self.masks.items():
            results[kind] = self._figures(drawn[f"inpaint-{kind}"], originals, mask)
            if context.has_baselines:
                entry = drawn[f"repaint-{kind}"]
                results[kind]["repaint"] = self._figures(entry, originals, mask)
        self._picture(drawn, folder)
        return results

    def _figures(
        self, entry: Drawn, originals: tuple[Tensor, Tensor], mask: Tensor
    ) -> dict[str, Any]:
        """Completions against their originals, `Context.seen`; mask: (N, 1, H, W), 1 = hole."""
        a, b = self.context.unit(self.images), self.context.unit(entry.values)
        features, classes = self.context.seen(entry.values)
        return {
            "n": self.count,
            "num_inference_steps": self.steps(self.task),
            "evaluations": entry.evaluations,
            **mean("psnr_in_hole", psnr(a, b, mask)),
            **mean("ssim_in_hole", ssim(a, b, mask)),
            **mean("same_class", originals[1] == classes),
            "frechet_distance": frechet_distance(features, originals[0]),
        }

    def _picture(self, drawn: Mapping[str, Drawn], folder: Path) -> None:
        """For each kind: an original, what is left of it, its completion, RePaint's."""
        rows, form = [], self.context.pipe.format
        grey = torch.tensor(form.stored_middle).to(self.images.dtype)
        for i, (kind, mask) in enumerate(self.masks.items()):
            i %= self.count
            entries = (entry for name, entry in drawn.items() if name.split("-")[1] == kind)
            left = self.images[i].where(mask[i] == 0, grey)
            shown = [self.images[i], left, *(entry.values[i] for entry in entries)]
            rows.append(to_pictures(torch.stack(shown), form))
        titles = ["original", "masked", "completed", "RePaint"]
        grid(rows, list(self.masks), titles[: len(rows[0])]).save(folder / "inpaint.png")
