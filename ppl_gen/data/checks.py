"""The checks every array passes before anything is computed; each names the column, the row and the count."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ppl_gen.data.schema import Schema
from ppl_gen.declare.spec import Roles, Spec
from ppl_gen.errors import DataError

BLOCK_CELLS = 1 << 18  # cells looked at in one go, so that a check's temporaries stay in cache

Cells = NDArray[np.float64]


def where(column: str, node: str) -> str:
    """How messages name a place: the column, and the node if that is another word."""
    return f"column {column!r}" + ("" if column == node or column.startswith(f"{node}[") else f" of {node!r}")


_ROWS_BEFORE: ContextVar[int] = ContextVar("rows_before", default=0)


@contextmanager
def counting_from(row: int) -> Iterator[None]:
    """Within it the rows looked at are some of a longer table, the first of them its row number `row`.

    Example:
        >>> with counting_from(1000):
        ...     at(2)
        'in row 1002 (counting from 0)'

    """
    token = _ROWS_BEFORE.set(row)
    try:
        yield
    finally:
        _ROWS_BEFORE.reset(token)


def at(row: int) -> str:
    """How messages name a row."""
    return f"in row {_ROWS_BEFORE.get() + row} (counting from 0)"


def listed(names: Iterable[Any], most: int = 12) -> str:
    """Names for a message, the first dozen of them.

    Example:
        >>> listed(["a", "b", "c"], most=2)
        'a, b, ... (3 in all)'

    """
    shown = [str(name) for name in names]
    return ", ".join(shown[:most]) + (f", ... ({len(shown)} in all)" if len(shown) > most else "")


def equal_lengths(lengths: Mapping[str, int]) -> int:
    """The number of rows all entries share.

    Raises:
        DataError: two entries differ, or there are no rows.

    """
    (first, n_rows), *others = lengths.items()
    for name, other in others:
        if other != n_rows:
            raise DataError(
                f"{first!r} has {n_rows} rows and {name!r} has {other}; a row is one unit, all need as many"
            )
    if n_rows == 0:
        raise DataError(f"the data are empty: {first!r} has 0 rows")
    return n_rows


def finite(node: str, columns: Sequence[str], cells: Cells) -> None:
    """Refuse infinity; `cells` is (N, width), NaN where missing."""
    # fmin and fmax skip NaN, so sound data are read twice and nothing is allocated.
    if not (np.isinf(np.fmin.reduce(cells, axis=None)) or np.isinf(np.fmax.reduce(cells, axis=None))):
        return
    row, column, count = _first(cells, np.isinf) or (0, 0, 0)
    raise DataError(
        f"{where(columns[column], node)} has {_times(count, 'infinite value')}, the first {at(row)}: "
        "drop or correct them"
    )


def missing(column: str, node: str, *, count: int, row: int, why: str) -> DataError:
    """The error for holes in the data where there may be none; `why` not, and what to do."""
    return DataError(
        f"{where(column, node)} has {_times(count, 'missing value')} (NaN or blank), the first {at(row)}; {why}"
    )


def binary(node: str, columns: Sequence[str], cells: Cells) -> None:
    """Refuse anything but 0, 1 and missing."""
    _refuse(node, columns, cells, lambda x: (x != 0) & (x != 1) & ~np.isnan(x), "Bernoulli takes 0 and 1")


def counts(node: str, columns: Sequence[str], cells: Cells) -> None:
    """Refuse negative and fractional counts."""
    _refuse(node, columns, cells, lambda x: x < 0, "counts are 0, 1, 2, ...")
    _refuse(node, columns, cells, lambda x: (np.floor(x) != x) & ~np.isnan(x), "counts are whole numbers")


def positive(node: str, columns: Sequence[str], cells: Cells) -> None:
    """Refuse zero and what lies below."""
    _refuse(node, columns, cells, lambda x: x <= 0, "the family takes values above 0")


def within_totals(
    spec: Spec, columns: Mapping[str, Sequence[str]], arrays: Mapping[str, NDArray[Any]]
) -> None:
    """Refuse more successes than trials, where a node counts them out of a total: written, or beside it.

    Args:
        spec: the declaration.
        columns: by node, the names of its columns.
        arrays: by node, (N, width).

    """
    for name, node in spec.nodes.items():
        term = node.terms().get("total_count") if node.constraints.get("total_count") == "count" else None
        if term is None or name not in arrays:
            continue
        beside = term.parents()
        if beside and beside[0] not in arrays:
            continue
        total = np.asarray(arrays[beside[0]] if beside else getattr(term, "value", 0), dtype=np.float64)
        if beside:
            counts(beside[0], columns[beside[0]], total)
        total = total if total.ndim > 1 else total.reshape(1, -1)  # an image-shaped list, cell by cell
        hit = _first(arrays[name] - total, lambda x: x > 0)
        if hit is not None:
            row, column, count = hit
            most = np.broadcast_to(total, arrays[name].shape)[row, column]
            raise DataError(
                f"{where(columns[name][column], name)} holds {arrays[name][row, column]:g} {at(row)}, where "
                f"total_count{f' ({beside[0]})' if beside else ''} is {most:g}; "
                f"{_times(count, 'such cell')} in this column"
            )


def enough_rows(roles: Roles, k: Mapping[str, int], n_rows: int, total: float = 0.0) -> None:
    """Refuse to fit more classes than there are rows; a row of weight w stands for w."""
    for name in roles.latent:
        if k.get(name, 0) > max(n_rows, total):
            rows = _times(n_rows, "row")
            raise DataError(
                f"{name!r} has {k[name]} classes and the data {rows}: there must be no more classes than rows"
            )


def constant_columns(
    spec: Spec, schema: Schema, same: Mapping[str, NDArray[np.bool_]], n_rows: int, *, whole: bool = True
) -> list[str]:
    """Warnings for columns of observed leaves that never vary, and for rows that are all equal.

    Args:
        spec: the declaration.
        schema: with its roles and columns settled.
        n_rows: their number.
        same: by node, which columns hold one value only where they hold any, (width,).
        whole: whether no cell is missing.

    """
    notes = []
    for name in schema.roles.observed:
        if name not in spec.leaves or spec.nodes[name].support not in ("real", "positive", "category"):
            continue
        still = [column for column, flat in zip(schema.columns[name], same[name], strict=True) if flat]
        if still:
            noun = "column" if len(still) == 1 else "columns"
            notes.append(
                f"{noun} {listed(map(repr, still))} of {name!r}: the same value in every row; "
                "nothing is learned from it, so leave it out unless it is there on purpose"
            )
    if n_rows > 1 and schema.roles.observed and all(same[name].all() for name in schema.roles.observed):
        equal = "equal" if whole else "equal in the cells they have"
        notes.append(f"all {n_rows} rows are {equal}: there is nothing to tell classes apart")
    return notes


def _refuse(
    node: str, columns: Sequence[str], cells: Cells, bad: Callable[[Cells], NDArray[np.bool_]], rule: str
) -> None:
    hit = _first(cells, bad)
    if hit is None:
        return
    row, column, count = hit
    raise DataError(
        f"{where(columns[column], node)} holds {cells[row, column]:g} {at(row)}, where {rule}; "
        f"{_times(count, 'such cell')} in this column"
    )


def _first(cells: Cells, bad: Callable[[Cells], NDArray[np.bool_]]) -> tuple[int, int, int] | None:
    """Row and column of the first bad cell in reading order, and how many that column has."""
    step = max(1, BLOCK_CELLS // cells.shape[1])
    found: tuple[int, int] | None = None
    count = 0
    for start in range(0, len(cells), step):
        marks = bad(cells[start : start + step])  # (rows of the block, width)
        if found is None and marks.any():
            row, column = np.unravel_index(int(marks.argmax()), marks.shape)
            found = (start + int(row), int(column))
        if found is not None:
            count += int(marks[:, found[1]].sum())
    return None if found is None else (*found, count)


def _times(count: int, noun: str) -> str:
    return f"{count} {noun}{'s' * (count != 1)}"
