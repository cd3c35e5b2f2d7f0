"""The third stage of training: the samples of a model of few steps get the features of images.

The second stage learns each jump by itself, so the errors of the jumps add up, and each answer is
softer than its target. Here whole chains are drawn, from noise to the image, with gradients. The
features of the images that are drawn, and those of training images, are taken as two Gaussians, and
each point learns to lie where the optimal transport from the first to the second puts it. The
gradient of this squared distance is that of the Frechet distance between the two, of one sample's
share in it.
"""

from itertools import pairwise

import torch
from accelerate.utils import reduce
from torch import Tensor, nn

from ..classifiers.classifier import Classifier
from ..data.images import ImageDataset
from ..pipeline.denoiser import CLASS, Conditioning, Denoiser
from ..pipeline.pipeline import MultiTaskPipeline
from ..pipeline.solver import initial
from ..tools.tensors import to_unit_range
from .losses import Objective

IMAGES = 10_000  # training images, at most, whose features are the aim
CLASS_WEIGHT = 3.0  # of the class beside features of variance 1: the features of a class match, too
# How many of the latest samples the moments of samples are taken over. The mean follows the model
# faster: with a longer memory the weights overshoot.
MEAN_MEMORY, COVARIANCE_MEMORY = 320, 1600
SHRINKAGE = 0.2  # of the samples' covariance towards the images': they are few for its size


class Moments(nn.Module):
    """The mean and the covariance of points, of each of several groups, over its latest samples.

    They begin at those of the images, so a group of few samples hardly learns. They belong to the
    checkpoint, and the processes share them.

    Attributes:
        mean: (G, D) float64. covariance: (G, D, D) float64.
    """

    def __init__(self, groups: int, mean: Tensor, covariance: Tensor):
        super().__init__()
        self.register_buffer("mean", mean.repeat(groups, 1))
        self.register_buffer("covariance", covariance.repeat(groups, 1, 1))

    @torch.no_grad()
    def add(self, group: int, points: Tensor) -> None:
        """Takes in points (n, D), n >= 0. All processes call it together."""
        points, mean, covariance = points.double(), self.mean[group], self.covariance[group]
        spread = points - mean
        parts = points.new_tensor(len(points)), spread.sum(0), spread.T @ spread
        n, away, squares = reduce(parts, "sum")
        if n > 0:
            covariance.lerp_(squares / n, n / (n + COVARIANCE_MEMORY))
            mean.lerp_(mean + away / n, n / (n + MEAN_MEMORY))


def matrix_power(matrix: Tensor, power: float) -> Tensor:
    """A power of a symmetric positive matrix (D, D); eigenvalues that are nearly 0 are raised."""
    values, vectors = torch.linalg.eigh(matrix)
    values = values.clamp_min(1e-8 * values.max())
    return (vectors * values**power) @ vectors.T


@torch.no_grad()
def image_points(
    classifier: Classifier, images: ImageDataset, num_classes: int
) -> tuple[Tensor, Tensor, Tensor]:
    """The mean and the scale of the features of images, float64 on the CPU, and their points.

    A point is the features, less their mean and divided by their scale, and the class. An image
    without a class is left out, where there are classes.
    """
    images = images.spread(min(len(images), IMAGES))
    rows = images.labels >= (0 if num_classes else -1)
    parts = images.rgb[rows].split(250)
    features = [classifier.mixed_features(to_unit_range(part)).cpu() for part in parts]
    features = torch.cat(features).double()
    center, scale = features.mean(0), features.std(0)
    scale = scale.clamp_min(1e-3 * scale.max())
    classes = features.new_zeros(len(features), num_classes)
    if num_classes:
        classes[torch.arange(len(classes)), images.labels[rows].cpu()] = CLASS_WEIGHT
    return center, scale, torch.cat([(features - center) / scale, classes], 1)


class Matching(Objective):
    """The objective of a student of few steps whose samples are to have the features of images.

    They are drawn whole, in the longest chain.

    The first three arguments are those of `Objective`.

    Args:
        start: the pipeline that the run starts from.
        num_tasks: how many there are.
        classifier: its features are matched.
        images: training images, labelled in the vocabulary's order.
    """

    def __init__(
        self,
        unet: nn.Module,
        scheduler,
        weighting: nn.Module | None,
        start: MultiTaskPipeline,
        num_tasks: int,
        classifier: Classifier,
        images: ImageDataset,
    ):
        super().__init__(unet, scheduler, weighting)
        self._classifier = classifier  # no submodule: neither trained nor saved
        # The errors of shorter chains are larger: they would govern the gradients of all.
        self.chain = list(max(start.chains, key=len))
        self.starts = torch.tensor(self.chain[:1])
        self.levels = {f"{len(self.chain)} steps": (self.chain[0], self.chain[0])}
        self._images, self._classes = start.format, list(start.vocabulary.classes.values())
        center, scale, points = image_points(classifier, images, len(self._classes))
        aim, covariance = points.mean(0), torch.cov(points.T)
        self.register_buffer("center", center.float(), persistent=False)
        self.register_buffer("scale", scale.float(), persistent=False)
        self.register_buffer("aim", aim, persistent=False)
        self.register_buffer("covariance", covariance, persistent=False)
        self.register_buffer("root", matrix_power(covariance, 0.5), persistent=False)
        self.moments = Moments(num_tasks, aim, covariance)

    def forward(
        self, image: Tensor, noise: Tensor, sigma: Tensor, conditioning: Conditioning, task: Tensor
    ) -> tuple[Tensor, Tensor]:
        """See `Objective`."""
        loss = torch.zeros_like(sigma.flatten())
        for index in range(len(self.moments.mean)):
            rows = (task == index).nonzero()[:, 0]
            found = self._distance(index, noise[rows], sigma[rows], conditioning[rows])
            loss = loss.index_add(0, rows, found)
        weighted = loss if self.weighting is None else self.weighting(loss, sigma, task)
        return loss.detach(), weighted

    def _distance(
        self, task: int, noise: Tensor, sigma: Tensor, conditioning: Conditioning
    ) -> Tensor:
        """(n,) the mean squared distance of each sample's features to where they belong."""
        if not len(noise):  # other processes may have some
            self.moments.add(task, self.aim[None][:0])
            return noise.new_zeros(0)
        known, free = conditioning.image, conditioning.mask > 0
        x = initial(known, noise, known, free, sigma, few=True)
        denoise = Denoiser.of(self.unet, self.scheduler, conditioning)
        for level, following in pairwise([*self.chain, 0.0]):
            ratio = following / level
            x = ratio * x + (1 - ratio) * denoise(x, level)
        x = torch.where(free, x, known)
        with torch.autocast(x.device.type, enabled=False):
            rgb = self._images.rgb(x.float())
            features = self._classifier.mixed_features(rgb).to(x.device)
            features = (features - self.center) / self.scale
            classes = CLASS_WEIGHT * conditioning.tokens[:, CLASS, self._classes]
            belongs = self._transported(task, torch.cat([features.detach(), classes], 1))
            return (features - belongs[:, : features.shape[1]]).square().mean(1)

    @torch.no_grad()
    def _transported(self, task: int, points: Tensor) -> Tensor:
        """Where the transport from the samples' Gaussian to the images' puts points (n, D).

        It is x -> aim + R (R S R)^(-1/2) R (x - mean), with R the root of the images' covariance
        and S the samples' one. Source: Peyre and Cuturi 2019, Computational optimal transport,
        remark 2.31.
        """
        self.moments.add(task, points)
        mean, found = self.moments.mean[task], self.moments.covariance[task]
        found = torch.lerp(found, self.covariance, SHRINKAGE)
        root = self.root
        linear = root @ matrix_power(root @ found @ root, -0.5) @ root
        return (self.aim + (points.double() - mean) @ linear).float()
