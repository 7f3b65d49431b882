"""A criterion over a grid of declarations, as `select` compares them."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, StrMethodFormatter
from numpy.typing import NDArray

from ppl_gen.diagnose.plots import COLOURS, MARKERS

Array = NDArray[Any]

BETTER = {"cv": ", larger is better", "blrt_p": " against the size before"}
NAME_WIDTH = 44  # letters of a candidate's name on one line


def plot_criterion(
    table: pd.DataFrame,
    settings: Sequence[str],
    column: str,
    label: str,
    chosen: int | None,
    level: float | None = None,
) -> Figure:
    """One column of a table of candidates against their settings, the chosen one ringed.

    The path with the most sizes is the horizontal axis, and each combination of the others a line. Without a
    path of sizes the candidates stand one below the other. A candidate with warnings is an open mark; one
    without a number is left out, and its line breaks there.

    Args:
        table: a row for each candidate.
        settings: the columns that tell them apart.
        column: what is drawn; with `cv`, bars of one standard error.
        label: what it is called.
        chosen: the row to ring.
        level: where to draw a line across.

    Example:
        >>> table = pd.DataFrame({"z.k": [1, 2], "bic": [9.0, 5.0], "warnings": ["", ""]})
        >>> plot_criterion(table, ["z.k"], "bic", "BIC", 1).axes[0].get_xlabel()
        'z.k'

    """
    axis = _axis(table, settings)
    height = 4.6 if axis is not None else 1.6 + 0.45 * len(table)
    figure = Figure(figsize=(7.0, height), dpi=120, layout="constrained")
    axes = figure.add_subplot()
    axes.spines[["top", "right"]].set_visible(False)
    label += BETTER.get(column, ", smaller is better")
    if axis is None:
        points = _listed(axes, table, settings, column, label)
    else:
        points = _against(axes, table, settings, axis, column, label)
    doubtful = table["warnings"].astype(bool) & table[column].notna()
    if doubtful.any():
        axes.plot([], [], "o", color="0.3", markerfacecolor="white", label="with warnings")
    if level is not None and axis is not None:
        axes.axhline(level, color="0.5", linewidth=1, linestyle=":", label=f"{level:g}")
        axes.set_ylim(bottom=0)
    if chosen is not None and np.isfinite(points[chosen]).all():
        _ring(axes, points[chosen])
    elif chosen is not None and axis is not None:  # the smallest size, which nothing is tested against
        axes.axvline(points[chosen, 0], color="0.15", linewidth=1.4, label="best")
    axes.grid(color="0.9")
    axes.set_axisbelow(True)
    if axes.get_legend_handles_labels()[0]:
        figure.legend(loc="outside right upper", frameon=False)
    return figure


def _axis(table: pd.DataFrame, settings: Sequence[str]) -> str | None:
    """The path of sizes with the most values."""
    sizes = [path for path in settings if all(isinstance(value, int | np.integer) for value in table[path])]
    return max(sizes, key=lambda path: table[path].nunique(), default=None)


def _against(
    axes: Axes, table: pd.DataFrame, settings: Sequence[str], axis: str, column: str, label: str
) -> Array:
    """A line for each combination of the other settings; returns where each row is: (rows, 2)."""
    axes.set(xlabel=axis, ylabel=label)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.yaxis.set_major_formatter(StrMethodFormatter("{x:,g}"))
    points = table[[axis, column]].to_numpy(float)
    lines = {name: rows for name, rows in _lines(table, settings, axis).items() if _any(points, rows)}
    for number, (name, rows) in enumerate(lines.items()):
        colour, marker = COLOURS[number % len(COLOURS)], MARKERS[number % len(MARKERS)]
        if column == "cv":  # apart, so that no bar hides another
            points[rows, 0] += 0.05 * (number - (len(lines) - 1) / 2)
        order = sorted(rows, key=lambda row: points[row, 0])
        axes.plot(*points[order].T, marker=marker, color=colour, label=name or None)
        _marks(axes, points[order], table.iloc[order], colour, marker)
        if column == "cv":
            error = table["cv_se"].to_numpy(float)[order]
            x, y = points[order].T
            axes.errorbar(x, y, yerr=error, color=colour, fmt="none", capsize=3)
    return points


def _listed(axes: Axes, table: pd.DataFrame, settings: Sequence[str], column: str, label: str) -> Array:
    """The candidates one below the other; returns where each row is: (rows, 2)."""
    names = [", ".join(map(str, row)) for row in table[list(settings)].to_numpy()]
    axes.set_yticks(range(len(names)), [textwrap.fill(name, NAME_WIDTH) for name in names], fontsize="small")
    axes.set(xlabel=label, ylim=(len(names) - 0.5, -0.5))
    axes.xaxis.set_major_locator(MaxNLocator(5))
    axes.xaxis.set_major_formatter(StrMethodFormatter("{x:,g}"))
    points = np.column_stack([table[column].to_numpy(float), np.arange(len(table), dtype=float)])
    _marks(axes, points, table, COLOURS[0], MARKERS[0])
    if column == "cv":
        error = table["cv_se"].to_numpy(float)
        axes.errorbar(points[:, 0], points[:, 1], xerr=error, color=COLOURS[0], fmt="none", capsize=3)
    return points


def _marks(axes: Axes, points: Array, table: pd.DataFrame, colour: str, marker: str) -> None:
    doubtful = table["warnings"].astype(bool).to_numpy()
    for some, face in ((~doubtful, colour), (doubtful, "white")):
        axes.plot(*points[some].T, marker, color=colour, markerfacecolor=face, markersize=6, zorder=3)


def _lines(table: pd.DataFrame, settings: Sequence[str], axis: str) -> dict[str, list[int]]:
    """The rows of each line, by the values of the settings that are not on the axis."""
    others = [path for path in settings if path != axis]
    found: dict[str, list[int]] = {}
    for row in range(len(table)):
        values = [f"{path}={table[path].iloc[row]}" for path in others]
        found.setdefault("\n".join(values), []).append(row)
    return found


def _any(points: Array, rows: Sequence[int]) -> bool:
    return bool(np.isfinite(points[rows]).all(1).any())


def _ring(axes: Axes, point: Array) -> None:
    axes.plot(
        *point,
        "o",
        label="best",
        color="none",
        markeredgecolor="0.15",
        markersize=15,
        markeredgewidth=1.4,
        zorder=4,
    )
