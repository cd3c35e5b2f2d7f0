"""From the network's output to one number: sample losses, weighting, task means, their sum.

And the noise levels at which the losses are taken.
"""

import math
from itertools import pairwise

import torch
from torch import Tensor, nn

from ..pipeline.denoiser import Conditioning, predict

# Ranges of noise levels, by name.
LEVELS = {
    f"{low:g}-{high:g}": (low, high)
    for low, high in pairwise((0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0))
}
AREA_FLOOR = 1 / 16  # lower bound of the mask's area, as a share of the image


def draw_sigma(task: Tensor, mean: float, std: float, generator: torch.Generator) -> Tensor:
    """(B, 1, 1, 1) noise levels with ln sigma ~ N(mean, std^2). Karras et al. 2022, table 1.

    Stratified: each of the B quantile intervals of the normal holds one of them, in random order,
    so that every batch sees all noise levels alike.

    Args:
        task: (B,) task indices, which all have the same distribution.
    """
    n = len(task)
    place, within = torch.rand(2, n, generator=generator, device=generator.device)
    quantile = (place.argsort() + within) / n
    # 2 q - 1 is kept off -1 and 1, where the normal is infinite.
    normal = 2**0.5 * torch.erfinv((2 * quantile - 1).clamp(-1 + 1e-7, 1 - 1e-7))
    return (mean + std * normal).exp().view(n, 1, 1, 1)


def denoising_loss(
    denoised: Tensor, image: Tensor, sigma: Tensor, mask: Tensor, scheduler
) -> Tensor:
    """lambda(sigma) |D - x|^2, averaged over the mask of each sample. Karras et al. 2022, eq. 2.

    lambda = 1 / c_out^2 makes the loss of a network that answers zero about 1 at every noise level.

    Args:
        denoised: (B, C, H, W), D(x + sigma noise; sigma).
        image: (B, C, H, W), x.
        sigma: (B, 1, 1, 1).
        mask: (B, 1, H, W) in {0, 1}.

    Returns:
        (B,) losses.
    """
    c_out = scheduler.precondition_outputs(torch.zeros_like(sigma), torch.ones_like(sigma), sigma)
    error = ((denoised - image) / c_out).square().mean(dim=1, keepdim=True) * mask
    area = mask.mean(dim=(1, 2, 3)).clamp_min(AREA_FLOOR)
    return error.mean(dim=(1, 2, 3)) / area


class Uncertainty(nn.Module):
    """loss / exp(u) + u, with u(sigma, task) learned: EDM2's eq. 15, one curve a task.

    It gives the gradients of all tasks the same scale at every noise level. The parameters belong
    to the optimiser and the checkpoint, not to the model.
    """

    def __init__(self, num_tasks: int):
        super().__init__()
        # Fixed cosines of ln sigma, whose periods go from the whole range down to about one.
        frequency = torch.linspace(0, 2, 32) ** 2
        self.register_buffer("frequency", frequency, persistent=False)
        self.head = nn.Linear(2 * len(frequency), num_tasks)
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)

    def u(self, sigma: Tensor, task: Tensor) -> Tensor:
        """(B,) from sigma (B, 1, 1, 1) and task indices (B,)."""
        phase = sigma.flatten().log()[:, None] * self.frequency
        features = torch.cat([phase.cos(), phase.sin()], dim=1) / math.sqrt(len(self.frequency))
        return self.head(features).gather(1, task[:, None])[:, 0]

    def forward(self, loss: Tensor, sigma: Tensor, task: Tensor) -> Tensor:
        u = self.u(sigma, task)
        return loss / u.exp() + u


class Objective(nn.Module):
    """Everything that is trained, as one module to wrap for several processes.

    Attributes:
        weighting: of the losses; None: they are added up as they are.
        alignment: its projector; None: no alignment.
        levels: name -> (lowest, highest) noise level, of those that validation tells apart.
        teacher: fingerprint of the teacher's weights, or None.
        moments: of features, which `Matching` keeps; or None.
    """

    levels = LEVELS
    teacher: str | None = None

    def __init__(
        self,
        unet: nn.Module,
        scheduler,
        weighting: Uncertainty | None = None,
        alignment: nn.Module | None = None,
    ):
        super().__init__()
        self.unet, self.scheduler = unet, scheduler
        self.weighting, self.alignment = weighting, alignment
        self.moments = None

    def target(
        self, image: Tensor, noise: Tensor, sigma: Tensor, conditioning: Conditioning, task: Tensor
    ) -> tuple[Tensor, Tensor]:
        """The target of D(image + sigma noise; sigma), and (input - target) / sigma."""
        return image, noise

    def extra_loss(
        self, denoised: Tensor, target: Tensor, conditioning: Conditioning, task: Tensor
    ) -> Tensor | float:
        """What the loss (B,) of each sample has besides its error."""
        return 0.0

    def forward(
        self, image: Tensor, noise: Tensor, sigma: Tensor, conditioning: Conditioning, task: Tensor
    ) -> tuple[Tensor, Tensor]:
        """The plain loss of each sample, and the weighted loss that is minimised: (B,), (B,).

        Args:
            image: (B, C, H, W) in [-1, 1]. noise: alike, standard normal. sigma: (B, 1, 1, 1).
            task: (B,) task indices.
        """
        image, noise = self.target(image, noise, sigma, conditioning, task)
        noisy = image + sigma * noise
        output = predict(self.unet, self.scheduler, noisy, sigma, conditioning)
        denoised = self.scheduler.precondition_outputs(noisy, output, sigma)
        extra = self.extra_loss(denoised, image, conditioning, task)
        # Only networks run in mixed precision: bfloat16 would round u to steps of a percent.
        with torch.autocast(image.device.type, enabled=False):
            loss = denoising_loss(denoised, image, sigma, conditioning.mask, self.scheduler) + extra
            weighted = loss if self.weighting is None else self.weighting(loss, sigma, task)
        if self.alignment is not None:
            weighted = weighted + self.alignment(image)
        return loss.detach(), weighted


def sum_of_task_means(loss: Tensor, task: Tensor, counts: Tensor) -> Tensor:
    """sum_i L_i, where L_i is the mean over the samples of task i in the whole global batch.

    Args:
        loss: (b,) weighted losses of some of the batch's samples.
        task: (b,) their task indices.
        counts: (T,) samples of each task in the global batch, over all processes and microbatches.

    Returns:
        The share of these samples in the sum: the shares of all samples add up to it.
    """
    return (loss / counts[task]).sum()
