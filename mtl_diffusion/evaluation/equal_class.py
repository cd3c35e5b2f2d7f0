"""Likeness to the source where equally many edits reach the class: how ways to edit are compared.

At one strength, one method changes more than another one, reaches the class more often and keeps
less of the source. So every method is measured at the same strengths, and its likeness is read
where the share of edits whose class is found crosses fixed values, by linear interpolation between
two neighbouring strengths.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

CLASS = "class_accuracy"
FOUND = {f"class_found_{share:g}": share for share in (0.5, 0.7, 0.9)}  # result -> share


@dataclass(frozen=True)
class EditsAtStrength:
    """N edits at one strength.

    Attributes:
        evaluations: of the network, for one edit.
        figures: name -> (N,) values. "class_accuracy" is whether the requested class is found.
    """

    strength: float
    evaluations: float
    figures: Mapping[str, Tensor]


def at_class_found(curve: Sequence[EditsAtStrength], share: float) -> dict[str, Any]:
    """The figures at the smallest strength where `share` of the edits have the requested class.

    Args:
        curve: by rising strength, from 0 (the source itself), with the same N edits at each.
        share: in (0, 1].

    Returns:
        n; "reached", whether any strength has such a share; if not, the "largest_share";
        if so, the interpolated "strength" and "evaluations", and each other figure with its
        standard error, to which the error of the share contributes.
    """
    shares = [edits.figures[CLASS].double().mean().item() for edits in curve]
    n = len(curve[0].figures[CLASS])
    above = next((i for i, found in enumerate(shares) if found >= share), None)
    if above is None:
        return {"n": n, "reached": False, "largest_share": max(shares)}
    below = max(above - 1, 0)
    a, b, rise = curve[below], curve[above], shares[above] - shares[below]
    weight = (share - shares[below]) / rise if rise else 1.0  # no rise: the sources have the share

    def between(low, high):
        return (1 - weight) * low + weight * high

    results: dict[str, Any] = {
        "strength": between(a.strength, b.strength),
        "evaluations": between(a.evaluations, b.evaluations),
    }
    values = {n: (v.double(), b.figures[n].double()) for n, v in a.figures.items()}
    found = between(*values.pop(CLASS))
    for name, (low, high) in values.items():
        slope = (high.mean() - low.mean()).item() / rise if rise else 0.0
        # The influence of each edit on the figure, to first order: its own value, and the crossing.
        influence = between(low, high) - slope * found
        error = influence.std().item() / math.sqrt(n) if n > 1 else 0.0
        results |= {name: between(low, high).mean().item(), f"{name}_standard_error": error}
    return {"n": n, "reached": True, **results}
