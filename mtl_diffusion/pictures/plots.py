"""Line plots as PNGs."""

from collections.abc import Mapping, Sequence
from pathlib import Path

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
