"""Rows that are equal, as one row of their summed weight: what EM sees of discrete data."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from ppl_gen.data.stream import Block, StreamedTable, joined, with_arrays
from ppl_gen.data.table import Table

LARGEST_KEY = 2**62
MOST_DISTINCT = 100_000  # rows of a streamed table that are held in the place of all
PASS_ROWS = 65_536  # looked at in one go


def collapsed(table: Table) -> tuple[Table, NDArray[np.int64]] | None:
    """The distinct rows of a table, in order of first appearance, each with the sum of its rows' weights.

    Every sum Σ_d w_d f(x_d) over the rows is the same over the distinct ones, so the likelihood and all
    statistics are. A missing cell is a value like others.

    Args:
        table: of any rows.

    Returns:
        A table whose `weights` are counts of rows (or sums of their weights), and for each row of the first
        one the row that stands for it, (N,). None where nothing is gained: a node or an Input is real, or more
        than half of the rows are distinct.

    Example:
        >>> from ppl_gen.data.reading import read_table
        >>> from ppl_gen.declare.nodes import Bernoulli
        >>> from ppl_gen.declare.spec import Spec
        >>> table = read_table({"x": [[0, 1], [1, 1], [0, 1], [0, 1]]}, Spec(model={"x": Bernoulli()}))
        >>> fewer, inverse = collapsed(table)
        >>> fewer.arrays["x"].tolist(), fewer.weights, inverse
        ([[0.0, 1.0], [1.0, 1.0]], array([3., 1.]), array([0, 1, 0, 0]))

    """
    if not table.arrays or not table.discrete.issuperset(table.arrays):
        return None
    block, inverse = _grouped(Block(table.arrays, table.weights))
    if 2 * block.n_rows > table.n_units:
        return None
    return with_arrays(table, block), inverse


def collapsed_stream(table: StreamedTable) -> Table | None:
    """The distinct rows of a streamed table in memory, as `collapsed` has them, found in one pass over its files.

    Returns:
        A table of at most `MOST_DISTINCT` rows; None where there are more, which the pass then stops at, or where
        a node or an Input is real.

    """
    if not table.discrete.issuperset(table.arrays):
        return None
    found: Block | None = None
    for block in table.blocks(PASS_ROWS):
        own, _ = _grouped(block)
        found = own if found is None else _grouped(joined([found, own]))[0]
        if found.n_rows > MOST_DISTINCT:
            return None
    return None if found is None else with_arrays(table, found)


def _grouped(block: Block) -> tuple[Block, NDArray[np.int64]]:
    """The distinct rows, each with the sum of its rows' weights, and for each row which of them it is."""
    key, size = np.zeros(block.n_rows, dtype=np.int64), 1
    for array in block.arrays.values():
        for column in array.reshape(len(array), -1).T:
            code, count = _coded(column)
            if size > LARGEST_KEY // count:
                key, size = _renumbered(key)
            key, size = key * count + code, size * count  # mixed radix: equal keys are equal rows
    inverse, n_distinct = _renumbered(key)
    first = np.empty(n_distinct, dtype=np.int64)
    first[inverse[::-1]] = np.arange(block.n_rows)[::-1]  # of several writes to one place the last one stays
    weights = np.bincount(inverse, weights=block.weights, minlength=n_distinct).astype(np.float64)
    return Block({name: array[first] for name, array in block.arrays.items()}, weights), inverse


def _coded(column: NDArray[Any]) -> tuple[NDArray[np.int64], int]:
    """A column as integers from 0, and one above the largest; a missing cell is the largest, or the least."""
    low, high = np.fmin.reduce(column), np.fmax.reduce(column)
    if not high - low < 2**31:  # large counts, or no value at all
        return _renumbered(column)
    span = int(high - low) + 1
    if column.dtype.kind == "f":
        column = np.where(np.isnan(column), span, column - low)
        return column.astype(np.int64), span + 1
    return column - low, span


def _renumbered(column: NDArray[Any]) -> tuple[NDArray[np.int64], int]:
    """Each row's place among the distinct values in order of appearance, and how many there are."""
    place, values = pd.factorize(column, use_na_sentinel=False)
    return place.astype(np.int64, copy=False), len(values)
