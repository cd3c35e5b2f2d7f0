"""Line plots and annotated matrices, each a PNG."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

Points = Sequence[tuple[float, float]]


def curves(
    lines: Mapping[str, Points],
    x: str,
    y: str,
    path: Path,
    levels: Mapping[str, float] | None = None,
) -> None:
    """A line through the points of each name; `levels` are dashed horizontals."""
    figure = Figure(figsize=(6.4, 4.4), layout="constrained")  # no pyplot: no global state
    axes = figure.subplots()
    for name, points in lines.items():
        axes.plot(*zip(*points, strict=True), marker="o", label=name)
    for i, (name, level) in enumerate((levels or {}).items()):
        axes.axhline(level, linestyle="--", linewidth=1, color=f"C{i}", label=name)
    axes.set_xlabel(x)
    axes.set_ylabel(y)
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)
    figure.savefig(path, dpi=110)


def signed_matrix(
    values: np.ndarray,
    errors: np.ndarray,
    rows: Sequence[str],
    columns: Sequence[str],
    label: str,
    path: Path,
) -> None:
    """A table of numbers as colours: red above zero, white at zero, blue below.

    Args:
        values: (rows, columns).
        errors: (rows, columns), each written under its value, unless it is NaN.
        label: of the colour bar: the quantity and its unit.
    """
    limit = np.abs(values).max() or 1.0
    size = (1.6 + 0.95 * len(columns), 1.6 + 0.5 * len(rows))  # inches
    figure = Figure(figsize=size, layout="constrained")
    axes = figure.subplots()
    image = axes.imshow(values, aspect="auto", vmin=-limit, vmax=limit, cmap="RdBu_r")
    axes.set_xticks(range(len(columns)), columns, rotation=45, ha="right")
    axes.set_yticks(range(len(rows)), rows)
    for (i, j), value in np.ndenumerate(values):
        text = f"{value:+.1f}" + ("" if np.isnan(errors[i, j]) else f"\n±{errors[i, j]:.1f}")
        ink = "white" if abs(value) > 0.6 * limit else "black"
        axes.text(j, i, text, ha="center", va="center", color=ink, fontsize=7)
    figure.colorbar(image, ax=axes, label=label)
    figure.savefig(path, dpi=110)
