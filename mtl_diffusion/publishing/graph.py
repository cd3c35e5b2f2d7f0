"""A task of a pipeline as a function of tensors alone, which can be traced."""

import copy

import torch
from diffusers import EDMEulerScheduler
from torch import Tensor, nn

from ..pipeline.denoiser import build_conditioning, guided
from ..pipeline.pipeline import MultiTaskPipeline
from ..pipeline.solver import from_level, initial

DOMAIN, UNET = "mtl_diffusion", "UNet"  # the function that takes its place
# Argument of a task -> name of the graph's input, and what it takes.
INPUTS = {
    "image": ("image", "(B, C, H, W) float32 in value_range"),
    "mask_image": ("mask", "(B, 1, H, W) float32 in {0, 1}: 1 is painted, 0 is kept"),
    "class_label": ("class", "(B,) int64, a place in class_names; -1 is the null class"),
    "strength": ("strength", "(B,) float32 in [0, 1]"),
}
NOISE = "(B, C, H, W) float32, standard normal"


class Graph(nn.Module):
    """A task of a pipeline as a function of tensors alone, for tracing.

    Attributes:
        inputs: name -> what it takes, in the order of `forward`.
        steps: their number, or the noise levels that they start at.
    """

    def __init__(self, pipe: MultiTaskPipeline, task: str, num_inference_steps: int | None):
        super().__init__()
        call = pipe._copy_for_call()
        call._set_guidance(task, None, None, None)
        scale = 1.0 if pipe.spec(task).at_once else call.guidance_scale
        self.scales = scale, call.image_guidance_scale, call.guidance_interval
        steps = 1 if pipe.spec(task).at_once else num_inference_steps
        self.steps = call._read_steps(task, steps)
        self.vocabulary, self.spec = pipe.vocabulary, pipe.spec(task)
        self.scheduler = from_level(torch.inf, pipe.scheduler, self.steps, torch.device("cpu"))
        self.sigmas = self.scheduler.sigmas.tolist()
        if isinstance(self.scheduler, EDMEulerScheduler):
            self.scheduler.sigmas = self.sigmas  # numbers: it compares them
        self.format, self.shape = pipe.format, pipe.format.shape
        takes = self.spec.required | self.spec.optional
        self.inputs = {"noise": NOISE} | {
            name: what for argument, (name, what) in INPUTS.items() if argument in takes
        }
        if self._degrades():
            self.inputs["condition_noise"] = f"{NOISE}; it degrades the image"

    def _degrades(self) -> bool:
        """Whether the task's condition depends on its noise."""
        zeros, strength = torch.zeros(1, *self.shape), torch.full((1,), 0.5)
        noise = torch.full_like(zeros, torch.nan)
        hint = self.spec.condition(zeros, torch.ones_like(zeros[:, :1]), strength, noise)
        return bool(hint.image.isnan().any())

    def example(self) -> tuple[Tensor, ...]:
        """Inputs of two samples, in their order."""
        given = {"mask": torch.ones(2, 1, *self.shape[1:]), "strength": torch.full((2,), 0.5)}
        given["class"] = torch.full((2,), -1)
        return tuple(given.get(name, torch.full((2, *self.shape), 0.5)) for name in self.inputs)

    def forward(self, *tensors: Tensor) -> Tensor:
        """Images (B, C, H, W), the arrays of `MultiTaskPipeline.__call__`."""
        given = dict(zip(self.inputs, tensors, strict=True))
        noise = given["noise"]
        image = given.get("image", torch.zeros_like(noise))
        mask = (given.get("mask", torch.ones_like(noise[:, :1])) >= 0.5).float()
        label = given.get("class", torch.full_like(noise[:, 0, 0, 0], -1, dtype=torch.int64))
        own_noise = given.get("condition_noise", torch.zeros_like(noise))
        source = self.format.from_array(image)
        hint = self.spec.condition(source, mask, given.get("strength"), own_noise)
        conditioning = build_conditioning(hint, self.spec, label, self.vocabulary)
        network = _Call(self.shape[0]), self.scheduler
        denoiser = guided(*network, conditioning, self.vocabulary.null, *self.scales)
        # The state of a call: a graph is traced several times.
        scheduler, sigmas = copy.copy(self.scheduler), self.sigmas
        vars(scheduler).update({k: [*v] for k, v in vars(scheduler).items() if isinstance(v, list)})
        few, hole, first = isinstance(self.steps, list), hint.mask > 0, None
        start = self.spec.start(given.get("strength"))
        if isinstance(start, Tensor):  # each sample has its own
            start = start[:, None, None, None]
            hole = hole & (start >= scheduler.config.sigma_max)
            if few:  # it is one of the levels, where the sample joins the others
                first = sum((level >= start).long() for level in self.steps[1:])
            else:
                low, high = scheduler.config.sigma_min, scheduler.config.sigma_max
                levels = karras_levels(start.clamp(2 * low, high), self.steps, scheduler.config)
                last = torch.full_like(levels[:1], sigmas[-1])
                scheduler.sigmas = sigmas = torch.cat([levels, last])
        parts = (source, noise, hint.image, hole)
        x = initial(*parts, sigmas[0], few)
        for i in range(len(self.sigmas) - 1):
            if first is not None and i:
                x = torch.where(first == i, initial(*parts, sigmas[i], few), x)
            F = denoiser.output(x, sigmas[i])
            x = scheduler.step(F, scheduler.timesteps[i], x).prev_sample
            x = torch.where(hint.mask > 0, x, source + sigmas[i + 1] * noise)
        if self.spec.at_once:
            x = torch.lerp(source, x, self.spec.change(x, source, hint.mask))
        return torch.where(hint.mask > 0, self.format.to_array(x), image)


def karras_levels(first: Tensor, steps: int, config) -> Tensor:
    """The levels (steps, B, 1, 1, 1) of a Karras schedule from `first` (B, 1, 1, 1), without its 0.

    Source: Karras et al. 2022, arXiv:2206.00364, eq. 5.
    """
    ramp = torch.linspace(0, 1, steps, device=first.device).view(-1, 1, 1, 1, 1)
    high, low = first ** (1 / config.rho), config.sigma_min ** (1 / config.rho)
    return (high + ramp * (low - high)) ** config.rho


class _Call:
    """Stands for the UNet in the graph of a task."""

    dtype = torch.float32

    def __init__(self, channels: int):
        self.channels = channels

    def __call__(self, channels, timestep, encoder_hidden_states, class_labels, return_dict):
        given = (channels, timestep, encoder_hidden_states, class_labels)
        shape = (channels.shape[0], self.channels, *channels.shape[2:])
        call = torch.onnx.ops.symbolic
        return (call(f"{DOMAIN}::{UNET}", given, dtype=torch.float32, shape=shape, version=1),)
