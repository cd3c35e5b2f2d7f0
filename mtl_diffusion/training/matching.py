"""The third stage of training: the samples of a model of few steps get the features of images.

The second stage learns each jump by itself, so the errors of the jumps add up, and each answer is
softer than its target. Here whole chains are drawn, from noise to the image, with gradients. The
features of the images that are drawn, and those of training images, are taken as two Gaussians, and
each point learns to lie where the optimal transport from the first to the second puts it. The
gradient of this squared distance is that of the Frechet distance between the two, of one sample's
share in it.
"""

from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise

import torch
from accelerate.utils import reduce
from torch import Tensor, nn

from ..classifiers.classifier import Classifier
from ..data.images import ImageDataset
from ..pipeline.denoiser import CLASS, Conditioning, Denoiser
from ..pipeline.edit import Edit
from ..pipeline.pipeline import MultiTaskPipeline
from ..pipeline.solver import initial
from ..pipeline.task import Task
from ..tools.tensors import to_unit_range, weights_digest
from .losses import Objective, denoising_loss

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

    Samples of a class of all tasks but edit are drawn whole, in the longest chain. The others answer
    as the model did in the beginning: edits, into the class of another sample, and samples of no
    class.

    The first three arguments are those of `Objective`.

    Args:
        start: the pipeline that the run starts from, with weights of its own, which stay.
        tasks: in the order of the task indices.
        classifier: its features are matched.
        images: training images, labelled in the vocabulary's order.
    """

    def __init__(
        self,
        unet: nn.Module,
        scheduler,
        weighting: nn.Module | None,
        start: MultiTaskPipeline,
        tasks: Sequence[Task],
        classifier: Classifier,
        images: ImageDataset,
    ):
        super().__init__(unet, scheduler, weighting)
        start.unet.eval().requires_grad_(False)
        # Neither is a module of this one, which would be saved.
        self._start, self._classifier = start, classifier
        self.teacher = weights_digest(start.unet)
        # The errors of shorter chains are larger: they would govern the gradients of all.
        self.chain = list(max(start.chains, key=len))
        self.starts = torch.tensor(self.chain[:1])
        self.levels = {f"{len(self.chain)} steps": (self.chain[0], self.chain[0])}
        self._highest = max(level for chain in start.chains for level in chain)
        names = [task.name for task in tasks]
        self.whole = names.index(Edit.name) if Edit.name in names else -1

        self._classes = list(start.vocabulary.classes.values())
        self._null = start.vocabulary.null
        center, scale, points = image_points(classifier, images, len(self._classes))
        aim, covariance = points.mean(0), torch.cov(points.T)
        self.register_buffer("center", center.float(), persistent=False)
        self.register_buffer("scale", scale.float(), persistent=False)
        self.register_buffer("aim", aim, persistent=False)
        self.register_buffer("covariance", covariance, persistent=False)
        self.register_buffer("root", matrix_power(covariance, 0.5), persistent=False)
        self.moments = Moments(len(tasks), aim, covariance)

    @torch.no_grad()
    def target(
        self, image: Tensor, noise: Tensor, sigma: Tensor, conditioning: Conditioning, task: Tensor
    ) -> tuple[Tensor, Tensor]:
        """What the model answered in the beginning, from noise alone; see `Objective`."""
        x = self._first(noise, sigma, conditioning)
        D = Denoiser.of(self._start.unet, self.scheduler, conditioning)(x, sigma)
        return D, (x - D) / sigma

    def forward(
        self, image: Tensor, noise: Tensor, sigma: Tensor, conditioning: Conditioning, task: Tensor
    ) -> tuple[Tensor, Tensor]:
        """See `Objective`."""
        known = conditioning.tokens[:, CLASS, self._null] == 0
        drawn = (task != self.whole) & (known if self._classes else True)
        loss = torch.zeros_like(sigma.flatten())
        for index in range(len(self.moments.mean)):
            rows = (drawn & (task == index)).nonzero()[:, 0]
            found = self._distance(index, noise[rows], conditioning[rows])
            loss = loss.index_add(0, rows, found)
        rows = (~drawn).nonzero()[:, 0]
        if len(rows):
            kept = self._kept(noise[rows], sigma[rows], conditioning[rows], task[rows])
            loss = loss.index_add(0, rows, kept)
        weighted = loss if self.weighting is None else self.weighting(loss, sigma, task)
        return loss.detach(), weighted

    def _distance(self, task: int, noise: Tensor, conditioning: Conditioning) -> Tensor:
        """(n,) the mean squared distance of each sample's features to where they belong."""
        if not len(noise):  # other processes may have some
            self.moments.add(task, self.aim[None][:0])
            return noise.new_zeros(0)
        x = self._first(noise, torch.full_like(noise[:, :1, :1, :1], self.chain[0]), conditioning)
        denoise = Denoiser.of(self.unet, self.scheduler, conditioning)
        for level, following in pairwise([*self.chain, 0.0]):
            ratio = following / level
            x = ratio * x + (1 - ratio) * denoise(x, level)
        x = torch.where(conditioning.mask > 0, x, conditioning.image)
        with torch.autocast(x.device.type, enabled=False):
            rgb = self._start.format.rgb(x.float())
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

    def _kept(
        self, noise: Tensor, sigma: Tensor, conditioning: Conditioning, task: Tensor
    ) -> Tensor:
        """(n,) how far the first evaluation is from the one of the beginning."""
        edits = (task == self.whole).nonzero()[:, 0]
        sigma = torch.where((task == self.whole).view(-1, 1, 1, 1), self._highest, sigma)
        tokens = conditioning.tokens.clone()
        tokens[edits, CLASS] = tokens[edits, CLASS].roll(1, 0)
        conditioning = replace(conditioning, tokens=tokens)
        D, rest = self.target(noise, noise, sigma, conditioning, task)
        found = Denoiser.of(self.unet, self.scheduler, conditioning)(D + sigma * rest, sigma)
        with torch.autocast(noise.device.type, enabled=False):
            return denoising_loss(found, D, sigma, conditioning.mask, self.scheduler)

    def _first(self, noise: Tensor, sigma: Tensor, conditioning: Conditioning) -> Tensor:
        """Latents as sampling starts from."""
        image, mask = conditioning.image, conditioning.mask > 0
        return initial(image, noise, image, mask, sigma, few=True)
