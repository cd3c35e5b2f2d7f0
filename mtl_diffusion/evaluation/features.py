"""Feature spaces, in which the distances between sets of images are measured.

Figures of different feature spaces can't be compared, so a result names its feature space.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ..classifiers.classifier import Classifier
from ..tools.tensors import weights_digest

KINDS = 'a folder of mtl-diffusion train_classifier, "inception", or an image model of transformers'


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
        name: a folder of mtl-diffusion train_classifier, for the inputs of its last layer;
            "inception", the network of the published FID; or an image model of transformers as a
            folder or a name on the Hub, such as "facebook/dinov2-base".

    Raises:
        ValueError: the network is not available.
    """
    if name == "inception":
        return _inception(device)
    if not Path(name, "metrics.json").is_file():
        return _transformers(name, device)
    classifier = Classifier.load(name, device)
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
            f"downloads ({error}); pip install torch-fidelity, or give {KINDS}"
        ) from error
    return FeatureSpace(
        "inception",
        weights_digest(model),
        {"kind": "inception"},
        lambda images: model((images * 255).round().to(device, torch.uint8)),
    )


def _transformers(name: str, device: str | torch.device) -> FeatureSpace:
    """An image model with its own normalisation and size; small images are enlarged to it."""
    from transformers import AutoModel
    from transformers.image_processing_utils import BaseImageProcessor

    try:
        model = AutoModel.from_pretrained(name).eval().to(device)
        # The processors need torchvision; reading their settings does not.
        settings, _ = BaseImageProcessor.get_image_processor_dict(name)
    except (OSError, ValueError) as error:
        raise ValueError(f"feature_space {name!r} is neither {KINDS}: {error}") from error
    size = settings.get("crop_size") or settings["size"]
    side = size if isinstance(size, int) else size.get("height") or size["shortest_edge"]
    scales = (settings[key] for key in ("image_mean", "image_std"))
    mean, std = (torch.tensor(scale, device=device).view(1, 3, 1, 1) for scale in scales)

    def embed(images: Tensor) -> Tensor:
        shown = F.interpolate(images.to(device), (side, side), mode="bicubic", antialias=True)
        answer = model((shown.clamp(0, 1) - mean) / std)
        pooled = answer.pooler_output
        return answer.last_hidden_state[:, 0] if pooled is None else pooled.flatten(1)

    about = {"kind": "transformers", "enlarged_to": side}
    return FeatureSpace(name, weights_digest(model), about, embed)
