"""Feature spaces, in which the distances between sets of images are measured.

Figures of different feature spaces can't be compared, so a result names its feature space.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..classifiers.classifier import Classifier
from ..tools.tensors import weights_digest


@dataclass(frozen=True)
class FeatureSpace:
    """A frozen network that maps images to features.

    Attributes:
        digest: of its weights; it identifies the space.
        about: further facts for metrics.json, such as a classifier's accuracy.
        embed: (B, 3, H, W) in [0, 1] on any device -> (B, D) float32.
    """

    name: str
    digest: str
    about: dict[str, Any]
    embed: Callable[[Tensor], Tensor]

    @torch.no_grad()
    def features(self, images: Tensor, batch_size: int = 500) -> Tensor:
        """(N, 3, H, W) uint8 -> (N, D) float32 on the CPU."""
        batches = images.split(batch_size)
        return torch.cat([self.embed(batch.float() / 255).float().cpu() for batch in batches])


def feature_space(name: str, device: str | torch.device = "cpu") -> FeatureSpace:
    """Loads a feature space.

    Args:
        name: a folder of mtl-diffusion train_classifier, for the inputs of its last layer; or
            "inception", the network of the published FID.

    Raises:
        ValueError: the network is not available.
    """
    if name == "inception":
        return _inception(device)
    try:
        classifier = Classifier.load(name, device)
    except ValueError as error:
        raise ValueError(f'feature_space: not "inception", and no {error}') from error
    return FeatureSpace(
        Path(name).name,
        weights_digest(classifier.model),
        {"kind": "classifier", **classifier.metrics},
        lambda images: classifier.features(2 * images - 1),
    )


def _inception(device: str | torch.device) -> FeatureSpace:
    try:
        from torchmetrics.image.fid import NoTrainInceptionV3

        model = NoTrainInceptionV3("inception-v3-compat", ["2048"]).to(device)
    except (ImportError, OSError) as error:
        raise ValueError(
            'feature_space "inception" needs the package torch-fidelity and the weights that it '
            f"downloads ({error}); pip install torch-fidelity, or give the folder of a classifier"
        ) from error
    return FeatureSpace(
        "inception",
        weights_digest(model),
        {"kind": "inception"},
        lambda images: model((images * 255).round().to(device, torch.uint8)),
    )
