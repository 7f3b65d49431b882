"""Rows of a table as a table of their own: training rows, rows held out, rows drawn from a fit."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ppl_gen.data.moments import centre_and_spread
from ppl_gen.data.table import Table
from ppl_gen.errors import FitError

Array = NDArray[Any]


def units(table: Table) -> NDArray[np.int64] | None:
    """The row of every independent unit, weights being how often a row was seen: (Σw,).

    None where a weight is no whole number: such weights count rows, but name no units.
    """
    if table.weights is None:
        return np.arange(table.n_units)
    if not np.array_equal(table.weights, np.round(table.weights)):
        return None
    return np.repeat(np.arange(table.n_units), table.weights.astype(np.int64))


def held_out(table: Table, folds: int, seed: int) -> Array:
    """How much of each row each fold holds out: (folds, N); the sum over folds is the rows' weights.

    Without weights these are the test rows of scikit-learn's `KFold(folds, shuffle=True, random_state=seed)`.
    With whole weights the folds are of units: a row seen w times may be in several. With others, of rows.

    Raises:
        FitError: there are fewer units than folds.

    """
    own = units(table)
    order = np.arange(table.n_units) if own is None else own
    weights = np.ones(len(order)) if own is not None else np.asarray(table.weights)
    if len(order) < folds:
        raise FitError(f"{len(order)} units cannot be cut in {folds} folds; ask for fewer folds")
    positions = np.arange(len(order))
    # The generator that scikit-learn's KFold has, so that anyone can make the folds again.
    np.random.RandomState(seed % 2**32).shuffle(positions)
    parts = np.array_split(positions, folds)
    return np.stack([np.bincount(order[p], weights[p], minlength=table.n_units) for p in parts])


def weighted(table: Table, weights: Array) -> Table:
    """The rows of positive weight, each counting so often; centre and spread are their own."""
    kept = weights > 0
    arrays = {name: array[kept] for name, array in table.arrays.items()}
    once = table.weights is None and bool((weights[kept] == 1).all())
    found = replace(
        table,
        arrays=arrays,
        n_units=int(kept.sum()),
        weights=None if once else np.ascontiguousarray(weights[kept], dtype=np.float64),
        warnings=(),
    )
    return _with_own_moments(found)


def drawn(table: Table, arrays: Mapping[str, Array]) -> Table:
    """As many rows as drawn in place of a table's, each counting once."""
    n = len(next(iter(arrays.values())))
    return _with_own_moments(replace(table, arrays=dict(arrays), n_units=n, weights=None, warnings=()))


def _with_own_moments(table: Table) -> Table:
    """The schema with centre and spread of these rows: nothing of the rows held out is known."""
    moments = {name: centre_and_spread(table.arrays[name], table.weights) for name in table.schema.centre}
    schema = replace(
        table.schema,
        centre={name: own[0] for name, own in moments.items()},
        spread={name: own[1] for name, own in moments.items()},
    )
    return replace(table, schema=schema)
