"""A loss in the features of a frozen image classifier, which speeds up early training.

The classifier sees clean images, is trained on the training split alone, and is not exported.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..classifiers.classifier import Classifier
from ..pipeline.format import ImageFormat
from ..tools.rng import generator
from ..tools.tensors import weights_digest

HIDDEN = 256  # channels inside the projector


class Alignment(nn.Module):
    """Representation alignment (REPA), Yu et al. 2024, arXiv:2410.06940.

    The cosine distance between the output of the UNet's middle block for a noisy image, after a
    small projector, and the classifier's last features of the clean image. The projector is trained
    with the UNet, and belongs to the checkpoint alone.

    Attributes:
        fingerprint: of the classifier's weights.

    Args:
        unet: the output of its middle block is aligned.
        classifier: on the device of the run; its weights don't change.
        images: (N, C, H, W) in [-1, 1], some of the training images: the mean of their features
            is subtracted before directions are compared.
        weight: of the loss of a sample.
        seed: keys the projector's initial weights.
    """

    def __init__(
        self, unet: nn.Module, classifier: Classifier, images: Tensor, weight: float, seed: int
    ):
        super().__init__()
        classifier.model.to(memory_format=torch.channels_last)
        self._classifier = classifier  # no submodule: neither trained nor saved
        self._images = ImageFormat.of(unet.config)
        self.weight = weight
        self.fingerprint = weights_digest(classifier.model)
        with torch.no_grad():
            last = torch.cat([self.last_features(part) for part in images.split(128)])
        self._mean = last.mean((0, 2, 3), keepdim=True)
        width = unet.config.block_out_channels[-1]
        with torch.random.fork_rng():
            torch.manual_seed(generator(seed, "projector").initial_seed())
            self.projector = nn.Sequential(
                nn.Conv2d(width, HIDDEN, 1), nn.SiLU(), nn.Conv2d(HIDDEN, last.shape[1], 1)
            )
        unet.mid_block.register_forward_hook(self._listen)

    def _listen(self, block: nn.Module, inputs: tuple, output: Tensor) -> None:
        self._features = output

    def last_features(self, images: Tensor) -> Tensor:
        """Of the classifier, (B, D, h, w), for images (B, C, H, W) in [-1, 1]."""
        return self._classifier.feature_maps(self._images.rgb(images)).float()

    def forward(self, image: Tensor) -> Tensor:
        """The weighted loss of each sample, (B,), right after the UNet has denoised them.

        Args:
            image: (B, C, H, W) in [-1, 1].
        """
        with torch.no_grad():
            clean = self.last_features(image)
        features, self._features = self.projector(self._features).float(), None
        # The kernel for channels_last is 100 times faster on a GPU than the other one.
        target = (clean - self._mean).contiguous(memory_format=torch.channels_last)
        target = F.interpolate(target, features.shape[-2:], mode="bilinear")
        return self.weight * (1 - F.cosine_similarity(features, target, dim=1).mean((1, 2)))
