"""How near the tasks that make an image of one of another kind come to the true images."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..pictures.grids import grid, to_pictures
from .bulk import Drawn, Job
from .distances import feature_distance, psnr, ssim
from .parts import Context, Part, mean


class Translate(Part):
    """The first held-out images, each made of its condition, with its class."""

    name = "translate"
    task = "translate"  # there is one of each name in `pipe.translations`

    def __init__(self, context: Context):
        super().__init__(context)
        self.test = context.test
        self.tasks = [name for name in context.pipe.translations if name in self.test.conditions]
        self.count = min(context.settings.inpaint_images, len(self.test))

    def jobs(self) -> list[Job]:
        return [self._job(task) for task in self.tasks]

    def _job(self, task: str) -> Job:
        labels = self.test.labels[: self.count].tolist()
        each = {"image": self.test.conditions[task][: self.count], "class_label": labels}
        same = {"task": task, "num_inference_steps": self.steps(task)}
        return Job(f"translate-{task}", self.context.sample, same, each)

    def score(self, drawn: Mapping[str, Drawn], folder: Path) -> dict[str, Any]:
        images, results = self.test.images[: self.count], {}
        true, (before, _) = self.context.unit(images), self.context.seen(images)
        for task in self.tasks:
            entry = drawn[f"translate-{task}"]
            found = self.context.unit(entry.values)
            after, _ = self.context.seen(entry.values)
            results[task] = {
                "n": self.count,
                "evaluations": entry.evaluations,
                **mean("psnr", psnr(true, found)),
                **mean("ssim", ssim(true, found)),
                **mean("feature_distance", feature_distance(before, after)),
            }
            parts = (self.test.conditions[task][:8], entry.values[:8], images[:8])
            rows = zip(
                *(to_pictures(part, self.context.pipe.format) for part in parts), strict=True
            )
            titles = ["condition", "result", "true"]
            grid(list(rows), column_labels=titles).save(folder / f"{task}.png")
        return results
