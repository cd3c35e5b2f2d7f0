"""Plots of comparisons: heat maps about zero, and curves with their spread."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure


def diverging(
    panels: Mapping[str, tuple[np.ndarray, np.ndarray]],
    rows: Sequence[str],
    columns: Sequence[str],
    label: str,
    path: Path,
    written: str = "{:+.2f}",
    limit: float | None = None,
) -> None:
    """Heat maps beside each other: red above zero, blue below, white at zero, values in the cells.

    Args:
        panels: title -> means and standard deviations, (rows, columns) both; a deviation that is
            NaN is not written.
        limit: the value of the strongest colour. None: the largest there is.
    """
    limit = limit or max(np.abs(mean).max() for mean, _ in panels.values()) or 1.0
    size = (1.5 + 0.95 * len(columns) * len(panels), 1.7 + 0.55 * len(rows))
    figure = Figure(figsize=size, layout="constrained")  # no pyplot: no global state
    for axes, (title, (mean, std)) in zip(
        figure.subplots(1, len(panels), squeeze=False)[0], panels.items(), strict=True
    ):
        image = axes.imshow(mean, cmap="RdBu_r", vmin=-limit, vmax=limit, aspect="auto")
        axes.set_title(title, fontsize=10)
        axes.set_xticks(range(len(columns)), columns, rotation=45, ha="right", fontsize=8)
        axes.set_yticks(range(len(rows)), rows)
        axes.set_xlabel("noise level sigma")
        for (i, k), value in np.ndenumerate(mean):
            text = written.format(value)
            if not np.isnan(std[i, k]):
                text += "\n±" + written.format(std[i, k]).lstrip("+")
            ink = "white" if abs(value) > 0.6 * limit else "black"
            axes.text(k, i, text, ha="center", va="center", fontsize=7, color=ink)
    figure.colorbar(image, ax=figure.axes, label=label)
    figure.savefig(path, dpi=120)


def spread_curves(
    panels: Mapping[str, Mapping[str, tuple[Sequence[float], np.ndarray]]],
    x: str,
    y: str,
    path: Path,
    levels: Mapping[str, tuple[str, float]] | None = None,
) -> None:
    """Panels of curves: the mean over the seeds as a line, lowest to highest as a band.

    Args:
        panels: title -> curve -> abscissae (N,) and values (seeds, N).
        levels: title -> (name, value) of a dashed horizontal.
    """
    figure = Figure(figsize=(4.6 * len(panels), 3.8), layout="constrained")
    names = dict.fromkeys(name for curves in panels.values() for name in curves)
    color = {name: f"C{i}" for i, name in enumerate(names)}  # the same in every panel
    for axes, (title, curves) in zip(
        figure.subplots(1, len(panels), squeeze=False)[0], panels.items(), strict=True
    ):
        for name, (places, values) in curves.items():
            low, mean, high = values.min(0), values.mean(0), values.max(0)
            axes.plot(places, mean, marker="o", markersize=3, color=color[name], label=name)
            axes.fill_between(places, low, high, color=color[name], alpha=0.2)
        if levels and title in levels:
            axes.axhline(levels[title][1], color="black", linestyle="--", label=levels[title][0])
        axes.set(title=title, xlabel=x, ylabel=y)
        axes.grid(alpha=0.3)
        axes.legend(fontsize=8)
    figure.savefig(path, dpi=120)
