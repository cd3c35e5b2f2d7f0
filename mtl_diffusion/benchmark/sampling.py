"""Sampling: seconds an image, and the evaluations that other solvers need for the same quality.

Quality is the distance of a sample from the exact solution of the same ODE from the same noise: the
error of the solver, not of the model.
"""

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from diffusers import EDMEulerScheduler
from torch import Tensor
from tqdm.auto import tqdm

from ..evaluation.denoise import generate_denoiser, noise_levels, solve
from ..pipeline.pipeline import MultiTaskPipeline
from ..tools.rng import generator
from .timing import Measured, interleaved, seconds

REFERENCE_STEPS = 128  # of Heun's method, whose error falls with their square


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
    """One model and one batch of noise, solved by the pipeline, by Euler's and by Heun's method."""

    def __init__(self, pipe: MultiTaskPipeline, batch_size: int, seed: int = 0):
        self.pipe = pipe
        self.labels = [i % len(pipe.class_names) for i in range(batch_size)]
        shape = (batch_size, 3, pipe.size, pipe.size)
        random = generator(seed, "benchmark", device=pipe.device)
        self.noise = torch.randn(shape, generator=random, device=pipe.device)
        self.solvers: dict[str, Callable[[int], Tensor]] = {
            "ours": self._pipeline,
            "euler": self._euler,
            "heun": self._heun,
        }

    def evaluations(self, solver: str, steps: int) -> int:
        """Evaluations of the network for one image."""
        return 2 * steps - 1 if solver == "heun" else steps

    def curve(self, step_counts: Sequence[int]) -> dict[str, list[Point]]:
        """The distance from the solution at each number of steps, for each solver."""
        solution = self._heun(REFERENCE_STEPS)
        found = {name: [] for name in self.solvers}
        todo = [(name, steps) for name in self.solvers for steps in step_counts]
        for name, steps in tqdm(todo, desc="curve"):
            error = self.solvers[name](steps) - solution
            distance = error.square().mean().sqrt().item()
            found[name].append(Point(steps, self.evaluations(name, steps), distance))
        return found

    def times(self, steps: dict[str, int], rounds: int) -> dict[str, Measured]:
        """Seconds an image of each solver, at its number of steps."""
        device, count = self.noise.device, len(self.noise)
        contestants = {
            name: lambda name=name, n=n: seconds(lambda: self.solvers[name](n), device) / count
            for name, n in steps.items()
        }
        for name in steps:  # warm-up
            self.solvers[name](2)
        found = interleaved(contestants, rounds, "sampling")
        return {name: Measured.of(values) for name, values in found.items()}

    def _pipeline(self, steps: int) -> Tensor:
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
            return self._pipeline(steps)
        finally:
            self.pipe.scheduler = ours

    def _heun(self, steps: int) -> Tensor:
        levels = noise_levels(self.pipe.scheduler, steps)
        denoiser = generate_denoiser(self.pipe, torch.tensor(self.labels))
        return solve(denoiser, levels[0] * self.noise, levels)


def evaluations_for(points: Sequence[Point], distance: float) -> float | None:
    """Evaluations with which a solver comes as near as `distance`; None: more than were tried.

    Interpolated between two points on a line through the logarithms, because the error falls with a
    power of the number of steps.
    """
    points = sorted(points, key=lambda point: point.evaluations)
    if points[0].distance <= distance:
        return float(points[0].evaluations)
    for a, b in itertools.pairwise(points):
        if b.distance <= distance:
            share = math.log(a.distance / distance) / math.log(a.distance / b.distance)
            return a.evaluations * (b.evaluations / a.evaluations) ** share
    return None
