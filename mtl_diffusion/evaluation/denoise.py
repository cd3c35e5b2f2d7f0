"""The generate task of a pipeline as a denoiser D(x, sigma), its noise levels, and a solver.

Karras et al. 2022, arXiv:2206.00364: D(x; sigma) = E[image | x] for x = image + sigma noise, and
the probability flow that carries noise to images is dx / dsigma = (x - D) / sigma.

Solvers, baselines and the likelihood take any callable D(x, sigma): tests give them exact ones.
"""

from collections.abc import Callable, Sequence
from itertools import pairwise

import torch
from torch import Tensor

from ..pipeline.denoiser import build_conditioning, predict_guided
from ..pipeline.pipeline import TASKS, MultiTaskPipeline

Denoise = Callable[[Tensor, Tensor | float], Tensor]


def generate_denoiser(
    pipe: MultiTaskPipeline, label: Tensor, guidance_scale: float = 1.0
) -> Denoise:
    """D(x, sigma) of a pipeline's generate task. Gradients pass through it; it clips nothing.

    It takes x (B, 3, H, W) float32, images in [-1, 1] + sigma noise, and one sigma for all or
    (B, 1, 1, 1), and returns the posterior mean of the images, (B, 3, H, W) float32.

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
    task, unet, scheduler = TASKS["generate"], pipe.unet, pipe.scheduler
    blank = torch.zeros(len(label), 3, pipe.size, pipe.size, device=unet.device)
    hint = task.condition(blank, blank[:, :1], blank[:, 0, 0, 0], blank)
    conditioning = build_conditioning(hint, task, label.to(unet.device), pipe.vocabulary)
    null = pipe.vocabulary.null

    def denoised(x: Tensor, sigma: Tensor | float) -> Tensor:
        sigma = torch.as_tensor(sigma, dtype=x.dtype, device=x.device)
        if sigma.ndim == 0:
            sigma = sigma.expand(len(x), 1, 1, 1)
        F = predict_guided(unet, scheduler, x, sigma, conditioning, null, guidance_scale)
        return scheduler.precondition_outputs(x, F, sigma)

    return denoised


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
