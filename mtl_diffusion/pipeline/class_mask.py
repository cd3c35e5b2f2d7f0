"""Where a class makes a difference to an image: a mask for an edit that keeps all the rest."""

import math

import torch
from torch import Tensor

from .degradation import low_pass
from .denoiser import CLASS, Conditioning, build_conditioning, predict
from .generate import Generate
from .inputs import read_number
from .noise import initial_latents

MASK_SIGMA = 1.0  # noise level at which answers are compared: objects are seen, details are not
MASK_DRAWS = 2  # of noise, each with one evaluation of two branches
MASK_BLUR = 0.05  # standard deviation of the smoothing, as a share of the image's width


class GeneratesMasks:
    """The method `generate_mask`, which is named after that of diffusers' DiffEdit pipeline."""

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
        task, device = Generate(), self._execution_device
        source = self._read_source(task, class_label, image, None, None, 1)
        if (source.label < 0).any():
            raise ValueError("class_label has None in it; a mask needs a class")
        known, blank = 2 * source.image - 1, torch.zeros_like(source.image)
        hint = task.condition(blank, source.mask, None, blank)
        conditioning = build_conditioning(hint, task, source.label, self.vocabulary)
        # A model of few steps knows the noise levels of its chains.
        levels = [level for chain in self.chains or [] for level in chain] or [MASK_SIGMA]
        sigma = min(levels, key=lambda level: abs(math.log(level / MASK_SIGMA)))
        squares = []
        for _ in range(MASK_DRAWS):
            noise = initial_latents(None, generator, tuple(known.shape), device)
            noisy = known + sigma * noise
            squares.append(self._difference(noisy, sigma, conditioning))
        blur = torch.full((len(known),), MASK_BLUR * self.size, device=device)
        difference = low_pass(torch.stack(squares).mean(0), blur)
        limit = difference.flatten(1).quantile(1 - share, dim=1)
        self.maybe_free_model_hooks()
        return (difference >= limit[:, None, None, None]).float()

    def _difference(self, noisy: Tensor, sigma: float, conditioning: Conditioning) -> Tensor:
        """(B, 1, H, W) squared difference that the class makes to the network's answer."""
        both = Conditioning.cat([conditioning, conditioning.without(CLASS, self.vocabulary.null)])
        sigmas = torch.full((len(both), 1, 1, 1), sigma, device=noisy.device)
        output = predict(self.unet, self.scheduler, noisy.repeat(2, 1, 1, 1), sigmas, both)
        given, without = output.chunk(2)
        return (given - without).square().sum(1, keepdim=True)
