"""Likeness to the source where equally many edits reach the class: how ways to edit are compared.

At one strength, one method changes more than another one, reaches the class more often and keeps
less of the source. So every method is measured at the same strengths, and its likeness is read off
where the share of edits whose class is found crosses fixed values, by linear interpolation between
two neighbouring strengths. Nothing that is measured besides has any influence.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

FOUND = {f"class_found_{share:g}": share for share in (0.5, 0.7, 0.9)}  # result -> share


@dataclass(frozen=True)
class EditsAtStrength:
    """N edits at one strength.

    Attributes:
        evaluations: of the network, for one edit.
        found: (N,) bool, whether the classifier finds the requested class.
        likeness: figure -> (N,) values.
    """

    strength: float
    evaluations: float
    found: Tensor
    likeness: Mapping[str, Tensor]


def at_class_found(curve: Sequence[EditsAtStrength], share: float) -> dict[str, Any]:
    """The figures at the smallest strength where `share` of the edits have the requested class.

    Args:
        curve: by rising strength, from 0 (the source itself), with the same N edits at each.
        share: in (0, 1].

    Returns:
        n; "reached", whether any strength has such a share; if not, the "largest_share";
        if so, the interpolated "strength" and "evaluations", and each figure of likeness with its
        standard error, to which the error of the share contributes.
    """
    shares = [measured.found.double().mean().item() for measured in curve]
    n = len(curve[0].found)
    above = next((i for i, found in enumerate(shares) if found >= share), None)
    if above is None:
        return {"n": n, "reached": False, "largest_share": max(shares)}
    a, b = curve[max(above - 1, 0)], curve[above]
    rise = shares[above] - shares[max(above - 1, 0)]  # 0 if the sources have the share already
    weight = (share - shares[above - 1]) / rise if rise else 1.0

    def between(low, high):
        return (1 - weight) * low + weight * high

    figures: dict[str, Any] = {
        "strength": between(a.strength, b.strength),
        "evaluations": between(a.evaluations, b.evaluations),
    }
    found = between(a.found.double(), b.found.double())
    for name, low in a.likeness.items():
        low, high = low.double(), b.likeness[name].double()
        values = between(low, high)
        slope = (high.mean() - low.mean()).item() / rise if rise else 0.0
        # The influence of each edit on the figure, to first order: its own value, and the crossing.
        error = (values - slope * found).std().item() / math.sqrt(n) if n > 1 else 0.0
        figures |= {name: values.mean().item(), f"{name}_standard_error": error}
    return {"n": n, "reached": True, **figures}
