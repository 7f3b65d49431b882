"""Centre and spread of columns, right for an offset of 1e8 and for units of 1e±200."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

BLOCK_CELLS = 1 << 18


def centre_and_spread(cells: NDArray[np.float64]) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and population standard deviation of each column.

    x is divided by a power of two near max|x| (exact, and squares neither overflow nor vanish), the first
    row is taken off (so that an offset costs no digits), and the variance is the corrected two-pass one,
    [Σ(t−m)² − (Σ(t−m))²/N] / N (Chan, Golub and LeVeque 1983, https://doi.org/10.2307/2683386).

    Args:
        cells: (N, width), finite, N ≥ 1. Blocks of rows are copied, never all of them.

    Returns:
        The means and the standard deviations; 1.0 where a column is constant.

    Example:
        >>> import numpy as np
        >>> centre_and_spread(np.array([[1e8, 5.0], [1e8 + 2, 5.0]]))
        ((100000001.0, 5.0), (1.0, 1.0))

    """
    n_rows, width = cells.shape
    low, high = cells.min(axis=0), cells.max(axis=0)  # (width,)
    exponent = np.frexp(np.maximum(np.abs(low), np.abs(high)))[1]
    factor = np.ldexp(1.0, -np.clip(exponent, -1000, 1000))  # clipped: 2^1074 is not a float
    shift = cells[0] * factor
    step = max(1, BLOCK_CELLS // width)
    starts = range(0, n_rows, step)
    mean = sum((_scaled(cells, i, step, factor, shift).sum(axis=0) for i in starts), np.zeros(width)) / n_rows
    first, second = np.zeros(width), np.zeros(width)
    for start in starts:
        rest = _scaled(cells, start, step, factor, shift) - mean
        first += rest.sum(axis=0)
        second += np.einsum("nd,nd->d", rest, rest)
    spread = np.sqrt(np.maximum(second - first**2 / n_rows, 0.0) / n_rows) / factor
    centre = np.clip((shift + (mean + first / n_rows)) / factor, low, high)
    spread[(low == high) | ~(spread > 0)] = 1.0
    return tuple(centre.tolist()), tuple(spread.tolist())


def constant(cells: NDArray[np.float64] | NDArray[np.int64]) -> NDArray[np.bool_]:
    """Which columns hold one value only, (width,)."""
    same: NDArray[np.bool_] = cells.min(axis=0) == cells.max(axis=0)
    return same


def _scaled(
    cells: NDArray[np.float64], start: int, step: int, factor: NDArray[np.float64], shift: NDArray[np.float64]
) -> NDArray[np.float64]:
    return cells[start : start + step] * factor - shift  # (rows of the block, width)
