"""Bits per dimension of held-out images, by the generate task without a class."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .bulk import Drawn, Job
from .methods.denoisers import generate_denoiser
from .methods.density import bits_per_dim
from .parts import Part, mean


class Likelihood(Part):
    """Of the first held-out images."""

    name = "likelihood"
    task = "generate"

    def jobs(self) -> list[Job]:
        context, settings, pipe = self.context, self.context.settings, self.context.pipe
        if pipe.unet.dtype != torch.float32:
            raise ValueError(
                f"dtype is {settings.dtype}; the likelihood is a sum of small differences and "
                "needs float32: measure it apart, with --parts likelihood"
            )
        images, form = context.test.images[: settings.likelihood_images], context.pipe.format

        def draw(rows: range, images: Tensor, **ode) -> Tensor:
            D = generate_denoiser(pipe, torch.full((len(rows),), -1))
            random = context.generators("likelihood", rows=rows)
            low, high = form.stored_range
            known = form.from_stored(images.to(pipe.device))
            return bits_per_dim(D, known, random, 2 / (high - low), **ode)

        levels, steps = pipe.scheduler.config, settings.likelihood_steps
        ode = {"low": levels.sigma_min, "high": levels.sigma_max, "steps": steps}
        return [Job("likelihood", draw, ode, {"images": images})]

    def score(self, drawn: Mapping[str, Drawn], folder: Path) -> dict[str, Any]:
        entry = drawn["likelihood"]
        return {
            "n": len(entry.values),
            "steps": self.context.settings.likelihood_steps,
            "evaluations": entry.evaluations,
            **mean("bits_per_dim", entry.values),
        }
