"""Types of the configuration's numbers: the allowed range, and its description in messages."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated

LARGEST = 10**12  # of all whole numbers; more is a slip of the keyboard


@dataclass(frozen=True)
class Allowed:
    """Which numbers a field takes, and the words for that; infinities and NaN are never allowed."""

    test: Callable[[float], bool]
    words: str


AnyFloat = Annotated[float, Allowed(lambda v: True, "any number")]
PositiveInt = Annotated[int, Allowed(lambda v: 1 <= v <= LARGEST, "1 or more")]
NonNegativeInt = Annotated[int, Allowed(lambda v: 0 <= v <= LARGEST, "0 or more")]
PositiveFloat = Annotated[float, Allowed(lambda v: v > 0, "above 0")]
NonNegativeFloat = Annotated[float, Allowed(lambda v: v >= 0, "0 or more")]
Fraction = Annotated[float, Allowed(lambda v: 0 <= v <= 1, "0 to 1")]
FractionBelowOne = Annotated[float, Allowed(lambda v: 0 <= v < 1, "0 or more, and below 1")]
PositiveFraction = Annotated[float, Allowed(lambda v: 0 < v <= 1, "above 0, and at most 1")]
Proportion = Annotated[float, Allowed(lambda v: v == 0 or 1e-6 <= v <= 1e6, "0, or 1e-6 to 1e6")]
Pixels = Annotated[int, Allowed(lambda v: 8 <= v <= 4096, "8 to 4,096")]
Levels = Annotated[int, Allowed(lambda v: 2 <= v <= 10_000, "2 to 10,000, one for each end")]
# Upper limits that no useful value reaches, and that do not exhaust the memory.
Width = Annotated[int, Allowed(lambda v: 1 <= v <= 65_536, "1 to 65,536")]
Tokens = Annotated[int, Allowed(lambda v: 0 <= v <= 65_536, "0 to 65,536")]
Layers = Annotated[int, Allowed(lambda v: 1 <= v <= 100, "1 to 100")]
Threads = Annotated[int, Allowed(lambda v: 1 <= v <= 4096, "1 to 4,096")]
BatchSize = Annotated[int, Allowed(lambda v: 1 <= v <= 10**6, "1 to 1,000,000")]
Minutes = Annotated[float, Allowed(lambda v: 0 < v <= 1e7, "above 0, and at most 1e7")]
