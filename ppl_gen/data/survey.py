"""What a pass over chunks of rows adds up: moments, extremes, levels, and a sample spread over all rows."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ppl_gen.data.checks import where
from ppl_gen.data.holes import lacking
from ppl_gen.data.levels import Distinct, encode
from ppl_gen.data.moments import centre_and_spread
from ppl_gen.data.schema import Level
from ppl_gen.errors import DataError

MOST_LEVELS = 100_000  # of one column: beyond, it is no category

Array = NDArray[Any]
Cells = NDArray[np.float64]


class Moments:
    """Centre, spread and extremes of columns, chunk by chunk; missing cells (NaN) are left out.

    Two sets of n₁ and n₂ rows, δ apart, have the variance n₁s₁²/n + n₂s₂²/n + δ² n₁n₂/n² together (Chan, Golub
    and LeVeque 1983, https://doi.org/10.2307/2683386); as a sum of squares it is taken with `hypot`, so that
    units of 1e±200 neither overflow nor vanish.

    Attributes:
        mass: the seen cells of each column, each counted by its row's weight, (width,).

    Example:
        >>> moments = Moments(1)
        >>> moments.add(np.array([[1.0], [3.0]]))
        >>> moments.add(np.array([[8.0], [np.nan]]))
        >>> moments.settled()
        ((4.0,), (2.943920288775949,))

    """

    def __init__(self, width: int) -> None:
        self.mass = np.zeros(width)
        self.centre, self.spread = np.zeros(width), np.zeros(width)
        self.low, self.high = np.full(width, np.inf), np.full(width, -np.inf)

    def add(self, cells: Cells, weights: Cells | None = None) -> None:
        """Take in the rows of one chunk, (N, width); `weights` (N,) say how often each counts, by default once."""
        lost = lacking(cells)
        if weights is not None and not weights.all():
            counts = weights > 0
            cells, weights = cells[counts], weights[counts]
            lost = None if lost is None else lost[counts]
        mass = np.full(cells.shape[1], float(len(cells) if weights is None else weights.sum()))
        if lost is not None:
            mass -= lost.sum(axis=0) if weights is None else weights @ lost
            mass[lost.all(axis=0)] = 0.0  # not what rounding leaves
        which = np.flatnonzero(mass > 0)
        if which.size:
            self._combine(which, cells if which.size == len(mass) else cells[:, which], weights, mass[which])

    def settled(self) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """Means and population standard deviations; 1.0 where a column is constant."""
        spread = np.where(self.constant | ~(self.spread > 0), 1.0, self.spread)
        return tuple(self.centre.tolist()), tuple(spread.tolist())

    @property
    def constant(self) -> NDArray[np.bool_]:
        """Which columns hold one value only, (width,)."""
        same: NDArray[np.bool_] = ~(self.low < self.high)
        return same

    def _combine(self, which: NDArray[np.intp], cells: Cells, weights: Cells | None, mass: Cells) -> None:
        low, high = np.fmin.reduce(cells, axis=0), np.fmax.reduce(cells, axis=0)
        centre, spread = map(np.asarray, centre_and_spread(cells, weights))
        spread = np.where(low == high, 0.0, spread)
        before = self.mass[which]
        share = mass / (before + mass)  # of the new rows
        apart = np.where(before > 0, centre - self.centre[which], 0.0)
        within = np.hypot(self.spread[which] * np.sqrt(1 - share), spread * np.sqrt(share))
        self.spread[which] = np.hypot(within, apart * np.sqrt(share * (1 - share)))
        self.centre[which] = np.where(before > 0, self.centre[which] + apart * share, centre)
        self.low[which] = np.minimum(self.low[which], low)
        self.high[which] = np.maximum(self.high[which], high)
        self.mass[which] = before + mass


class Levels:
    """The distinct values of one column, chunk by chunk; meanwhile cells are numbered as they first appear."""

    def __init__(self, node: str, column: str) -> None:
        self.node, self.column = node, column
        self.numbers: dict[Level, int] = {}

    def add(self, found: Distinct) -> NDArray[np.int64]:
        """Take in one chunk; the number of each cell's value, (N,), −1 where the cell is missing."""
        table = np.array([self.numbers.setdefault(v, len(self.numbers)) for v in found.values] + [-1])
        if len(self.numbers) > MOST_LEVELS:
            raise DataError(
                f"{where(self.column, self.node)} has more than {MOST_LEVELS} levels; is it a column of numbers?"
            )
        numbers: NDArray[np.int64] = table[found.index]
        return numbers

    def settled(self) -> Distinct:
        """The values seen, sorted, numbers before text; one row of each."""
        values = sorted(self.numbers, key=lambda value: (isinstance(value, str), value))
        return Distinct(self.node, self.column, tuple(values), np.arange(len(values)))

    def recoded(self, numbers: NDArray[np.int64], levels: tuple[Level, ...] | None, k: int) -> Array:
        """Cells by the codes of the levels that were settled, in place of the numbers `add` gave."""
        settled = self.settled()
        table = np.full(len(self.numbers) + 1, -1)
        codes = encode(settled, levels, k)
        for value, code in zip(settled.values, codes, strict=True):
            table[self.numbers[value]] = code
        recoded: Array = table[numbers]
        return recoded


class Sample:
    """Rows drawn without replacement from a stream whose length is not known: those with the smallest keys.

    Args:
        rows: how many are kept at most.
        seed: of the keys.

    """

    def __init__(self, rows: int, seed: int) -> None:
        self.rows, self.random = rows, np.random.default_rng(seed)
        self._keys = np.empty(0)
        self._places = np.empty(0, dtype=np.int64)
        self._kept: dict[str, Array] = {}
        self._seen = 0

    def add(self, arrays: Mapping[str, Array]) -> None:
        """Take in one chunk of arrays with equally many rows."""
        n = len(next(iter(arrays.values())))
        keys = self.random.random(n)
        bound = self._keys.max() if len(self._keys) == self.rows else np.inf
        new = np.flatnonzero(keys < bound)
        all_keys = np.concatenate([self._keys, keys[new]])
        best = np.argsort(all_keys, kind="stable")[: self.rows]
        self._kept = {
            name: np.concatenate([self._kept.get(name, array[:0]), array[new]])[best]
            for name, array in arrays.items()
        }
        self._places = np.concatenate([self._places, new + self._seen])[best]
        self._keys = all_keys[best]
        self._seen += n

    def settled(self) -> dict[str, Array]:
        """The rows drawn, in the order of the stream."""
        order = np.argsort(self._places)
        return {name: array[order] for name, array in self._kept.items()}
