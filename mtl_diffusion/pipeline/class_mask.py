"""Where a class makes a difference to an image: a mask for an edit, and its guidance by pixel."""

import math

import torch
from torch import Tensor

from .degradation import low_pass
from .denoiser import CLASS, Conditioning, LocalGuidance, build_conditioning, predict
from .generate import Generate
from .inputs import read_number
from .noise import initial_latents
from .task import Task

MASK_SIGMA = 1.0  # noise level at which answers are compared: objects are seen, details are not
MASK_DRAWS = 2  # of noise, each with one evaluation of two branches
MASK_BLUR = 0.05  # standard deviation of the smoothing, as a share of the image's width


def relevance(difference: Tensor, mask: Tensor) -> Tensor:
    """(B, 1, H, W) in [0, 2): 2 d / (d + mean of d), the mean over the painted pixels.

    It is 1 where the class makes as much difference as on average, and 0 where it makes none.

    Args:
        difference: (B, 1, H, W) d, of `_class_difference`.
        mask: (B, 1, H, W) in {0, 1}, 1 = painted.
    """
    difference = difference.clamp_min(0)  # smoothing rounds
    painted = mask.sum((1, 2, 3), keepdim=True).clamp_min(1)
    mean = (difference * mask).sum((1, 2, 3), keepdim=True) / painted
    return 2 * difference / (difference + mean).clamp_min(torch.finfo(mean.dtype).tiny)


class GeneratesMasks:
    """What a pipeline does with the difference that a class makes: a mask, and local guidance.

    `generate_mask` is named after the method of diffusers' DiffEdit pipeline.
    """

    @torch.no_grad()
    def generate_mask(
        self,
        image,
        class_label: str | int | list,
        share: float = 0.6,
        generator: torch.Generator | list[torch.Generator] | None = None,
    ) -> Tensor:
        """Where a class makes the most difference to an image: a `mask_image` for its edit.

        There the denoiser of generate answers differently with the class and without it. An edit
        inside it leaves the rest of the image alone, byte for byte. Two evaluations of two
        branches.

        Args:
            image: one or several, as in a call.
            class_label: a class for each image, as in a call.
            share: of the pixels that are white, above 0 and up to 1.
            generator: one, or one for each image.

        Returns:
            (B, 1, size, size), 1 where it is white and 0 elsewhere.

        Raises:
            ValueError: an argument is out of its range, or the model has not learned generate.

        Source: DiffEdit, Couairon et al. 2022, arXiv:2210.11427.
        """
        self._check_vocabulary()
        self._check_task("generate")
        if not (share := read_number(share, 0, 1, "share")):
            raise ValueError("share is 0; it must be above 0")
        source = self._read_source(Generate(), class_label, image, None, None, 1)
        if (source.label < 0).any():
            raise ValueError("class_label has None in it; a mask needs a class")
        known = 2 * source.image - 1
        guide = self._generate_conditioning(known, source.label)
        difference = self._class_difference(known, guide, generator)
        limit = difference.flatten(1).quantile(1 - share, dim=1)
        self.maybe_free_model_hooks()
        return (difference >= limit[:, None, None, None]).float()

    def _local_guidance(
        self,
        task: Task,
        known: Tensor,
        base: Conditioning,
        label: Tensor,
        start: list[float],
        generators: list[torch.Generator],
    ) -> LocalGuidance | None:
        """Generate's guidance by the class, for a task that takes it; None: the task's own.

        Generate has nothing but the class to go by, so it knows better what the class changes. What
        starts from noise alone has nothing of the source, and the same scale everywhere.

        Args:
            known: (B, 3, H, W) in [-1, 1], the source.
            base: what is guided.
            label: (B,) classes.
            start: (B,) noise levels where sampling starts.
        """
        guided = self.guidance_scale not in (0, 1) and not self.interrupt
        if not (guided and task.local_guidance and "generate" in self.tasks):
            return None
        guide = self._generate_conditioning(known, label)
        shown = [level < self.scheduler.config.sigma_max for level in start]
        weight = torch.ones_like(known[:, :1])
        if any(shown):
            difference = self._class_difference(known, guide, generators)
            rows = torch.tensor(shown, device=known.device).view(-1, 1, 1, 1)
            weight = torch.where(rows, relevance(difference, base.mask), weight)
        return LocalGuidance(base, guide, weight)

    def _generate_conditioning(self, known: Tensor, label: Tensor) -> Conditioning:
        """Generate's, for images of these shapes and classes."""
        task, blank = Generate(), torch.zeros_like(known)
        hint = task.condition(blank, torch.ones_like(known[:, :1]), None, blank)
        return build_conditioning(hint, task, label, self.vocabulary)

    def _class_difference(self, known: Tensor, guide: Conditioning, generator) -> Tensor:
        """(B, 1, H, W) how much the class changes the answer of generate: squared, smoothed.

        Args:
            known: (B, 3, H, W) in [-1, 1].
            guide: generate's, with the class.
            generator: one, or one for each image, or None.
        """
        # A model of few steps knows the noise levels of its chains.
        levels = [level for chain in self.chains or [] for level in chain] or [MASK_SIGMA]
        sigma = min(levels, key=lambda level: abs(math.log(level / MASK_SIGMA)))
        squares = []
        for _ in range(MASK_DRAWS):
            noise = initial_latents(None, generator, tuple(known.shape), known.device)
            squares.append(self._difference(known + sigma * noise, sigma, guide))
        blur = torch.full((len(known),), MASK_BLUR * self.size, device=known.device)
        return low_pass(torch.stack(squares).mean(0), blur)

    def _difference(self, noisy: Tensor, sigma: float, conditioning: Conditioning) -> Tensor:
        """(B, 1, H, W) squared difference that the class makes to the network's answer."""
        both = Conditioning.cat([conditioning, conditioning.without(CLASS, self.vocabulary.null)])
        sigmas = torch.full((len(both), 1, 1, 1), sigma, device=noisy.device)
        output = predict(self.unet, self.scheduler, noisy.repeat(2, 1, 1, 1), sigmas, both)
        given, without = output.chunk(2)
        return (given - without).square().sum(1, keepdim=True)
