"""Centre and spread of columns, right for an offset of 1e8 and for units of 1e±200."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

BLOCK_CELLS = 1 << 16

Cells = NDArray[np.float64]


def centre_and_spread(
    cells: Cells, weights: Cells | None = None
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and population standard deviation of each column, over the cells it has.

    x is divided by a power of two near max|x| (exact, and squares neither overflow nor vanish), the first
    cell is taken off (so that an offset costs no digits), and the variance is the corrected two-pass one,
    [Σ w(t−m)² − (Σ w(t−m))²/W] / W with W = Σ w over the cells that are there (Chan, Golub and LeVeque 1983,
    https://doi.org/10.2307/2683386).

    Args:
        cells: (N, width), finite or NaN; each column with a cell in a row that counts. Blocks of rows are
            copied, and all rows only where some have weight 0.
        weights: how often each row counts, (N,), not all 0; None: once.

    Returns:
        The means and the standard deviations; 1.0 where a column is constant.

    Example:
        >>> import numpy as np
        >>> centre_and_spread(np.array([[1e8, 5.0], [1e8 + 2, np.nan]]))
        ((100000001.0, 5.0), (1.0, 1.0))

    """
    if weights is not None:
        counts = weights > 0
        if not counts.all():
            cells, weights = cells[counts], weights[counts]
        weights = np.asarray(np.ldexp(weights, -np.frexp(weights.max())[1]))  # exact, and no sum overflows
    low, high = _extremes(cells)  # (width,)
    exponent = np.frexp(np.maximum(np.abs(low), np.abs(high)))[1]
    factor = np.ldexp(1.0, -np.clip(exponent, -1000, 1000))  # clipped: 2^1074 is not a float
    shift = _first_cells(cells) * factor
    mass, mean = np.zeros(cells.shape[1]), np.zeros(cells.shape[1])
    for rest, counted in _blocks(cells, weights, factor, shift):
        mass += rest.shape[1] if counted is None else counted.sum(axis=1)
        mean += rest.sum(axis=1) if counted is None else np.einsum("dn,dn->d", counted, rest)
    mean /= mass
    first, second = np.zeros_like(mean), np.zeros_like(mean)
    for rest, counted in _blocks(cells, weights, factor, shift):
        rest -= mean[:, None]
        weighted = rest if counted is None else rest * counted
        first += weighted.sum(axis=1)
        second += np.einsum("dn,dn->d", weighted, rest)
    spread = np.sqrt(np.maximum(second - first**2 / mass, 0.0) / mass) / factor
    centre = np.clip((shift + (mean + first / mass)) / factor, low, high)
    spread[(low == high) | ~(spread > 0)] = 1.0
    return tuple(centre.tolist()), tuple(spread.tolist())


def constant(cells: NDArray[np.float64] | NDArray[np.int64]) -> NDArray[np.bool_]:
    """Which columns hold one value only, cells that are missing (NaN, or the code -1) left aside: (width,).

    Rows are looked at until every column is known to hold two values.
    """
    same = np.ones(cells.shape[1:], dtype=bool)
    low = high = None
    for block in _rows(cells):
        if cells.dtype.kind == "i":
            own = block.max(axis=0)
            parts = np.where(block < 0, np.iinfo(block.dtype).max, block).min(axis=0), own
        else:
            parts = np.fmin.reduce(block, axis=0), np.fmax.reduce(block, axis=0)
        low = parts[0] if low is None else np.fmin(low, parts[0])
        high = parts[1] if high is None else np.fmax(high, parts[1])
        same = ~(low < high)
        if not same.any():
            break
    return same


def _extremes(cells: Cells) -> tuple[Cells, Cells]:
    """The least and the largest cell of each column, (width,)."""
    low = high = np.full(cells.shape[1], np.nan)
    for block in _rows(cells):
        columns = np.ascontiguousarray(block.T)
        low = np.fmin(low, np.fmin.reduce(columns, axis=1))
        high = np.fmax(high, np.fmax.reduce(columns, axis=1))
    return low, high


def _first_cells(cells: Cells) -> Cells:
    """The first cell that each column has, (width,)."""
    first: Cells = cells[0].copy()
    for column in np.flatnonzero(np.isnan(first)):
        first[column] = cells[np.isnan(cells[:, column]).argmin(), column]
    return first


def _rows(cells: NDArray[Any]) -> Iterator[NDArray[Any]]:
    """A few rows at a time."""
    step = max(1, BLOCK_CELLS // max(1, cells[:1].size))
    return (cells[start : start + step] for start in range(0, len(cells), step))


def _blocks(
    cells: Cells, weights: Cells | None, factor: Cells, shift: Cells
) -> Iterator[tuple[Cells, Cells | None]]:
    """Blocks of scaled rows, 0 where a cell is missing, and what each cell counts; None: all of them once.

    Column by column, (width, rows of the block): loops over a few columns at a time are many times slower.
    """
    start = 0
    for block in _rows(cells):
        rest = np.multiply(block.T, factor[:, None], order="C")
        rest -= shift[:, None]
        lost = np.isnan(rest)
        counted = None
        if weights is not None:
            counted = np.broadcast_to(weights[start : start + len(block)], rest.shape)
        if lost.any():
            rest[lost] = 0.0
            counted = np.where(lost, 0.0, 1.0 if counted is None else counted)
        start += len(block)
        yield rest, counted
