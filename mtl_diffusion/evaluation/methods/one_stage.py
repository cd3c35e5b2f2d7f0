"""The pipeline's edit, with a guidance scale of each pixel, which a call does not take."""

import copy

import torch
from diffusers.utils.torch_utils import randn_tensor
from torch import Tensor

from ...pipeline.denoiser import build_conditioning
from ...pipeline.edit import Edit
from ...pipeline.noise import initial_latents, own_generators
from ...pipeline.solver import solve


@torch.no_grad()
def one_stage(
    pipe, image: Tensor, label: Tensor, strength: float, scale, steps: int, generators: list
) -> Tensor:
    """What `pipe(task="edit")` gives, of a model of many steps.

    `label` is (B,), and `scale` guides by the class: a number, or (B, 1, H, W).
    """
    noise = initial_latents(None, generators, tuple(image.shape), image.device)
    own, task = own_generators(noise), Edit()
    strengths = torch.full((len(image),), strength, device=image.device)
    degrading = randn_tensor(noise.shape, own, image.device, torch.float32)
    hint = task.condition(image, torch.ones_like(image[:, :1]), strengths, degrading)
    conditioning = build_conditioning(hint, task, label, pipe.vocabulary)
    call = copy.copy(pipe)
    call._guidance_scale = scale
    start = task.start(strengths).tolist()
    return solve(call, image, noise, conditioning, start, steps, own, None, [])
