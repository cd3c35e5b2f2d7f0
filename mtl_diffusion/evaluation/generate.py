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
from .parts import Context, Part, mean
from .spectrum import RealPower, plot, radial_power


@dataclass(frozen=True)
class Sampling:
    """One way to sample.

    Attributes:
        of: "by_class", which asks for every class in turn; "without_a_class", which lets the
            pipeline choose; or "null_class", which asks for none.
        steps: of the solver.
        guidance_scale: 1 is off.
        guidance_interval: the noise levels that are guided.
    """

    of: str
    steps: int
    guidance_scale: float = 1.0
    guidance_interval: tuple[float, float] = (0.0, math.inf)

    @property
    def interval(self) -> tuple[float, float] | None:
        """The interval, if some noise levels only are guided."""
        limited = self.guidance_scale != 1 and self.guidance_interval != (0, math.inf)
        return self.guidance_interval if limited else None

    @property
    def name(self) -> str:
        guided = f"_guidance_{self.guidance_scale:g}" if self.guidance_scale != 1 else ""
        if self.interval:
            guided += "_interval_{:g}_{:g}".format(*self.interval)
        return f"{self.of}{guided}_steps_{self.steps}"


class Generate(Part):
    """Samples against both splits, at several step counts and settings of guidance."""

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
        settings, main = self.context.settings, self.main
        found = [*main, *(Sampling("by_class", count) for count in settings.step_counts)]
        if settings.guidance_interval is not None:
            scale = self.context.pipe.default_guidance(self.task)
            found.append(Sampling("by_class", self.steps, scale, settings.guidance_interval))
        return list({sampling.name: sampling for sampling in found}.values())

    def jobs(self) -> list[Job]:
        return [self._job(sampling) for sampling in self.samplings]

    def _asked(self, sampling: Sampling, rows: range) -> Tensor | None:
        """(b,) the classes that are asked for."""
        by_class = sampling.of == "by_class"
        return torch.tensor(rows) % self.context.num_classes if by_class else None

    def _job(self, sampling: Sampling) -> Job:
        def each(rows: range) -> Arguments:
            asked = self._asked(sampling, rows)
            none = {"null_class": -1, "without_a_class": None}.get(sampling.of)
            return {"class_label": [none] * len(rows) if asked is None else asked.tolist()}

        same = {
            "task": "generate",
            "guidance_scale": sampling.guidance_scale,
            "guidance_interval": sampling.guidance_interval,
            "num_inference_steps": sampling.steps,
        }
        count = self.context.settings.num_images
        return Job(f"generate-{sampling.name}", count, self.context.sample, same, each)

    def score(self, drawn: Mapping[str, Drawn], folder: Path) -> dict[str, Any]:
        context = self.context
        train, test = context.features_of("train"), context.features_of("test")
        real, names = RealPower.of(context.train, context.num_classes), context.pipe.class_names
        n = min(context.settings.num_images, len(train), len(test))
        results: dict[str, Any] = {
            "floor": {
                "n": n,
                **distances(test[:n], train, train[:n], test),
                **radial_power(context.test.images[:n], context.test.labels[:n], real, names),
            }
        }
        for sampling in self.samplings:
            entry = drawn[f"generate-{sampling.name}"]
            asked = self._asked(sampling, range(len(entry.values)))
            features = context.space.features(entry.values)
            results[sampling.name] = {
                "n": len(entry.values),
                "guidance_scale": sampling.guidance_scale,
                "guidance_interval": sampling.interval,
                "num_inference_steps": sampling.steps,
                **entry.cost,
                **distances(features, train, features, test),
                **radial_power(entry.values, asked, real, names),
                **({} if asked is None else self._classes(entry.values, asked)),
            }
            if sampling == self.main[-1]:
                results["memorisation"] = memorisation(
                    context, entry.values, features, train, test, folder
                )
                plot(results[sampling.name]["radial_power"], sampling.name, folder)
        self._plot(results, folder)
        return results

    def _classes(self, images: Tensor, asked: Tensor) -> dict[str, Any]:
        """The share of samples in which the classifier finds the requested class."""
        right = self.context.classes_of(images) == asked
        names = self.context.pipe.class_names
        return {
            **mean("class_accuracy", right),
            "class_accuracy_by_class": {
                names[k]: right[asked == k].float().mean().item() for k in asked.unique().tolist()
            },
        }

    def _plot(self, results: Mapping[str, Any], folder: Path) -> None:
        """Draws quality_against_evaluations.png: a line for each guidance."""
        figure = "frechet_distance_to_train"
        lines: dict[str, list[tuple[float, float]]] = {}
        for sampling in self.samplings:
            if sampling.of == "by_class":
                line = f"guidance {sampling.guidance_scale:g}"
                if sampling.interval:
                    line += " at sigma {:g} to {:g}".format(*sampling.interval)
                entry = results[sampling.name]
                lines.setdefault(line, []).append((entry["evaluations"], entry[figure]))
        n, space = self.context.settings.num_images, self.context.space.name
        curves(
            {line: sorted(points) for line, points in lines.items()},
            f"evaluations of the network an image (n = {n})",
            f"Frechet distance to the training split ({space})",
            folder / "quality_against_evaluations.png",
            levels={"real images": results["floor"][figure]},
        )


def distances(drawn: Tensor, train: Tensor, again: Tensor, test: Tensor) -> dict[str, float]:
    """Distances of features (N, D) to those of both splits (.., D).

    Args:
        drawn: compared with the training split. again: compared with the held-out one.
    """
    # As many training images as samples: the balls depend on it.
    precision, recall = precision_recall(train[: len(drawn)], drawn)
    return {
        "frechet_distance_to_train": frechet_distance(drawn, train),
        "frechet_distance_to_test": frechet_distance(again, test),
        "precision": precision,
        "recall": recall,
    }


def memorisation(
    context: Context, images: Tensor, features: Tensor, train: Tensor, test: Tensor, folder: Path
) -> dict[str, Any]:
    """Distances of samples to the nearest training image, relative to those of held-out images.

    The ratio is well below 1 for a model that copies.

    Args:
        images: (N, 3, H, W) uint8, and their features (N, D). train, test: features of the splits.
    """
    n = min(len(images), len(test))
    distance, real = nearest(features[:n], train), nearest(test[:n], train)
    order = torch.cdist(features[:10], train).argsort(1)[:, :5]
    rows = [
        [sample, *to_pictures(context.train.images[order[i]])]
        for i, sample in enumerate(to_pictures(images[:10]))
    ]
    labels = ["sample", "nearest", "2nd", "3rd", "4th", "5th"]
    grid(rows, column_labels=labels).save(folder / "nearest_training_images.png")
    return {
        "n": n,
        "nearest_distance_ratio": (distance.median() / real.median()).item(),
        "nearer_than_held_out_1_percent": (distance < real.quantile(0.01)).float().mean().item(),
    }
