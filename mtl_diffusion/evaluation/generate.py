"""How good samples are: distances to the data, precision and recall, classes, memorisation."""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..pictures.plots import curves
from .bulk import Drawn, Job
from .distances import frechet_distance, kth_distance, precision_recall
from .parts import Part, mean


class Generate(Part):
    """Samples against both splits, at several step counts, with guidance and without."""

    name = "generate"
    task = "generate"

    @property
    def main(self) -> list[Job]:
        """Those of the summary; the last is that of a class, at the model's defaults."""
        pipe, steps = self.context.pipe, self.steps(self.task)
        guided = pipe.default_guidance(self.task), pipe.spec(self.task).default_guidance_interval
        jobs = [
            self._job("null_class", steps),
            self._job("without_a_class", steps, *guided),
            self._job("by_class", steps),
            self._job("by_class", steps, *guided),
        ]
        return list({job.name: job for job in jobs}.values())

    @property
    def samplings(self) -> list[Job]:
        more = (self._job("by_class", count) for count in self.context.settings.step_counts)
        return list({job.name: job for job in (*self.main, *more)}.values())

    def _job(
        self,
        of: str,
        steps: int,
        scale: float = 1.0,
        interval: tuple[float, float] = (0.0, math.inf),
    ) -> Job:
        """One way to sample.

        Args:
            of: "by_class", which asks for every class in turn; "without_a_class", which lets the
                pipeline choose; or "null_class", which asks for none.
            scale: of guidance.
            interval: of noise levels, in which samples are guided.
        """
        guided = f"_guidance_{scale:g}" if scale != 1 else ""
        if guided and interval != (0, math.inf):
            guided += "_interval_{:g}_{:g}".format(*interval)
        same = {"task": "generate", "num_inference_steps": steps}
        same |= {"guidance_scale": scale, "guidance_interval": interval}
        classes, n = len(self.context.pipe.class_names), self.context.settings.num_images
        others = {"null_class": -1, "without_a_class": None}
        labels = [others.get(of, i % classes) for i in range(n)]
        name = f"{of}{guided}_steps_{steps}"
        return Job(name, self.context.sample, same, {"class_label": labels})

    def jobs(self) -> list[Job]:
        return [*self.samplings, self.context.reference("train"), self.context.reference("test")]

    def score(self, drawn: Mapping[str, Drawn], folder: Path) -> dict[str, Any]:
        context = self.context
        train, test = (drawn[f"features-{split}"].values for split in ("train", "test"))

        def figures(features: Tensor) -> dict[str, Any]:
            # As many training images as samples: the balls depend on it.
            precision, recall = precision_recall(train[: len(features)], features)
            return {
                "frechet_distance_to_train": frechet_distance(features, train),
                "frechet_distance_to_test": frechet_distance(features, test),
                "precision": precision,
                "recall": recall,
            }

        n = min(context.settings.num_images, len(train), len(test))
        floor = figures(test[:n])
        floor["frechet_distance_to_test"] = frechet_distance(train[:n], test)
        results: dict[str, Any] = {"floor": {"n": n, **floor}}
        lines: dict[str, list] = {}  # by class, one for each guidance
        for job in self.samplings:
            images, evaluations = drawn[job.name].values, drawn[job.name].evaluations
            features, classes = context.seen(images)
            found = figures(features)
            if job.name.startswith("by_class"):
                found |= mean("class_accuracy", classes == torch.tensor(job.each["class_label"]))
                line = job.name.partition("_steps_")[0].replace("_", " ")
                point = (evaluations, found["frechet_distance_to_train"])
                lines.setdefault(line, []).append(point)
            given = {k: job.same[k] for k in ("guidance_scale", "num_inference_steps")}
            results[job.name] = {"n": len(images), **given, "evaluations": evaluations, **found}
            if job.name == self.main[-1].name:
                results["memorisation"] = memorisation(features, train, test)
        curves(
            {line: sorted(points) for line, points in lines.items()},
            f"evaluations of the network an image (n = {context.settings.num_images})",
            f"Frechet distance to the training split ({context.space.name})",
            folder / "quality_against_evaluations.png",
            levels={"real images": floor["frechet_distance_to_train"]},
        )
        return results


def memorisation(features: Tensor, train: Tensor, test: Tensor) -> dict[str, Any]:
    """Distances of samples to the nearest training image, relative to those of held-out images.

    The ratio is well below 1 for a model that copies. The arguments are features (.., D).
    """
    n = min(len(features), len(test))
    distance, real = kth_distance(features[:n], train, 1), kth_distance(test[:n], train, 1)
    return {
        "n": n,
        "nearest_distance_ratio": (distance.median() / real.median()).item(),
        "nearer_than_held_out_1_percent": (distance < real.quantile(0.01)).float().mean().item(),
    }
