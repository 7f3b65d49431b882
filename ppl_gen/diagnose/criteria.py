"""A criterion over a grid of declarations, as `select` compares them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, StrMethodFormatter

from ppl_gen.diagnose.plots import COLOURS, MARKERS


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
    path of sizes the candidates stand side by side. A candidate with warnings is an open mark; one without a
    number is left out, and its line breaks there.

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
    figure = Figure(figsize=(7.0, 4.6), dpi=120, layout="constrained")
    axes = figure.add_subplot()
    axes.spines[["top", "right"]].set_visible(False)
    axis = _axis(table, settings)
    places = _places(axes, table, settings, axis)
    lines = _lines(table, settings, axis)
    for number, (name, rows) in enumerate(lines.items()):
        colour, marker = COLOURS[number % len(COLOURS)], MARKERS[number % len(MARKERS)]
        own = rows if axis is None else sorted(rows, key=lambda row: places[row])
        _line(axes, table.iloc[own], places[own], column, name, (colour, marker, "" if axis is None else "-"))
    if chosen is not None:
        _ring(axes, places[chosen], float(table[column].iloc[chosen]))
    if level is not None:
        axes.axhline(level, color="0.5", linewidth=1, linestyle=":", label=f"{level:g}")
    if (table["warnings"].astype(bool) & table[column].notna()).any():
        axes.plot([], [], "o", color="0.3", markerfacecolor="white", label="with warnings")
    better = {"cv": ", larger is better", "blrt_p": " against one size less"}
    axes.set_ylabel(label + better.get(column, ", smaller is better"))
    axes.yaxis.set_major_formatter(StrMethodFormatter("{x:,g}"))
    axes.grid(color="0.9")
    axes.set_axisbelow(True)
    figure.legend(loc="outside right upper", frameon=False)
    return figure


def _axis(table: pd.DataFrame, settings: Sequence[str]) -> str | None:
    """The path of sizes with the most values."""
    sizes = [path for path in settings if all(isinstance(value, int | np.integer) for value in table[path])]
    return max(sizes, key=lambda path: table[path].nunique(), default=None)


def _places(axes: Axes, table: pd.DataFrame, settings: Sequence[str], axis: str | None) -> Any:
    """Where each candidate stands on the horizontal axis: (rows,)."""
    if axis is not None:
        axes.set_xlabel(axis)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        return table[axis].to_numpy(float)
    names = [", ".join(str(value) for value in row) for row in table[list(settings)].to_numpy()]
    axes.set_xticks(range(len(names)), names, rotation=20, ha="right")
    axes.set_xlabel(", ".join(settings))
    return np.arange(len(table), dtype=float)


def _lines(table: pd.DataFrame, settings: Sequence[str], axis: str | None) -> dict[str, list[int]]:
    """The rows of each line, by the values of the settings that are not on the axis."""
    others = [path for path in settings if path != axis] if axis is not None else []
    found: dict[str, list[int]] = {}
    for row, values in enumerate(table[others].itertuples(index=False, name=None)):
        name = ", ".join(f"{path}={value}" for path, value in zip(others, values, strict=True))
        found.setdefault(name, []).append(row)
    return found


def _line(
    axes: Axes, own: pd.DataFrame, places: Any, column: str, name: str, style: tuple[str, str, str]
) -> None:
    colour, marker, line = style
    values = own[column].to_numpy(float)
    axes.plot(places, values, line, marker=marker, color=colour, markersize=6, label=name or None)
    doubtful = own["warnings"].astype(bool).to_numpy()
    axes.plot(
        places[doubtful],
        values[doubtful],
        marker,
        color=colour,
        markerfacecolor="white",
        markersize=6,
        zorder=3,
    )
    if column == "cv":
        axes.errorbar(places, values, own["cv_se"].to_numpy(float), color=colour, fmt="none", capsize=3)


def _ring(axes: Axes, place: float, value: float) -> None:
    axes.plot(
        place,
        value,
        "o",
        label="best",
        color="none",
        markeredgecolor="0.15",
        markersize=15,
        markeredgewidth=1.4,
        zorder=4,
    )
