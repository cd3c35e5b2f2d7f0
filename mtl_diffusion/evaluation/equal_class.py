"""Methods of editing, compared where the same share of their edits reaches the class.

A method's likeness to the source is taken at the strength where 50, 70 or 90 % of its edits reach
the class, interpolated linearly between the neighbouring strengths that were measured.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

FOUND = {f"class_found_{share:g}": share for share in (0.5, 0.7, 0.9)}  # result -> share


def at_class_found(curve: Sequence[Mapping[str, Tensor]], share: float) -> dict[str, Any]:
    """The figures at the smallest strength where `share` of the edits have the requested class.

    Args:
        curve: figure -> (N,) values of the same N edits, at each strength from 0, the source
            itself, upwards. "class_accuracy" is whether the class is found.
        share: in (0, 1].

    Returns:
        n; "reached", whether any strength has such a share; if not, the "largest_share"; if so,
        each other figure with its standard error, to which the error of the share contributes.
    """
    found = [figures["class_accuracy"].double() for figures in curve]
    shares, n = [one.mean().item() for one in found], len(found[0])
    above = next((i for i, one in enumerate(shares) if one >= share), None)
    if above is None:
        return {"n": n, "reached": False, "largest_share": max(shares)}
    below = max(above - 1, 0)
    rise = shares[above] - shares[below]  # 0 where the sources have the share
    weight = (share - shares[below]) / rise if rise else 1.0
    results: dict[str, Any] = {"n": n, "reached": True}
    for name in curve[0].keys() - {"class_accuracy"}:
        low, high = curve[below][name].double(), curve[above][name].double()
        values = low.lerp(high, weight)
        slope = (high.mean() - low.mean()).item() / rise if rise else 0.0
        # The influence of each edit on the figure, to first order: its own value, and the crossing.
        influence = values - slope * found[below].lerp(found[above], weight)
        error = influence.std().item() / math.sqrt(n) if n > 1 else 0.0
        results |= {name: values.mean().item(), f"{name}_standard_error": error}
    return results
