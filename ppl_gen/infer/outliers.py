"""Rows far out in the tails of a Student-t: no class of their own, however far from every other row they lie."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ppl_gen.data.table import Table
from ppl_gen.declare.continuous import MultivariateStudentT, StudentT
from ppl_gen.program.program import Program

HEAVY = (StudentT, MultivariateStudentT)
FENCE = 3.0  # times the quartiles' distance that outer fences lie beyond them
ACROSS = 1.349 * (1 + 2 * FENCE)  # from fence to fence of a normal, in standard deviations
OUTLYING = 0.1  # rows less inside than this lie three times as far out as a fence


def inside(program: Program, table: Table) -> Tensor | None:
    """How far inside a row is, (N,): 1 within the outer fences of a Student-t's columns, (fence/distance)² beyond.

    None where no row lies far out in the tails of such a node.
    """
    found = np.ones(table.n_units)
    for name in table.schema.roles.observed:
        if isinstance(program.spec.nodes[name], HEAVY):
            array, (low, middle, high) = table.arrays[name], _fences(table, name)
            reach = np.where(array > middle, high - middle, middle - low)
            each = (reach / np.fmax(np.abs(array - middle), reach)) ** 2
            found = np.minimum(found, each.min(1))
    return torch.from_numpy(found) if (found < OUTLYING).any() else None


def within_fences(table: Table, name: str) -> NDArray[np.float64]:
    """Columns (N, D) from their median in a normal's standard deviations, clipped to the outer fences."""
    low, middle, high = _fences(table, name)
    return np.asarray((np.clip(table.arrays[name], low, high) - middle) / ((high - low) / ACROSS))


def _fences(table: Table, name: str) -> NDArray[np.float64]:
    """Lower outer fence, median and upper outer fence of a node's columns, (3, D).

    A normal's, from centre and spread, where the middle half of the rows are equal or none is seen.

    Reference: Tukey (1977), Exploratory Data Analysis, section 2D.
    """
    array, found = table.arrays[name], []
    if table.weights is not None:
        array = array[table.weights > 0]
    for column, centre, spread in zip(
        array.T, table.schema.centre[name], table.schema.spread[name], strict=True
    ):
        seen = column[~np.isnan(column)]
        low, middle, high = np.quantile(seen, (0.25, 0.5, 0.75)) if len(seen) else (centre, centre, centre)
        if low == high:
            low, middle, high = (centre + place * spread for place in (-0.6745, 0.0, 0.6745))
        found.append((low - FENCE * (high - low), middle, high + FENCE * (high - low)))
    return np.array(found).T
