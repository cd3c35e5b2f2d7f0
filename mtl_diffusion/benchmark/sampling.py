"""Sampling: images a second, and how long it takes to come as near to the solution as another does.

Quality is read from the weights alone: the distance of a sample from the exact solution of the same
ODE from the same noise. It says what a solver loses, and nothing of the model.
"""

import itertools
import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from diffusers import (
    DDIMPipeline,
    DDIMScheduler,
    DDPMPipeline,
    DDPMScheduler,
    EDMEulerScheduler,
    UNet2DModel,
)
from torch import Tensor
from tqdm.auto import tqdm

from ..pipeline.denoiser import Conditioning, build_conditioning, predict
from ..pipeline.pipeline import TASKS, MultiTaskPipeline
from ..tools.rng import generator
from .measure import Spread, interleaved, seconds

REFERENCE_STEPS = 128  # of Heun, whose error falls with their square


@dataclass(frozen=True)
class Point:
    """A solver at a number of steps.

    Attributes:
        evaluations: of the network, for one image.
        distance: root mean square from the solution, in image values of [-1, 1].
    """

    steps: int
    evaluations: int
    distance: float


class Sampler:
    """One model and one batch of noise, solved in several ways."""

    def __init__(self, pipe: MultiTaskPipeline, batch_size: int, seed: int = 0):
        self.pipe = pipe
        classes = len(pipe.class_names)
        self.labels = [i % classes for i in range(batch_size)]
        shape = (batch_size, 3, pipe.size, pipe.size)
        random = generator(seed, "benchmark", device=pipe.device)
        self.noise = torch.randn(shape, generator=random, device=pipe.device)
        self.solvers: dict[str, Callable[[int], Tensor]] = {
            "ours": self._ours,
            "euler": self._euler,
            "heun": self._heun,
        }

    def evaluations(self, solver: str, steps: int) -> int:
        return 2 * steps - 1 if solver == "heun" else steps

    def curve(self, step_counts: Sequence[int]) -> dict[str, list[Point]]:
        """Distance from the solution against the number of steps, for each solver."""
        solution = self._heun(REFERENCE_STEPS)
        found = {name: [] for name in self.solvers}
        todo = [(name, steps) for name in self.solvers for steps in step_counts]
        for name, steps in tqdm(todo, desc="curve"):
            error = self.solvers[name](steps) - solution
            distance = error.square().mean().sqrt().item()
            found[name].append(Point(steps, self.evaluations(name, steps), distance))
        return found

    def times(self, steps: dict[str, int], rounds: int) -> dict[str, Spread]:
        """Seconds an image of each solver, at its number of steps."""
        device, count = self.noise.device, len(self.noise)
        contestants = {
            name: lambda name=name, n=n: seconds(lambda: self.solvers[name](n), device) / count
            for name, n in steps.items()
        }
        for name in steps:  # what happens once has happened
            self.solvers[name](2)
        found = interleaved(contestants, rounds, "sampling")
        return {name: Spread.of(values) for name, values in found.items()}

    def _ours(self, steps: int) -> Tensor:
        return self.pipe(
            class_label=self.labels,
            guidance_scale=1.0,
            num_inference_steps=steps,
            latents=self.noise,
            output_type="latent",
        ).images

    def _euler(self, steps: int) -> Tensor:
        """The pipeline with diffusers' own Euler steps."""
        ours = self.pipe.scheduler
        self.pipe.scheduler = EDMEulerScheduler.from_config(ours.config)
        try:
            return self._ours(steps)
        finally:
            self.pipe.scheduler = ours

    @torch.no_grad()
    def _heun(self, steps: int) -> Tensor:
        """Karras et al. 2022, algorithm 1: deterministic, with Heun's second evaluation."""
        pipe = self.pipe
        scheduler = EDMEulerScheduler.from_config(pipe.scheduler.config)
        scheduler.set_timesteps(steps)
        sigmas = scheduler.sigmas.tolist()
        told = self._told()

        def slope(x: Tensor, sigma: float) -> Tensor:
            level = torch.full((len(x), 1, 1, 1), sigma, device=x.device)
            F = predict(pipe.unet, scheduler, x, level, told)
            return (x - scheduler.precondition_outputs(x, F, level)) / sigma

        x = sigmas[0] * self.noise
        for sigma, sigma_next in itertools.pairwise(sigmas):
            d = slope(x, sigma)
            end = x + (sigma_next - sigma) * d
            if sigma_next > 0:
                d = (d + slope(end, sigma_next)) / 2
                end = x + (sigma_next - sigma) * d
            x = end
        return x

    def _told(self) -> Conditioning:
        task, noise = TASKS["generate"], self.noise
        hint = task.condition(
            torch.zeros_like(noise),
            torch.ones_like(noise[:, :1]),
            torch.full((len(noise),), math.nan, device=noise.device),
            torch.zeros_like(noise),
        )
        labels = torch.tensor(self.labels, device=noise.device)
        return build_conditioning(hint, task, labels, self.pipe.vocabulary)


def evaluations_for(points: Sequence[Point], distance: float) -> float | None:
    """Evaluations with which a solver comes as near as `distance`; None: more than were tried.

    Between two points it goes along a straight line of the logarithms, as an error does that falls
    with a power of the number of steps.
    """
    points = sorted(points, key=lambda point: point.evaluations)
    if points[0].distance <= distance:
        return float(points[0].evaluations)
    for a, b in itertools.pairwise(points):
        if b.distance <= distance:
            share = math.log(a.distance / distance) / math.log(a.distance / b.distance)
            return a.evaluations * (b.evaluations / a.evaluations) ** share
    return None


def read_curve(metrics: Path) -> list[tuple[float, float]]:
    """(evaluations, Frechet distance to the training split) of scripts/evaluate.py's metrics.json.

    Of its samplings without guidance that were swept over the number of steps.

    Raises:
        ValueError: the file has no such sampling.
    """
    generate = json.loads(metrics.read_text()).get("generate", {})
    kinds = {}
    for name, entry in generate.items():
        kind, swept, _ = name.partition("_steps_")
        if swept and entry["guidance_scale"] == 1:
            point = (entry["evaluations"], entry["frechet_distance_to_train"])
            kinds.setdefault(kind, []).append(point)
    if not kinds:
        raise ValueError(f"{metrics} has no samplings of generate: let it evaluate that part")
    return sorted(max(kinds.values(), key=len))


def knee(curve: Sequence[tuple[float, float]], tolerance: float = 0.05) -> float:
    """The fewest evaluations whose quality is within `tolerance` of the best on the curve."""
    best = min(distance for _, distance in curve)
    return min(n for n, distance in curve if distance <= (1 + tolerance) * best)


def twin_times(
    unet: UNet2DModel, batch_size: int, steps: int, rounds: int, device: torch.device
) -> dict[str, Spread]:
    """Seconds an image of one step of diffusers' own pipelines with the twin."""
    pipelines = {
        "ddpm": DDPMPipeline(unet, DDPMScheduler()),
        "ddim": DDIMPipeline(unet, DDIMScheduler()),
    }
    for pipeline in pipelines.values():
        pipeline.to(device).set_progress_bar_config(disable=True)

    def measure(pipeline) -> float:
        def work():
            pipeline(batch_size=batch_size, num_inference_steps=steps, output_type="np")

        return seconds(work, device) / batch_size / steps

    contestants = {name: lambda p=p: measure(p) for name, p in pipelines.items()}
    found = interleaved(contestants, rounds, "diffusers' pipelines")
    return {name: Spread.of(values) for name, values in found.items()}
