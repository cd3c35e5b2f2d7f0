"""The generate task of a pipeline as a denoiser D(x, sigma), its noise levels, and a solver.

Karras et al. 2022, arXiv:2206.00364: D(x; sigma) = E[image | x] for x = image + sigma noise, and
the probability flow that carries noise to images is dx / dsigma = (x - D) / sigma.

Solvers, baselines and the likelihood take any callable D(x, sigma): tests give them exact ones.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from diffusers import SchedulerMixin, UNet2DConditionModel
from torch import Tensor

from ..pipeline.denoiser import Conditioning, build_conditioning, predict_guided
from ..pipeline.pipeline import TASKS, MultiTaskPipeline

Denoise = Callable[[Tensor, float], Tensor]


@dataclass
class Denoiser:
    """D(x, sigma) for B images, each with its own conditioning.

    Gradients pass through it. Its outputs are not clipped.

    Attributes:
        evaluations: of the network so far, for one image; a guided call costs two.
    """

    unet: UNet2DConditionModel
    scheduler: SchedulerMixin
    conditioning: Conditioning
    null: int
    guidance_scale: float
    evaluations: int = 0

    def __call__(self, x: Tensor, sigma: Tensor | float) -> Tensor:
        """The posterior mean of the images.

        Args:
            x: (B, 3, H, W) float32, images in [-1, 1] + sigma noise.
            sigma: one number for all, or (B, 1, 1, 1).

        Returns:
            (B, 3, H, W) float32.
        """
        sigma = torch.as_tensor(sigma, dtype=x.dtype, device=x.device)
        if sigma.ndim == 0:
            sigma = sigma.expand(len(x), 1, 1, 1)
        F = predict_guided(
            self.unet,
            self.scheduler,
            x,
            sigma,
            self.conditioning,
            self.null,
            self.guidance_scale,
        )
        # Branches of weight 0 are not evaluated: without a class at scale 1, with it at 0.
        self.evaluations += 1 if self.guidance_scale in (0, 1) else 2
        return self.scheduler.precondition_outputs(x, F, sigma)


def generate_denoiser(
    pipe: MultiTaskPipeline, label: Tensor, guidance_scale: float = 1.0
) -> Denoiser:
    """The denoiser of a pipeline's generate task.

    Args:
        label: (B,) int64 class labels, -1 for none.
        guidance_scale: how much more the class counts; 1 is off. Without a class it is off too.

    Raises:
        ValueError: the pipeline has not learned to generate.
    """
    if "generate" not in pipe.tasks:
        raise ValueError(f"pipe has not learned generate; it knows {', '.join(pipe.tasks)}")
    if (label < 0).all():
        guidance_scale = 1.0  # both branches would have the same conditioning
    task = TASKS["generate"]
    device = pipe.unet.device
    blank = torch.zeros(len(label), 3, pipe.size, pipe.size, device=device)
    hint = task.condition(blank, blank[:, :1], blank[:, 0, 0, 0], blank)
    conditioning = build_conditioning(hint, task, label.to(device), pipe.vocabulary)
    return Denoiser(pipe.unet, pipe.scheduler, conditioning, pipe.vocabulary.null, guidance_scale)


def noise_levels(scheduler, steps: int, schedule: str | None = None) -> tuple[float, ...]:
    """The steps + 1 noise levels that a scheduler visits, from sigma_max over sigma_min to 0.

    The scheduler itself is not changed.

    Args:
        schedule: "karras" or "exponential", which is even in ln sigma. None: the scheduler's own.
    """
    own = type(scheduler).from_config(
        scheduler.config,
        sigma_schedule=schedule or scheduler.config.sigma_schedule,
        final_sigmas_type="zero",
    )
    own.set_timesteps(steps)
    return tuple(own.sigmas.tolist())


def heun_step(D: Denoise, x: Tensor, sigma: float, target: float, denoised: Tensor) -> Tensor:
    """One step of Heun's method along the flow, down or up, from sigma > 0 to target.

    It is of second order for one more evaluation; that of the last step, to 0, would divide by
    zero, and Euler's method does it alone. Karras et al. 2022, algorithm 1.

    Args:
        denoised: D(x, sigma).
    """
    slope = (x - denoised) / sigma
    moved = x + (target - sigma) * slope
    if target == 0:
        return moved
    return x + (target - sigma) * (slope + (moved - D(moved, target)) / target) / 2


@torch.no_grad()
def solve(D: Denoise, x: Tensor, sigmas: Sequence[float]) -> Tensor:
    """Carries x along the flow from sigmas[0] to sigmas[-1], which rise or fall.

    Evaluations: two a step, one for a step to 0.
    """
    for sigma, target in pairwise(sigmas):
        x = heun_step(D, x, sigma, target, D(x, sigma))
    return x
