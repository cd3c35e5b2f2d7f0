"""How near the tasks that make an image of one of another kind come to the true images."""

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

from ..pictures.grids import grid, to_pictures
from .bulk import Arguments, Drawn, Job
from .distances import feature_distance, psnr, ssim
from .parts import Context, Part, Seen, mean


class Translate(Part):
    """The first held-out images, each made of its condition, with its class."""

    name = "translate"
    task = "translate"  # there is one of each name in `pipe.translations`

    def __init__(self, context: Context):
        self.context, self.test = context, context.test
        self.tasks = [name for name in context.pipe.translations if name in self.test.conditions]
        self.count = min(context.settings.inpaint_images, len(self.test))

    def jobs(self) -> list[Job]:
        given = self.context.settings.num_inference_steps
        return [
            Job(
                f"translate-{task}",
                self.count,
                self.context.sample,
                {
                    "task": task,
                    "num_inference_steps": given or self.context.pipe.default_steps(task),
                },
                partial(self._each, task),
            )
            for task in self.tasks
        ]

    def _each(self, task: str, rows: range) -> Arguments:
        part = slice(rows.start, rows.stop)
        labels = self.test.labels[part].tolist()
        return {"image": self.test.conditions[task][part], "class_label": labels}

    def score(self, drawn: Mapping[str, Drawn], folder: Path) -> dict[str, Any]:
        images, results = self.test.images[: self.count], {}
        true, seen = self.context.unit(images), Seen.of(self.context, images)
        for task in self.tasks:
            entry = drawn[f"translate-{task}"]
            found = self.context.unit(entry.values)
            features = Seen.of(self.context, entry.values).features
            results[task] = {
                "n": self.count,
                **entry.cost,
                **mean("psnr", psnr(true, found)),
                **mean("ssim", ssim(true, found)),
                **mean("feature_distance", feature_distance(seen.features, features)),
            }
            parts = (self.test.conditions[task][:8], entry.values[:8], images[:8])
            rows = zip(*(to_pictures(part, self.context.format) for part in parts), strict=True)
            titles = ["condition", "result", "true"]
            grid(list(rows), column_labels=titles).save(folder / f"{task}.png")
        return results
