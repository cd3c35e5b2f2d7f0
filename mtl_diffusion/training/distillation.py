"""The second stage of training: a trained model learns to draw in few steps.

The trained model is the teacher. From an image with noise of one of the levels in
`pipeline/chains.py`, it solves its ODE to the next level in some steps, with the guidance that each
task has by default. The student, which starts as the teacher, learns to arrive there in one Euler
step. So its guidance is built in, and a step of it is one evaluation.

An edit is learned whole: the student is shown the source, starts from noise alone, and learns to
answer with the teacher's edit (`editing/pairs.py`).
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..classifiers.classifier import Classifier
from ..editing.ode import ode_end
from ..pipeline.chains import Chains, jumps
from ..pipeline.denoiser import Conditioning, guided
from ..pipeline.edit import Edit
from ..pipeline.pipeline import MultiTaskPipeline
from ..pipeline.task import Task
from ..tools.tensors import weights_digest
from .losses import Objective

# Weight of 1 - the cosine of features, beside a squared error that is divided by the variance of
# images, 0.25.
FEATURE_WEIGHT = 0.4


def draw_level(task: Tensor, levels: Tensor, whole: int, generator: torch.Generator) -> Tensor:
    """(B, 1, 1, 1) of the levels (J,), each equally often to within one, in random order.

    Args:
        task: (B,) indices. Samples of the task `whole` get the highest level.
    """
    draws = torch.rand(len(task), generator=generator, device=generator.device)
    is_whole = task.to(draws.device) == whole
    order = draws.masked_fill(is_whole, torch.inf).argsort().argsort()
    levels = levels.to(order.device)
    drawn = torch.where(is_whole, levels.max(), levels[order % len(levels)])
    return drawn.view(-1, 1, 1, 1)


class Distillation(Objective):
    """The objective of a student that learns its teacher's jumps, and its edits.

    The first three arguments are those of `Objective`.

    Args:
        teacher: a pipeline, whose unet is frozen.
        tasks: in the order of the task indices.
        chains: noise levels, see `pipeline/chains.py`.
        teacher_steps: of the solver, for each jump.
        classifier: in whose last features answers agree with the teacher's, too; None: in pixels
            alone.
        interval: noise levels where the teacher is guided; None: those of each task.
    """

    def __init__(
        self,
        unet: nn.Module,
        scheduler,
        weighting: nn.Module | None,
        teacher: MultiTaskPipeline,
        tasks: Sequence[Task],
        chains: Chains,
        teacher_steps: int,
        classifier: Classifier | None = None,
        interval: Sequence[float] | None = None,
    ):
        super().__init__(unet, scheduler, weighting)
        teacher.unet.eval().requires_grad_(False)
        # Neither is a module of this one, which would be saved.
        self._teacher, self._classifier = teacher, classifier
        self.teacher = weights_digest(teacher.unet)
        self.teacher_steps = teacher_steps
        self.levels = {f"{start:g} to {end:g}": (start, start) for start, end in jumps(chains)}
        starts, ends = torch.tensor(jumps(chains)).T
        self.register_buffer("starts", starts.contiguous(), persistent=False)
        self.register_buffer("ends", ends.contiguous(), persistent=False)
        guidance = [
            (task.default_guidance_scale, *(interval or task.default_guidance_interval))
            for task in tasks
        ]
        self.register_buffer("guidance", torch.tensor(guidance), persistent=False)
        names = [task.name for task in tasks]
        self.whole = names.index(Edit.name) if Edit.name in names else -1

    @torch.no_grad()
    def target(
        self, image: Tensor, noise: Tensor, sigma: Tensor, conditioning: Conditioning, task: Tensor
    ) -> tuple[Tensor, Tensor]:
        """The D with which one Euler step arrives at the teacher's result, and its noise.

        x' = r x + (1 - r) D for r = sigma'/sigma, hence D = (x' - r x) / (1 - r). Of an edit, D is
        the image itself, and x is noise alone.
        """
        is_whole = (task == self.whole).view(-1, 1, 1, 1)
        x = torch.where(is_whole, 0, image) + sigma * noise
        D = image.clone()
        rows = (task != self.whole).nonzero()[:, 0]
        if len(rows):
            D[rows] = self._arrival(x[rows], sigma[rows], conditioning[rows], task[rows])
        return D, (x - D) / sigma

    def _arrival(
        self, x: Tensor, sigma: Tensor, conditioning: Conditioning, task: Tensor
    ) -> Tensor:
        """D of the teacher's whole jump, with the guidance that each sample's task has."""
        nearest = (sigma.flatten()[:, None].log() - self.starts.log()).abs().argmin(1)
        end = self.ends[nearest].view(-1, 1, 1, 1)
        scale, low, high = self.guidance[task].T.reshape(3, -1, 1, 1, 1)
        teacher, null = self._teacher, self._teacher.vocabulary.null
        network = teacher.unet, teacher.scheduler
        denoiser = guided(*network, conditioning, null, scale, interval=(low, high))
        arrived = ode_end(denoiser, x, sigma, end, self.teacher_steps)
        ratio = end / sigma
        return (arrived - ratio * x) / (1 - ratio)

    def extra_loss(
        self, denoised: Tensor, target: Tensor, conditioning: Conditioning, task: Tensor
    ) -> Tensor | float:
        """The cosine distance to the teacher's answer in the features of the classifier."""
        if self._classifier is None:
            return 0.0
        painted, known, rgb = conditioning.mask > 0, conditioning.image, self._teacher.format.rgb
        found, expected = (
            self._classifier.features(rgb(torch.where(painted, D, known))).float()
            for D in (denoised, target)
        )
        return FEATURE_WEIGHT * (1 - F.cosine_similarity(found, expected, dim=1))
