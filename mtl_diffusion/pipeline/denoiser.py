"""The denoiser: its conditioning, EDM preconditioning around a stock UNet, and guidance.

Notation of Karras et al. 2022, arXiv:2206.00364:
    D(x; sigma) = c_skip x + c_out F(c_in x, c_noise).
Everything here returns F. The scheduler holds c_skip, c_out, c_in and c_noise, for training too.
"""

from dataclasses import dataclass, fields, replace

import torch
from torch import Tensor

from .task import Hint, Task
from .tokens import Vocabulary

CHANNELS = 7  # noisy image with the known pixels in it, condition image, mask
TASK, CLASS, STRENGTH = range(3)  # places in the sequence of tokens


@dataclass(frozen=True)
class Conditioning:
    """The inputs of the denoiser besides the noisy image, for B samples.

    Attributes:
        image: (B, 3, H, W) the condition image, in the range of the images; zero where none is.
        mask: (B, 1, H, W) in {0, 1}, 1 = to be painted.
        tokens: (B, 3, V) task, class, strength: a distribution over the vocabulary each.
    """

    image: Tensor
    mask: Tensor
    tokens: Tensor

    def __len__(self) -> int:
        return len(self.image)

    def __getitem__(self, rows) -> "Conditioning":
        return Conditioning(*(getattr(self, field.name)[rows] for field in fields(self)))

    @staticmethod
    def cat(parts: list["Conditioning"]) -> "Conditioning":
        return Conditioning(
            *(torch.cat([getattr(p, f.name) for p in parts]) for f in fields(Conditioning))
        )

    def without(self, place: int, null: int, rows: Tensor | None = None) -> "Conditioning":
        """Sets the token at a place to null, for all samples or for the rows (B,) bool."""
        tokens = self.tokens.clone()
        nothing = torch.zeros_like(tokens[:, place])
        nothing[:, null] = 1
        if rows is not None:
            nothing = torch.where(rows[:, None], nothing, tokens[:, place])
        tokens[:, place] = nothing
        return replace(self, tokens=tokens)

    def without_image(self, null: int, rows: Tensor | None = None) -> "Conditioning":
        """Hides the image inside the mask, and with it the strength."""
        known = self.image * (1 - self.mask)
        if rows is not None:
            known = torch.where(rows[:, None, None, None], known, self.image)
        return replace(self.without(STRENGTH, null, rows), image=known)


@dataclass(frozen=True)
class LocalGuidance:
    """Guidance by the difference that a class makes to another task, pixel by pixel.

    Attributes:
        base: the conditioning that is guided: of the class of the source, or of none.
        guide: the conditioning of the other task, with the class.
        weight: (B, 1, H, W), multiplies the guidance scale.
    """

    base: Conditioning
    guide: Conditioning
    weight: Tensor

    def __getitem__(self, rows) -> "LocalGuidance":
        return LocalGuidance(self.base[rows], self.guide[rows], self.weight[rows])


def build_conditioning(
    hint: Hint, task: Task, label: Tensor, vocabulary: Vocabulary
) -> Conditioning:
    """A task's conditioning image and tokens, encoded for the UNet.

    Args:
        label: (B,) class labels in 0..K-1, negative for none.
    """
    tokens = vocabulary.tokens(
        vocabulary.tasks[task.name], vocabulary.class_ids(label), hint.strength
    )
    return Conditioning(image=hint.image, mask=hint.mask, tokens=tokens)


def predict(unet, scheduler, noisy: Tensor, sigma: Tensor, conditioning: Conditioning) -> Tensor:
    """The raw output F of the network.

    Args:
        unet: a UNet2DConditionModel with `CHANNELS` input channels and one-hot tokens.
        scheduler: an EDM scheduler, which computes the preconditioning.
        noisy: (B, 3, H, W) float32, image + sigma noise. Known pixels of it are not used.
        sigma: (B, 1, 1, 1), because (B,) would broadcast along the width in silence.

    Returns:
        (B, 3, H, W) float32.
    """
    if sigma.shape != (len(noisy), 1, 1, 1):
        raise ValueError(
            f"sigma has shape {tuple(sigma.shape)}; it must be ({len(noisy)}, 1, 1, 1)"
        )
    # c_in scales the noisy channels alone; the condition image is scaled to unit variance.
    noisy = scheduler.precondition_inputs(noisy, sigma)
    shown = conditioning.image / scheduler.config.sigma_data
    # Known pixels replace the noisy ones, too: short runs learn to use them in the channels of the
    # pixels that they paint, and hardly from other channels.
    noisy = torch.where(conditioning.mask > 0, noisy, shown)
    channels = torch.cat([noisy, shown, conditioning.mask], dim=1).to(unet.dtype)
    tokens = conditioning.tokens.to(unet.dtype)
    timestep = scheduler.precondition_noise(sigma).flatten().to(unet.dtype)  # (B,)
    output = unet(
        channels,
        timestep,
        encoder_hidden_states=tokens,
        class_labels=tokens.flatten(1),
        return_dict=False,
    )[0]
    return output.float()


def predict_guided(
    unet,
    scheduler,
    noisy: Tensor,
    sigma: Tensor,
    conditioning: Conditioning,
    null: int,
    guidance_scale: float = 1.0,
    image_guidance_scale: float = 1.0,
    local: LocalGuidance | None = None,
) -> Tensor:
    """F(0,0) + s_I [F(I,0) - F(0,0)] + s_C [F(I,c) - F(I,0)], all evaluations in one batch.

    A scale of 1 is off. The weights sum to 1, so combining F equals combining D. A branch of weight
    zero is not evaluated: one evaluation without guidance, two where s_I is 1, else up to three.
    With local guidance, where s_C is neither 0 nor 1, the last difference is that of another task,
    and F(I,0) that of another class: three evaluations, or four.

    Args:
        null: id of the null token.
        guidance_scale: s_C, the class's.
        image_guidance_scale: s_I, the condition image's.

    Source: Brooks et al. 2023, InstructPix2Pix, eq. 3.
    """
    if local is None or guidance_scale in (0, 1):
        branches = [
            (guidance_scale, conditioning),
            (image_guidance_scale - guidance_scale, conditioning.without(CLASS, null)),
            (1 - image_guidance_scale, conditioning.without_image(null).without(CLASS, null)),
        ]
    else:
        weight = guidance_scale * local.weight
        branches = [
            (weight, local.guide),
            (-weight, local.guide.without(CLASS, null)),
            (image_guidance_scale, local.base),
            (1 - image_guidance_scale, local.base.without_image(null).without(CLASS, null)),
        ]
    branches = [(w, branch) for w, branch in branches if isinstance(w, Tensor) or w != 0]
    n = len(branches)
    F = predict(
        unet,
        scheduler,
        noisy.repeat(n, 1, 1, 1),
        sigma.repeat(n, 1, 1, 1),
        Conditioning.cat([branch for _, branch in branches]),
    )
    return sum(weight * part for (weight, _), part in zip(branches, F.chunk(n), strict=True))
