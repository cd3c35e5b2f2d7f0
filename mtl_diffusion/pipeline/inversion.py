"""The inversion of a source: the noise from which the model itself would draw it."""

import torch
from torch import Tensor

from .chains import Chains
from .denoiser import Conditioning, predict
from .inputs import read_count
from .ode import ode_end

LOWEST = 0.01  # noise level that an image is taken to have: it can't be seen


def read_inversion_steps(given: int | None, default: int, chains: Chains | None) -> int:
    """num_inversion_steps of a call. A model of few steps, which has chains, takes 0 alone."""
    if given is None:
        return 0 if chains else default
    steps = read_count(given, "num_inversion_steps", least=0)
    if steps and chains:
        raise ValueError(
            f"num_inversion_steps is {steps}; a model of few steps knows the noise levels of its "
            "chains alone, and can't invert an image: leave it out, or give 0"
        )
    return steps


def invert(
    call,
    image: Tensor,
    noise: Tensor,
    conditioning: Conditioning,
    start: list[float],
    steps: int,
) -> Tensor:
    """The noise with which the image would have come out of the sampler.

    Carries the image up the probability-flow ODE to the start, from a noise level too low to see.
    Below sigma_max image + start noise is then where the image comes from.

    Args:
        image: (B, 3, H, W) in [-1, 1].
        noise: (B, 3, H, W) standard normal, for the images that start from noise alone.
        conditioning: with the class of the image, or with none.
        start: (B,) noise levels.
        steps: evaluations of the denoiser.

    Source: Song et al. 2021, arXiv:2010.02502, section 4.3.
    """
    level = torch.tensor(start, device=image.device, dtype=torch.float32)
    rows = ((level > LOWEST) & (level < call.scheduler.config.sigma_max)).nonzero()[:, 0]
    if not len(rows):
        return noise
    conditions = conditioning[rows]

    def denoised(x: Tensor, sigma: Tensor) -> Tensor:
        if call.interrupt:
            return x  # no further evaluation; the sampler then takes no step
        F = predict(call.unet, call.scheduler, x, sigma, conditions)
        progress.update()
        return call.scheduler.precondition_outputs(x, F, sigma)

    end = level[rows].view(-1, 1, 1, 1)
    with call.progress_bar(total=steps) as progress:
        x = ode_end(denoised, image[rows], torch.full_like(end, LOWEST), end, steps)
    inverted = noise.clone()
    inverted[rows] = (x - image[rows]) / end
    return inverted
