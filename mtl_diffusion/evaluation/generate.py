"""How good samples are: distances to the data, precision and recall, classes, memorisation."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..pictures.grids import grid, to_pictures
from ..pictures.plots import curves
from .bulk import Arguments, Drawn, Job
from .distances import frechet_distance, nearest, precision_recall
from .parts import Part, mean
from .spectrum import plot_radial_power, radial_power, real_power


@dataclass(frozen=True)
class Sampling:
    """One way to sample.

    Attributes:
        of: "by_class", which asks for every class in turn; "without_a_class", which lets the
            pipeline choose; or "null_class", which asks for none.
    """

    of: str
    steps: int
    guidance_scale: float = 1.0
    guidance_interval: tuple[float, float] = (0.0, math.inf)

    @property
    def name(self) -> str:
        guided = f"_guidance_{self.guidance_scale:g}" if self.guidance_scale != 1 else ""
        if guided and self.guidance_interval != (0, math.inf):
            guided += "_interval_{:g}_{:g}".format(*self.guidance_interval)
        return f"{self.of}{guided}_steps_{self.steps}"


class Generate(Part):
    """Samples against both splits, at several step counts, with guidance and without."""

    name = "generate"
    task = "generate"

    @property
    def main(self) -> list[Sampling]:
        """Those of the summary; the last is that of a class, at the model's defaults."""
        pipe, steps = self.context.pipe, self.steps
        guided = pipe.default_guidance(self.task), pipe.default_guidance_interval(self.task)
        found = [
            Sampling("null_class", steps),
            Sampling("without_a_class", steps, *guided),
            Sampling("by_class", steps),
            Sampling("by_class", steps, *guided),
        ]
        return list({sampling.name: sampling for sampling in found}.values())

    @property
    def samplings(self) -> list[Sampling]:
        more = (Sampling("by_class", count) for count in self.context.settings.step_counts)
        return list({sampling.name: sampling for sampling in (*self.main, *more)}.values())

    def jobs(self) -> list[Job]:
        return [self._job(sampling) for sampling in self.samplings]

    def _job(self, sampling: Sampling) -> Job:
        same = {"task": "generate", "num_inference_steps": sampling.steps}
        same["guidance_scale"] = sampling.guidance_scale
        same["guidance_interval"] = sampling.guidance_interval

        def each(rows: range) -> Arguments:
            return {"class_label": self._asked(sampling, rows)}

        count, sample = self.context.settings.num_images, self.context.sample
        return Job(f"generate-{sampling.name}", count, sample, same, each)

    def _asked(self, sampling: Sampling, rows: range) -> list[int | None]:
        """The class label of each row."""
        none = {"null_class": -1, "without_a_class": None}
        count = len(self.context.pipe.class_names)
        return [none.get(sampling.of, row % count) for row in rows]

    def score(self, drawn: Mapping[str, Drawn], folder: Path) -> dict[str, Any]:
        context, names = self.context, self.context.pipe.class_names
        train, test = context.features_of("train"), context.features_of("test")
        real = real_power(context.train, len(names))

        def figures(images: Tensor, labels: Tensor | None, features: Tensor) -> dict[str, Any]:
            # As many training images as samples: the balls depend on it.
            precision, recall = precision_recall(train[: len(features)], features)
            return {
                "frechet_distance_to_train": frechet_distance(features, train),
                "frechet_distance_to_test": frechet_distance(features, test),
                "precision": precision,
                "recall": recall,
                **radial_power(context.rgb(images), labels, real, names),
            }

        n = min(context.settings.num_images, len(train), len(test))
        floor = figures(context.test.images[:n], context.test.labels[:n], test[:n])
        floor["frechet_distance_to_test"] = frechet_distance(train[:n], test)
        results: dict[str, Any] = {"floor": {"n": n, **floor}}
        for sampling in self.samplings:
            entry = drawn[f"generate-{sampling.name}"]
            asked = self._asked(sampling, range(len(entry.values)))
            asked = torch.tensor(asked) if sampling.of == "by_class" else None
            features = context.space.features(context.rgb(entry.values))
            results[sampling.name] = {
                "n": len(entry.values),
                "guidance_scale": sampling.guidance_scale,
                "num_inference_steps": sampling.steps,
                **entry.cost,
                **figures(entry.values, asked, features),
                **({} if asked is None else self._classes(entry.values, asked)),
            }
            if sampling == self.main[-1]:
                results["memorisation"] = memorisation(features, train, test)
                plot_radial_power(results[sampling.name]["radial_power"], sampling.name, folder)
                self._picture(entry.values, features, train, folder)
        self._plot(results, folder)
        return results

    def _classes(self, images: Tensor, asked: Tensor) -> dict[str, Any]:
        """The share of samples in which the classifier finds the requested class."""
        right, names = self.context.classes_of(images) == asked, self.context.pipe.class_names
        groups = {names[k]: right[asked == k].double() for k in asked.unique().tolist()}
        by_class = {name: group.mean().item() for name, group in groups.items()}
        return {**mean("class_accuracy", right), "class_accuracy_by_class": by_class}

    def _plot(self, results: Mapping[str, Any], folder: Path) -> None:
        """Draws quality_against_evaluations.png: a line for each guidance."""
        figure, lines = "frechet_distance_to_train", {}
        for sampling in self.samplings:
            if sampling.of == "by_class":
                line = sampling.name.partition("_steps_")[0].replace("_", " ")
                entry = results[sampling.name]
                lines.setdefault(line, []).append((entry["evaluations"], entry[figure]))
        curves(
            {line: sorted(points) for line, points in lines.items()},
            f"evaluations of the network an image (n = {self.context.settings.num_images})",
            f"Frechet distance to the training split ({self.context.space.name})",
            folder / "quality_against_evaluations.png",
            levels={"real images": results["floor"][figure]},
        )

    def _picture(self, images: Tensor, features: Tensor, known: Tensor, folder: Path) -> None:
        """Draws nearest_training_images.png, of the first ten samples."""
        order = torch.cdist(features[:10], known).argsort(1)[:, :5]
        form, train = self.context.format, self.context.train.images
        samples = zip(to_pictures(images[:10], form), order, strict=True)
        rows = [[one, *to_pictures(train[near], form)] for one, near in samples]
        labels = ["sample", "nearest", "2nd", "3rd", "4th", "5th"]
        grid(rows, column_labels=labels).save(folder / "nearest_training_images.png")


def memorisation(features: Tensor, train: Tensor, test: Tensor) -> dict[str, Any]:
    """Distances of samples to the nearest training image, relative to those of held-out images.

    The ratio is well below 1 for a model that copies. The arguments are features (.., D).
    """
    n = min(len(features), len(test))
    distance, real = nearest(features[:n], train), nearest(test[:n], train)
    return {
        "n": n,
        "nearest_distance_ratio": (distance.median() / real.median()).item(),
        "nearer_than_held_out_1_percent": (distance < real.quantile(0.01)).float().mean().item(),
    }
