"""The second stage of training: a trained model learns to draw in few steps.

The trained model is the teacher. From an image with noise of one of the levels in
`pipeline/chains.py`, it solves its ODE to the next level in some steps, with the guidance that each
task has by default. The student, which starts as the teacher, learns to arrive there in one Euler
step. So its guidance is built in, and a step of it is one evaluation.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from ..pipeline.chains import Chains, jumps
from ..pipeline.denoiser import CLASS, Conditioning, predict
from ..pipeline.ode import ode_end
from ..pipeline.task import Task
from .alignment import fingerprint
from .losses import Objective


def draw_level(n: int, levels: Tensor, generator: torch.Generator) -> Tensor:
    """(n, 1, 1, 1) of the levels (J,), each equally often to within one, in random order."""
    order = torch.rand(n, generator=generator, device=generator.device).argsort()
    return levels.to(order.device)[order % len(levels)].view(n, 1, 1, 1)


class Distillation(Objective):
    """The objective of a student that learns its teacher's jumps.

    The first four arguments are those of `Objective`.

    Args:
        teacher: a copy of the unet, which is frozen.
        tasks: in the order of the task indices.
        null: id of the null token.
        chains: noise levels, see `pipeline/chains.py`.
        teacher_steps: of the solver, for each jump.
    """

    def __init__(
        self,
        unet: nn.Module,
        scheduler,
        weighting: nn.Module,
        alignment: nn.Module | None,
        teacher: nn.Module,
        tasks: Sequence[Task],
        null: int,
        chains: Chains,
        teacher_steps: int,
    ):
        super().__init__(unet, scheduler, weighting, alignment)
        # In a tuple, so that it is no submodule: neither trained nor saved.
        self._teacher = (teacher.eval().requires_grad_(False),)
        self.teacher = fingerprint(teacher)
        self.null = null
        self.teacher_steps = teacher_steps
        self.levels = {f"{start:g} to {end:g}": (start, start) for start, end in jumps(chains)}
        starts, ends = torch.tensor(jumps(chains)).T
        self.register_buffer("starts", starts.contiguous(), persistent=False)
        self.register_buffer("ends", ends.contiguous(), persistent=False)
        guidance = [(t.default_guidance_scale, *t.default_guidance_interval) for t in tasks]
        self.register_buffer("guidance", torch.tensor(guidance), persistent=False)

    @torch.no_grad()
    def target(
        self, image: Tensor, noise: Tensor, sigma: Tensor, conditioning: Conditioning, task: Tensor
    ) -> tuple[Tensor, Tensor]:
        """The D with which one Euler step arrives at the teacher's result, and its noise.

        x' = r x + (1 - r) D for r = sigma'/sigma, hence D = (x' - r x) / (1 - r).
        """
        x = image + sigma * noise
        nearest = (sigma.flatten()[:, None].log() - self.starts.log()).abs().argmin(1)
        end = self.ends[nearest].view(-1, 1, 1, 1)
        arrived = ode_end(self._guided(conditioning, task), x, sigma, end, self.teacher_steps)
        ratio = end / sigma
        D = (arrived - ratio * x) / (1 - ratio)
        return D, (x - D) / sigma

    def _guided(
        self, conditioning: Conditioning, task: Tensor
    ) -> Callable[[Tensor, Tensor], Tensor]:
        """The teacher's D with the guidance that each sample's task has by default."""
        scale, low, high = self.guidance[task].T.reshape(3, -1, 1, 1, 1)
        without_class = conditioning.without(CLASS, self.null)

        def denoised(x: Tensor, sigma: Tensor) -> Tensor:
            guided = (scale != 1) & (low <= sigma) & (sigma <= high)
            rows = guided.flatten().nonzero()[:, 0]
            # All samples, and once more those that are guided, without their class.
            F, unconditional = predict(
                self._teacher[0],
                self.scheduler,
                torch.cat([x, x[rows]]),
                torch.cat([sigma, sigma[rows]]),
                Conditioning.cat([conditioning, without_class[rows]]),
            ).tensor_split([len(x)])
            F = F.index_copy(0, rows, torch.lerp(unconditional, F[rows], scale[rows]))
            return self.scheduler.precondition_outputs(x, F, sigma)

        return denoised
