"""Solves the probability-flow ODE with the pipeline's scheduler, known pixels held in place."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from .chains import first_latents, karras_ramp
from .components import plain_module
from .denoiser import Denoiser, Guidance
from .task import Hint


def solve(
    call,
    source: Tensor,
    noise: Tensor,
    hint: Hint,
    guidance: Guidance,
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
        hint: what is shown, and where is painted.
        guidance: what the call's guidance composes.
        start: (B,) noise levels, of the source. From sigma_max on it is noise alone.
        steps: their number, or the noise levels that they start at.
        generators: one for each image, for schedulers that add noise.

    Returns:
        (B, C, H, W) float32.

    Raises:
        ValueError: the latents are not finite after a step.
    """
    highest = call.scheduler.config.sigma_max
    schedulers = {
        level: from_level(level, call.scheduler, steps, noise.device) for level in sorted({*start})
    }
    call._num_timesteps = sum(len(scheduler.timesteps) for scheduler in schedulers.values())

    def end_step(step: int, timestep: Tensor, x: Tensor) -> Tensor:
        if callback is not None:
            tensors = {name: {"latents": x}[name] for name in callback_inputs}
            x = _replaced(x, callback(call, step, timestep, tensors), step)
        progress.update()
        return x

    x, done = torch.empty_like(noise), 0
    with call.progress_bar(total=call._num_timesteps) as progress:
        for level, scheduler in schedulers.items():
            vars(call)["scheduler"] = scheduler  # a callback may look at it; it needs no check
            rows = [i for i, own in enumerate(start) if own == level]
            image, mask = source[rows], hint.mask[rows]
            first = scheduler.sigmas[0].item()
            free = (mask > 0) & (level >= highest)
            few = not isinstance(steps, int)
            latents = initial(image, noise[rows], hint.image[rows], free, first, few)
            own = [generators[i] for i in rows]
            parts = (image, noise[rows], mask, guidance[rows], own)
            x[rows] = _solve(call, latents, *parts, done, end_step)
            done += len(scheduler.timesteps)
    return x


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


def step_down(
    denoiser: Denoiser,
    scheduler,
    i: int,
    sigmas: Sequence[float] | Tensor,
    x: Tensor,
    source: Tensor,
    noise: Tensor,
    mask: Tensor,
    generators: list[torch.Generator] | None = None,
) -> Tensor:
    """Step i of the scheduler; known pixels are exact after it.

    Args:
        sigmas: all noise levels of the scheduler; each is one for all, or (B, 1, 1, 1).
    """
    F = denoiser.output(x, sigmas[i])
    x = scheduler.step(F, scheduler.timesteps[i], x, generator=generators).prev_sample
    return torch.where(mask > 0, x, source + sigmas[i + 1] * noise)


def _solve(
    call,
    x: Tensor,
    source: Tensor,
    noise: Tensor,
    mask: Tensor,
    guidance: Guidance,
    generators: list[torch.Generator],
    done: int,
    end_step: Callable[[int, Tensor, Tensor], Tensor],
) -> Tensor:
    """Goes down the noise levels of the call's scheduler.

    Args:
        x: (B, C, H, W) latents of the first level.
        done: steps of the call before these.
        end_step: (step of the call, timestep, latents) -> latents.
    """
    scheduler = call.scheduler
    sigmas = scheduler.sigmas.tolist()
    # The first step with values that aren't finite, on the device: to read it in the loop would
    # wait for each step.
    first_bad = torch.full((), len(sigmas), device=x.device)
    for i, timestep in enumerate(scheduler.timesteps):
        if call.interrupt:
            break
        # A callback may have changed the scales.
        scales = call.guidance_scale, call.image_guidance_scale, call.guidance_interval
        parts = (scheduler, i, sigmas, x, source, noise, mask, generators)
        x = step_down(guidance.denoiser(*scales), *parts)
        x = end_step(done + i, timestep, x)
        first_bad = torch.where(x.isfinite().all(), first_bad, first_bad.clamp(max=i))
    if (step := int(first_bad)) < len(sigmas):
        raise ValueError(
            f"the latents are not finite after step {done + step + 1} of {call._num_timesteps}; "
            f"the likely cause: {_likely_cause(call)}"
        )
    return x


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
        own.set_timesteps(len(levels), device=device, sigmas=karras_ramp(levels, config))
    own.set_begin_index(0)
    own.is_scale_input_called = True  # `predict` scales; EDMEulerScheduler would warn
    return own


def _replaced(latents: Tensor, answer: dict | None, step: int) -> Tensor:
    """The latents, or those that a callback returned to replace them."""
    if answer is None:
        return latents
    new = answer.get("latents", latents) if isinstance(answer, dict) else None
    if not isinstance(new, Tensor) or new.shape != latents.shape:
        raise ValueError(
            "callback_on_step_end returned neither None nor a dict whose latents have the shape "
            f"{tuple(latents.shape)}"
        )
    if new is not latents and not new.isfinite().all():
        raise ValueError(
            f"callback_on_step_end returned latents that are not finite after step {step + 1}"
        )
    return new.to(latents)


def _likely_cause(call) -> str:
    """Why the latents of a call are not finite."""
    module = plain_module(call.unet)
    for name, weight in module.named_parameters():
        if not weight.is_meta and not weight.float().isfinite().all():
            return f"the weights of the unet are not finite ({name}): load the model again"
    for name in ("guidance_scale", "image_guidance_scale"):
        if getattr(call, name) > 30:
            return f"{name} is {getattr(call, name):g}: lower it"
    if module.dtype == torch.float16:
        return "float16 overflows: use pipe.to(torch.bfloat16) or pipe.to(torch.float32)"
    return "latents that are far from standard normal, or a callback that changes the pipeline"
