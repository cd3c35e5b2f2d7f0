"""How good samples are: distances to the data, precision and recall, classes, memorisation."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..pictures.grids import grid, to_pictures
from ..pictures.plots import curves
from .bulk import Drawn, Job
from .distances import frechet_distance, kernel_distance, nearest, precision_recall
from .parts import Context, Part, mean
from .spectrum import RealPower, plot, radial_power


@dataclass(frozen=True)
class Sampling:
    """One way to sample.

    Attributes:
        by_class: condition on every class in turn; else on none.
        guidance_scale: 1 is off.
        steps: of the solver.
        guidance_interval: the noise levels that are guided.
    """

    by_class: bool
    guidance_scale: float
    steps: int
    guidance_interval: tuple[float, float] = (0.0, math.inf)

    @property
    def limited(self) -> bool:
        """Whether some noise levels only are guided."""
        return self.guidance_scale != 1 and self.guidance_interval != (0, math.inf)

    @property
    def name(self) -> str:
        asked = "by_class" if self.by_class else "unconditional"
        guided = f"_guidance_{self.guidance_scale:g}" if self.guidance_scale != 1 else ""
        if self.limited:
            guided += "_interval_{:g}_{:g}".format(*self.guidance_interval)
        return f"{asked}{guided}_steps_{self.steps}"


class Generate(Part):
    """Samples against both splits, at several step counts and settings of guidance."""

    name = "generate"
    task = "generate"

    @property
    def guided(self) -> Sampling:
        """By class, as the model samples by default; one of few steps has no guidance."""
        pipe, task = self.context.pipe, self.task
        scale, interval = pipe.default_guidance(task), pipe.default_guidance_interval(task)
        return Sampling(True, scale, self.steps, interval)

    @property
    def samplings(self) -> list[Sampling]:
        settings, steps, guided = self.context.settings, self.steps, self.guided
        counts = sorted({*settings.step_counts, steps})
        found = [Sampling(False, 1.0, steps), *(Sampling(True, 1.0, count) for count in counts)]
        if guided.guidance_scale != 1:
            found.append(guided)
        if settings.guidance_interval is not None:
            found.append(replace(guided, guidance_interval=tuple(settings.guidance_interval)))
        return list(dict.fromkeys(found))

    def jobs(self) -> list[Job]:
        return [self._job(sampling) for sampling in self.samplings]

    def _asked(self, rows: range) -> Tensor:
        return torch.tensor(rows) % self.context.num_classes

    def _job(self, sampling: Sampling) -> Job:
        context = self.context

        def draw(rows: range) -> Tensor:
            labels = self._asked(rows).tolist() if sampling.by_class else [None] * len(rows)
            return context.sample(
                "generate",
                rows=rows,
                class_label=labels,
                guidance_scale=sampling.guidance_scale,
                guidance_interval=sampling.guidance_interval,
                num_inference_steps=sampling.steps,
            )

        return context.job(f"generate-{sampling.name}", context.settings.num_images, draw)

    def score(self, drawn: Mapping[str, Drawn], folder: Path) -> dict[str, Any]:
        context = self.context
        train, test = context.features_of("train"), context.features_of("test")
        real, names = RealPower.of(context.train, context.num_classes), context.pipe.class_names
        results: dict[str, Any] = {"floor": floor(train, test, context.settings.num_images)}
        held_out = slice(results["floor"]["n"])
        results["floor"] |= radial_power(
            context.test.images[held_out], context.test.labels[held_out], real, names
        )
        plain = self.samplings[0]
        for sampling in self.samplings:
            entry = drawn[f"generate-{sampling.name}"]
            features = context.space.features(entry.values)
            results[sampling.name] = {
                "n": len(entry.values),
                "guidance_scale": sampling.guidance_scale,
                "guidance_interval": sampling.guidance_interval if sampling.limited else None,
                "num_inference_steps": sampling.steps,
                "evaluations": entry.evaluations,
                **distances(features, train, test),
            }
            if sampling == plain:
                results["memorisation"] = memorisation(
                    context, entry.values, features, train, test, folder
                )
            asked = self._asked(range(len(entry.values))) if sampling.by_class else None
            results[sampling.name] |= radial_power(entry.values, asked, real, names)
            if asked is not None:
                results[sampling.name] |= self._classes(entry.values, asked)
        shown = self.guided.name
        plot(results[shown]["radial_power"], shown, folder / "radial_power.png")
        return results

    def _classes(self, images: Tensor, asked: Tensor) -> dict[str, Any]:
        """The share of samples in which the classifier finds the requested class."""
        right = self.context.classes_of(images) == asked
        names = self.context.pipe.class_names
        return {
            **mean("class_accuracy", right),
            "class_accuracy_by_class": {
                name: right[asked == k].float().mean().item()
                for k, name in enumerate(names)
                if (asked == k).any()
            },
        }


def plot_quality(models: Mapping[str, Mapping[str, Any]], n: int, space: str, folder: Path) -> None:
    """Draws quality_against_evaluations.png: a line for each model and guidance scale.

    Args:
        models: name of a pipeline -> its figures of generate, of n samples each.
    """
    figure = "frechet_distance_to_train"
    lines: dict[str, list[tuple[float, float]]] = {}
    for model, results in models.items():
        for name, entry in results.items():
            if name.startswith("by_class"):
                line = f"{model}, guidance {entry['guidance_scale']:g}"
                if entry["guidance_interval"]:
                    line += " at sigma {:g} to {:g}".format(*entry["guidance_interval"])
                lines.setdefault(line, []).append((entry["evaluations"], entry[figure]))
    curves(
        {line: sorted(points) for line, points in lines.items()},
        f"evaluations of the network an image (n = {n})",
        f"Frechet distance to the training split ({space})",
        folder / "quality_against_evaluations.png",
        levels={"real images": next(iter(models.values()))["floor"][figure]},
    )


def distances(features: Tensor, train: Tensor, test: Tensor) -> dict[str, float]:
    """Distances from the features of samples (N, D) to those of both splits (.., D)."""
    count = min(len(train), len(features))  # as many as samples: the balls depend on it
    precision, recall = precision_recall(train[:count], features)
    return {
        **distance_to("train", features, train),
        **distance_to("test", features, test),
        "precision": precision,
        "recall": recall,
    }


def distance_to(split: str, features: Tensor, reference: Tensor) -> dict[str, float]:
    """Distances from features (N, D) to those of a split (M, D)."""
    kernel, deviation = kernel_distance(features, reference)
    return {
        f"frechet_distance_to_{split}": frechet_distance(features, reference),
        f"kernel_distance_to_{split}": kernel,
        f"kernel_distance_to_{split}_subset_deviation": deviation,
    }


def floor(train: Tensor, test: Tensor, count: int) -> dict[str, Any]:
    """The same figures of real images: held-out ones to the training split, and reversed."""
    n = min(count, len(train), len(test))
    precision, recall = precision_recall(train[:n], test[:n])
    return {
        "n": n,
        **distance_to("train", test[:n], train),
        **distance_to("test", train[:n], test),
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
    distance, _ = nearest(features[:n], train)
    real, _ = nearest(test[:n], train)
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
