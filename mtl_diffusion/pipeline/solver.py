"""Solves the probability-flow ODE with the pipeline's scheduler, known pixels held in place."""

from collections.abc import Callable

import torch
from torch import Tensor

from .chains import first_latents
from .denoiser import Conditioning, guided


def solve(
    call,
    source: Tensor,
    noise: Tensor,
    conditioning: Conditioning,
    start: list[float],
    steps: int | list[float],
    generators: list[torch.Generator],
    callback: Callable | None,
    callback_inputs: list[str],
) -> Tensor:
    """Goes from the start to 0; known pixels are exact at every step.

    The samples of one start are a batch; one batch follows another.

    Args:
        call: the pipeline's copy for this call. A callback may change its state.
        source: (B, C, H, W) in [-1, 1], the known pixels where the mask is 0.
        noise: (B, C, H, W) standard normal.
        start: (B,) noise levels, of the source. From sigma_max on it is noise alone.
        steps: their number, or the noise levels that they start at.
        generators: one for each image, for schedulers that add noise.

    Raises:
        ValueError: the latents are not finite after a step.
    """
    highest, null = call.scheduler.config.sigma_max, call.vocabulary.null
    schedulers = {
        level: from_level(level, call.scheduler, steps, noise.device) for level in sorted({*start})
    }
    call._num_timesteps = sum(len(scheduler.timesteps) for scheduler in schedulers.values())
    solved, finite = torch.empty_like(noise), []
    with call.progress_bar(total=call._num_timesteps) as progress:
        for level, scheduler in schedulers.items():
            vars(call)["scheduler"] = scheduler  # a callback may look at it; it needs no check
            sigmas = scheduler.sigmas.tolist()
            rows = [i for i, own in enumerate(start) if own == level]
            known, fresh, given = source[rows], noise[rows], conditioning[rows]
            random, free = [generators[i] for i in rows], given.mask > 0
            start_free, few = free & (level >= highest), not isinstance(steps, int)
            x = initial(known, fresh, given.image, start_free, sigmas[0], few)
            for i, timestep in enumerate(scheduler.timesteps):
                if call.interrupt:
                    break
                # A callback may have changed the scales.
                scales = call.guidance_scale, call.image_guidance_scale, call.guidance_interval
                denoiser = guided(call.unet, scheduler, given, null, *scales)
                F = denoiser.output(x, sigmas[i])
                x = scheduler.step(F, timestep, x, generator=random).prev_sample
                x = torch.where(free, x, known + sigmas[i + 1] * fresh)
                if callback is not None:
                    tensors = dict.fromkeys(callback_inputs, x)
                    answer = callback(call, len(finite), timestep, tensors) or {}
                    x = answer.get("latents", x).to(x)
                finite.append(x.isfinite().all())
                progress.update()
            solved[rows] = x
    # Read here, because the host would wait in each step.
    if bad := [step for step, is_finite in enumerate(finite, 1) if not is_finite]:
        raise ValueError(
            f"the latents are not finite after step {bad[0]} of {call._num_timesteps}. Likely "
            f"causes: a large scale (guidance_scale is {call.guidance_scale}, "
            f"image_guidance_scale {call.image_guidance_scale}); float16, where bfloat16 does "
            f"not overflow (the unet is in {call.unet.dtype}); latents that are far from standard "
            "normal; weights that are not finite; a callback"
        )
    return solved


def initial(
    source: Tensor, noise: Tensor, shown: Tensor, free: Tensor, sigma: float | Tensor, few: bool
) -> Tensor:
    """The latents that sampling starts from: the source with noise, or noise alone.

    Args:
        shown: (B, 3, H, W), the image of the hint.
        free: (B, 1, H, W) bool, where it is noise alone.
        sigma: the first noise level, of all or (B, 1, 1, 1).
        few: whether they are for a model of few steps.
    """
    alone = sigma * noise
    if few:
        # Where part of an image is shown, random low frequencies would contradict it.
        blank = ~shown.flatten(1).any(1)[:, None, None, None]
        alone = torch.where(blank, first_latents(noise, sigma), alone)
    return torch.where(free, alone, source + sigma * noise)


def from_level(start: float, scheduler, steps: int | list[float], device: torch.device):
    """A scheduler that begins at the start; of given noise levels, at the lowest from there on."""
    config = scheduler.config
    if isinstance(steps, int):
        first = min(max(start, 2 * config.sigma_min), config.sigma_max)
        own = type(scheduler).from_config(config, sigma_max=first)
        own.set_timesteps(steps, device=device)
    else:
        above = [level for level in steps if level >= start]
        levels = steps[max(len(above) - 1, 0) :]
        own = type(scheduler).from_config(config)
        # As it takes them: the places in [0, 1] of its Karras schedule.
        low, high = (config[name] ** (1 / config.rho) for name in ("sigma_min", "sigma_max"))
        roots = torch.tensor(levels, dtype=torch.float64) ** (1 / config.rho)
        ramp = (high - roots) / (high - low)
        own.set_timesteps(len(levels), device=device, sigmas=ramp)
    own.set_begin_index(0)
    own.is_scale_input_called = True  # `predict` scales; EDMEulerScheduler would warn
    return own
