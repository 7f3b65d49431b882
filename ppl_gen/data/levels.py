"""Categories: the levels a column shows, and cells turned into codes 0..k−1 (rule 17)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from ppl_gen.data.checks import at, listed, where
from ppl_gen.data.schema import Level, are_codes
from ppl_gen.errors import DataError


@dataclass(frozen=True)
class Distinct:
    """One column as its sorted distinct values and, for each row, which of them it is; -1 where missing."""

    node: str
    column: str
    values: tuple[Level, ...]
    index: NDArray[np.int64]

    @property
    def whole(self) -> tuple[int, ...] | None:
        """The values as integers ≥ 0, if that is what they are; booleans are not."""
        if self.values and all(type(value) is int and value >= 0 for value in self.values):
            return self.values  # type: ignore[return-value]
        return None

    @property
    def mixed(self) -> bool:
        """Whether text stands beside numbers."""
        return len({isinstance(value, str) for value in self.values}) > 1

    @property
    def minus_one(self) -> bool:
        """Whether the values are -1, 0, 1, …: labels as other libraries write them, -1 for none."""
        return -1 in self.values and self.values == tuple(range(-1, len(self.values) - 1))


def distinct(node: str, column: str, cells: NDArray[Any]) -> Distinct:
    """The sorted distinct values of one column, numbers before text.

    Args:
        node: whose column it is, for messages.
        column: its name.
        cells: (N,), of any type that holds text, booleans or numbers. Whole floats count as integers; None,
            NaN and blank text are missing.

    Raises:
        DataError: a cell is infinite, or neither text nor a number.

    Example:
        >>> column = distinct("c", "c", np.array(["b", "a", None, "b"], dtype=object))
        >>> column.values, column.index
        (('a', 'b'), array([ 1,  0, -1,  1]))

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
    named = [i for i, value in enumerate(values) if not isinstance(value, str) or value.strip()]
    order = sorted(named, key=lambda i: (isinstance(values[i], str), values[i]))
    place = np.full(
        len(values) + 1, -1, dtype=np.int64
    )  # its last entry is for the index -1 of a missing cell
    place[order] = np.arange(len(order))
    return Distinct(node, column, tuple(values[i] for i in order), place[index])


def oddities(own: Distinct, *, label: bool) -> list[str]:
    """Warnings about what a column shows; `label`: other nodes depend on it."""
    notes = [f"{where(own.column, own.node)} mixes numbers and text"] * own.mixed
    if label and own.minus_one:
        notes.append(
            f"{where(own.column, own.node)} holds -1, a level as others are; a cell without a label is blank or NaN"
        )
    return notes


def learn_levels(columns: list[Distinct], k: int | None) -> tuple[list[tuple[Level, ...] | None], int]:
    """The levels of each column of one node (`None`: cells are codes already) and the number of categories.

    With k declared, the cells of a column whose values are all integers in 0..k−1 stay as they are. Without,
    those of one that shows exactly 0..max do; so do, beside such a column, those of one that shows only some
    of the same integers. Of several columns, one that shows no integer above m−1 < k−1 has the levels 0..m−1:
    it has as many as it would have written in words.

    Raises:
        DataError: a column has more levels than the declared k.

    """
    if k is None:
        runs = [len(own.values) for own in columns if own.whole == tuple(range(len(own.values)))]
        bound = max(runs, default=0)
    else:
        bound = k
    levels: list[tuple[Level, ...]] = []
    for own in columns:
        whole = own.whole
        if whole is not None and whole[-1] < bound:
            levels.append(tuple(range(whole[-1] + 1)))
            continue
        if k is not None and len(own.values) > k:
            raise DataError(
                f"{where(own.column, own.node)} has {len(own.values)} levels and {own.node!r} is declared "
                f"with {k} categories: {listed(map(repr, own.values))}"
                f"{'; a cell without a label is blank or NaN, not -1' if -1 in own.values else ''}"
            )
        levels.append(own.values)
    most = max([bound, *map(len, levels)])
    single = len(columns) == 1  # a declared k is then said of this very column
    return [None if are_codes(own) and (single or len(own) == most) else own for own in levels], most


def encode(own: Distinct, levels: tuple[Level, ...] | None, k: int) -> NDArray[np.int64]:
    """The codes of one column under levels that are already known, (N,); -1 where missing.

    Raises:
        DataError: a value is none of the levels; it is named with its row and the levels there are.

    """
    known: dict[Any, int] = (
        {i: i for i in range(k)} if levels is None else {v: i for i, v in enumerate(levels)}
    )
    # Its last entry is for the index -1 of a missing cell.
    table = np.array([*(known.get(value, -2) for value in own.values), -1], dtype=np.int64)
    codes: NDArray[np.int64] = table[own.index]
    if (table == -2).any():
        unseen = codes == -2
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
