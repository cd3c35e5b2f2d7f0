"""Denoisers of Gaussian images, whose every answer is known, and noise levels to solve them at."""

import torch
from torch import Tensor

SHAPE = (3, 2, 2)
DIM = 12  # numbers in an image


def keyed(n: int, first: int = 0) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(first + i) for i in range(n)]


def karras(steps: int, low: float = 0.002, high: float = 80.0) -> tuple[float, ...]:
    """Equation 5 of Karras et al. 2022: for six steps 80, 24.4, 5.8, 0.97, 0.083, 0.002, 0."""
    rho, ramp = 7, [i / (steps - 1) for i in range(steps)]
    ends = high ** (1 / rho), low ** (1 / rho)
    return (*((ends[0] + r * (ends[1] - ends[0])) ** rho for r in ramp), 0.0)


class Gaussian:
    """E[image | x] for images of N(mean, covariance): mean + C (C + sigma^2)^-1 (x - mean).

    Args:
        mean: a number, or one for each of the dimensions.
        covariance: (d, d), or a number for that times the identity.
    """

    def __init__(self, mean, covariance, shape=SHAPE):
        self.shape = shape
        d = torch.Size(shape).numel()
        self.mean = torch.as_tensor(mean, dtype=torch.float64).expand(d)
        covariance = torch.as_tensor(covariance, dtype=torch.float64)
        self.covariance = covariance if covariance.ndim else covariance * torch.eye(d).double()
        self.evaluations = 0

    def gain(self, sigma: float) -> Tensor:
        """C (C + sigma^2)^-1, (d, d) and symmetric: it is dD/dx."""
        noisy = self.covariance + sigma**2 * torch.eye(len(self.mean)).double()
        return torch.linalg.solve(noisy, self.covariance)

    def __call__(self, x: Tensor, sigma: Tensor | float) -> Tensor:
        """sigma: one noise level, or a tensor of equal ones."""
        self.evaluations += 1
        sigma = float(torch.as_tensor(sigma).flatten()[0])
        away = x.flatten(1).double() - self.mean
        return (self.mean + away @ self.gain(sigma)).view_as(x).to(x.dtype)

    def flowed(self, x: Tensor, sigma: float, target: float) -> Tensor:
        """Where the flow carries x (B, d): each principal component keeps its quantile."""
        values, vectors = torch.linalg.eigh(self.covariance)
        scale = ((values + target**2) / (values + sigma**2)).sqrt()
        return self.mean + (x.double() - self.mean) @ vectors * scale @ vectors.T

    def sample(self, n: int, seed: int = 0) -> Tensor:
        random = torch.Generator().manual_seed(seed)
        normal = torch.randn(n, len(self.mean), generator=random, dtype=torch.float64)
        x = self.mean + normal @ torch.linalg.cholesky(self.covariance).T
        return x.view(n, *self.shape)


def correlated(scale: float, d: int = DIM) -> Tensor:
    """A covariance of neighbours that resemble each other."""
    place = torch.arange(d).double()
    return scale**2 * 0.8 ** (place[:, None] - place).abs()
