"""Categories: the levels a column shows, and cells turned into codes 0..k−1 (rule 17)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from ppl_gen.data.checks import at, listed, missing, where
from ppl_gen.data.schema import Level
from ppl_gen.errors import DataError


@dataclass(frozen=True)
class Distinct:
    """One column as its sorted distinct values and, for each row, which of them it is."""

    node: str
    column: str
    values: tuple[Level, ...]
    index: NDArray[np.int64]

    @property
    def whole(self) -> tuple[int, ...] | None:
        """The values as integers ≥ 0, if that is what they are; booleans are not."""
        if all(type(value) is int and value >= 0 for value in self.values):
            return self.values  # type: ignore[return-value]
        return None

    @property
    def mixed(self) -> bool:
        """Whether text stands beside numbers."""
        return len({isinstance(value, str) for value in self.values}) > 1


def distinct(node: str, column: str, cells: NDArray[Any]) -> Distinct:
    """The sorted distinct values of one column, numbers before text.

    Args:
        node: whose column it is, for messages.
        column: its name.
        cells: (N,), of any type that holds text, booleans or numbers. Whole floats count as integers.

    Raises:
        DataError: a cell is missing, blank, infinite, or neither text nor a number.

    Example:
        >>> distinct("c", "c", np.array(["b", "a", "b"])).values
        ('a', 'b')

    """
    if cells.dtype.kind not in "OUSbiuf":
        raise DataError(f"{where(column, node)} has type {cells.dtype}; categories are text or numbers")
    if cells.dtype.kind == "S":
        cells = cells.astype(str)
    try:
        index, found = pd.factorize(cells.astype(object) if cells.dtype.kind == "U" else cells)
    except TypeError as error:
        raise DataError(f"{where(column, node)} holds lists; categories are text or numbers") from error
    values = [_level(node, column, value) for value in found.tolist()]
    blank = [i for i, value in enumerate(values) if isinstance(value, str) and not value.strip()]
    holes = np.isin(index, [-1, *blank])
    if holes.any():
        raise missing(column, node, count=int(holes.sum()), row=int(holes.argmax()))
    order = sorted(range(len(values)), key=lambda i: (isinstance(values[i], str), values[i]))
    place = np.empty(len(values), dtype=np.int64)
    place[order] = np.arange(len(values))
    return Distinct(node, column, tuple(values[i] for i in order), place[index])


def learn_levels(columns: list[Distinct], k: int | None) -> tuple[list[tuple[Level, ...] | None], int]:
    """The levels of each column of one node (`None`: cells are codes already) and the number of categories.

    With k declared, a column whose values are all integers in 0..k−1 stays as it is. Without, one that shows
    exactly 0..max does; so does, beside such a column, one that shows only some of the same integers.

    Raises:
        DataError: a column has more levels than the declared k.

    """
    if k is None:
        runs = [len(own.values) for own in columns if own.whole == tuple(range(len(own.values)))]
        bound = max(runs, default=0)
    else:
        bound = k
    levels: list[tuple[Level, ...] | None] = []
    most = bound
    for own in columns:
        whole = own.whole
        if whole is not None and whole[-1] < bound:
            levels.append(None)
            continue
        if k is not None and len(own.values) > k:
            raise DataError(
                f"{where(own.column, own.node)} has {len(own.values)} levels and {own.node!r} is declared "
                f"with {k} categories: {listed(map(repr, own.values))}"
            )
        levels.append(own.values)
        most = max(most, len(own.values))
    return levels, most


def encode(own: Distinct, levels: tuple[Level, ...] | None, k: int) -> NDArray[np.int64]:
    """The codes of one column under levels that are already known, (N,).

    Raises:
        DataError: a value is none of the levels; it is named with its row and the levels there are.

    """
    known: dict[Any, int] = (
        {i: i for i in range(k)} if levels is None else {v: i for i, v in enumerate(levels)}
    )
    table = np.array([known.get(value, -1) for value in own.values], dtype=np.int64)
    codes: NDArray[np.int64] = table[own.index]
    if (table < 0).any():
        unseen = codes < 0
        row, count = int(unseen.argmax()), int(unseen.sum())
        choices = f"the integers 0 to {k - 1}" if levels is None else listed(map(repr, levels))
        raise DataError(
            f"{where(own.column, own.node)} holds {own.values[own.index[row]]!r} {at(row)}, a level never "
            f"seen ({count} such cell{'s' * (count != 1)}); the levels are {choices}"
        )
    return codes


def _level(node: str, column: str, value: Any) -> Level:
    """A cell as a plain Python value, so that levels are stored as JSON."""
    value = value.item() if isinstance(value, np.generic) else value
    if isinstance(value, float):
        if np.isinf(value):
            raise DataError(f"{where(column, node)} holds an infinite value, which is no category")
        return int(value) if value.is_integer() else value
    if isinstance(value, str | int):
        return value
    raise DataError(
        f"{where(column, node)} holds {value!r}, a {type(value).__name__}; categories are text or numbers"
    )
