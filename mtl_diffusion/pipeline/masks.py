"""The kinds of masks that inpainting learns: (B, 1, H, W) in {0, 1}, 1 = to be painted.

Every kind is drawn for the whole batch at once, on the generator's device, without a loop over
samples and without waiting for the device.
"""

import torch
from torch import Tensor

Size = tuple[int, int]  # height and width in pixels


def _uniform(shape: tuple[int, ...], low: float, high: float, generator: torch.Generator) -> Tensor:
    return low + (high - low) * torch.rand(shape, generator=generator, device=generator.device)


def _pixels(size: int, device: torch.device) -> Tensor:
    """(size,) centres of the pixels as shares of the side, in (0, 1)."""
    return (torch.arange(size, device=device) + 0.5) / size


def _box(top: Tensor, bottom: Tensor, left: Tensor, right: Tensor, size: Size) -> Tensor:
    """(..., H, W) bool from borders (...) in shares of the sides."""
    y, x = (_pixels(side, top.device) for side in size)
    rows = (y >= top[..., None]) & (y < bottom[..., None])
    columns = (x >= left[..., None]) & (x < right[..., None])
    return rows[..., :, None] & columns[..., None, :]


def center(n: int, size: Size, generator: torch.Generator) -> Tensor:
    """A box in the middle, half as wide as the image: the benchmark of the literature."""
    low = torch.full((n,), 0.25, device=generator.device)
    high = torch.full((n,), 0.75, device=generator.device)
    return _box(low, high, low, high, size)[:, None]


def boxes(n: int, size: Size, generator: torch.Generator) -> Tensor:
    """One to three boxes, each side between a fifth and three fifths of the image's."""
    sides = _uniform((n, 3, 2), 0.2, 0.6, generator)
    corner = _uniform((n, 3, 2), 0.0, 1.0, generator) * (1 - sides)
    end = corner + sides
    drawn = _box(corner[..., 0], end[..., 0], corner[..., 1], end[..., 1], size)  # (n, 3, H, W)
    count = torch.randint(1, 4, (n, 1), generator=generator, device=generator.device)
    used = torch.arange(3, device=generator.device) < count
    return (drawn & used[..., None, None]).any(dim=1, keepdim=True)


def strokes(n: int, size: Size, generator: torch.Generator) -> Tensor:
    """Free-form: a thick brush dragged along a random walk of six segments."""
    start = _uniform((n, 1, 2), 0.1, 0.9, generator)
    step = _uniform((n, 6, 2), -0.45, 0.45, generator)
    # Reflect the walk at the borders, so that the brush stays on the image.
    path = torch.cat([start, start + step.cumsum(dim=1)], dim=1)  # (n, 7, 2)
    path = 1 - (path.remainder(2) - 1).abs()
    a, b = path[:, :-1, None, None], path[:, 1:, None, None]  # (n, 6, 1, 1, 2)
    sides = (_pixels(side, generator.device) for side in size)
    point = torch.stack(torch.meshgrid(*sides, indexing="ij"), dim=-1)  # (H, W, 2)
    along = ((point - a) * (b - a)).sum(-1) / (b - a).square().sum(-1).clamp_min(1e-8)
    nearest = a + along.clamp(0, 1)[..., None] * (b - a)
    distance = (point - nearest).square().sum(-1).amin(dim=1)  # (n, H, W)
    radius = _uniform((n, 1, 1), 0.05, 0.12, generator)
    return (distance < radius.square())[:, None]


def half(n: int, size: Size, generator: torch.Generator) -> Tensor:
    """The left, right, upper or lower half."""
    y, x = (_pixels(side, generator.device) < 0.5 for side in size)
    upper, left = y[:, None].expand(size), x.expand(size)
    sides = torch.stack([upper, ~upper, left, ~left])
    return sides[torch.randint(4, (n,), generator=generator, device=generator.device)][:, None]


def border(n: int, size: Size, generator: torch.Generator) -> Tensor:
    """Everything around a kept box in the middle: outpainting."""
    margin = _uniform((n,), 0.15, 0.35, generator)
    return ~_box(margin, 1 - margin, margin, 1 - margin, size)[:, None]


def pixels(n: int, size: Size, generator: torch.Generator) -> Tensor:
    """Each pixel on its own, half to nineteen twentieths of them missing."""
    share = _uniform((n, 1, 1, 1), 0.5, 0.95, generator)
    return _uniform((n, 1, *size), 0.0, 1.0, generator) < share


MASKS = {kind.__name__: kind for kind in (center, boxes, strokes, half, border, pixels)}


def draw_masks(n: int, size: Size, generator: torch.Generator, kind: str | None = None) -> Tensor:
    """(n, 1, H, W) float in {0, 1}, 1 = to be painted; never empty, never everything.

    Args:
        kind: a key of `MASKS`, or None for a random kind a sample.
    """
    kinds = list(MASKS) if kind is None else [kind]
    drawn = torch.stack([MASKS[name](n, size, generator) for name in kinds])
    which = torch.randint(len(kinds), (n,), generator=generator, device=generator.device)
    mask = drawn[which, torch.arange(n, device=generator.device)].float()
    # A mask without a hole has no loss, and one without a known pixel is generation.
    share = mask.mean(dim=(1, 2, 3), keepdim=True)
    return torch.where((share > 0) & (share < 1), mask, center(n, size, generator).float())
