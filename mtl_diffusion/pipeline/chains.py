"""Models that draw in few steps: the noise levels that they visit.

A chain is the noise levels of one number of steps, the highest first. At each of its levels the
model has learned the jump to the next one, and from the last to the image: the end of the teacher's
probability-flow ODE from there. A jump is one Euler step, x' = (s'/s) x + (1 - s'/s) D(x; s). The
noise level tells the model which jump is asked for, so no level belongs to two chains.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

Chains = Sequence[Sequence[float]]

# As shares of the highest noise level of sampling. All first levels are noise alone.
_SHARES = ((1.0,), (1 / 2, 0.01), (1 / 4, 0.05, 0.0125, 0.003))


def default_chains(sigma_max: float) -> list[list[float]]:
    """The chains of 1, 2 and 4 steps; the default of sampling is the last."""
    return [[share * sigma_max for share in shares] for shares in _SHARES]


def jumps(chains: Chains) -> list[tuple[float, float]]:
    """(from, to) of every jump of every chain; to is 0 at its end."""
    return [pair for levels in chains for pair in zip(levels, [*levels[1:], 0.0], strict=True)]


def check_chains(chains) -> None:
    """Raises a ValueError if they are not lists of falling levels, with no level twice."""
    try:
        levels = [level for chain in chains for level in chain]
        falling = all(list(chain) == sorted({*chain}, reverse=True) for chain in chains)
        lengths = [len(chain) for chain in chains]
        fits = levels and falling and all(level > 0 for level in levels) and 0 not in lengths
        fits = fits and len({*levels}) == len(levels) and len({*lengths}) == len(lengths)
    except TypeError:
        fits = False
    if not fits:
        raise ValueError(
            f"chains are {chains}; they must be lists of noise levels above 0, falling, no two of "
            "one length and no level twice: compare model_index.json with that of the published "
            "model"
        )


def karras_ramp(levels: Sequence[float], config) -> Tensor:
    """Noise levels as EDMEulerScheduler takes them: the places in [0, 1] of its Karras schedule.

    Args:
        config: the scheduler's.
    """
    low, high = (config[name] ** (1 / config.rho) for name in ("sigma_min", "sigma_max"))
    roots = torch.tensor(levels, dtype=torch.float64) ** (1 / config.rho)
    return (high - roots) / (high - low)
