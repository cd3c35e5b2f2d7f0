"""How likely held-out images are to the model: bits per dimension, which needs no judge at all."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .bulk import Drawn, Job
from .denoise import generate_denoiser, noise_levels
from .likelihood import bits_per_dim
from .parts import Part, mean

SCHEDULE = "exponential"  # even in ln sigma: a third of the error that Karras's has at equal cost


class Likelihood(Part):
    """The first held-out images under the generate task, without a class."""

    name = "likelihood"
    task = "generate"

    def jobs(self) -> list[Job]:
        context, settings = self.context, self.context.settings
        images = context.test.images[: settings.likelihood_images]

        def draw(rows: range) -> Tensor:
            device = context.pipe.device
            D = generate_denoiser(context.pipe, torch.full((len(rows),), -1, device=device))
            return bits_per_dim(
                D,
                images[rows.start : rows.stop].to(device),
                noise_levels(context.pipe.scheduler, settings.likelihood_steps, SCHEDULE),
                context.generators("likelihood", rows=rows),
            )

        return [
            context.job(
                "likelihood",
                len(images),
                draw,
                steps=settings.likelihood_steps,
                schedule=SCHEDULE,
                data=context.test.fingerprint,
            )
        ]

    def score(self, drawn: Mapping[str, Drawn], folder: Path) -> dict[str, Any]:
        entry = drawn["likelihood"]
        return {
            "n": len(entry.values),
            "steps": self.context.settings.likelihood_steps,
            "evaluations": entry.evaluations,
            **mean("bits_per_dim", entry.values),
        }
