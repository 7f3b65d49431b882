"""Rows of a linear-Gaussian model as sums: one matrix of second moments for each pattern of missing cells.

Nothing else of the rows enters the likelihood or an M-step, so that an iteration of EM takes as long for a million
rows as for a hundred. Columns are centred and scaled first: raw second moments cancel far from 0.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ppl_gen.data.moments import constant
from ppl_gen.data.schema import Schema
from ppl_gen.data.stream import StreamedTable, blocks_of
from ppl_gen.data.table import Table
from ppl_gen.infer.linear_gaussian import System

BLOCK = 16_384  # rows at a time

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Units:
    """Centre and unit of all variables and regressors, (M + R,): 0 and 1 of latents and of the constant.

    Args:
        centre: what is taken off.
        unit: what the rest is divided by.

    """

    centre: Tensor
    unit: Tensor

    @staticmethod
    def of(system: System, schema: Schema) -> Units:
        """Means and spreads of the columns.

        Where one number is the variance of all dimensions they share a unit, and what enters a location whose
        constant is written stays where it is.
        """
        centre = torch.zeros(system.constant + 1, dtype=torch.float64)
        unit = torch.ones_like(centre)
        for e in system.equations:
            if e.name in system.observed:
                spread = torch.tensor(schema.spread[e.name], dtype=torch.float64)
                if e.noise == "shared":
                    largest = spread.max()  # squares of spreads may be beyond floating point
                    spread = (largest * ((spread / largest) ** 2).mean().sqrt()).expand(e.width)
                centre[e.own] = torch.tensor(schema.centre[e.name], dtype=torch.float64)
                unit[e.own] = spread
        start = system.size
        for (name, levels), width in zip(system.regressors, system.widths, strict=True):
            if levels is None:
                centre[start : start + width] = torch.tensor(schema.centre[name], dtype=torch.float64)
                unit[start : start + width] = torch.tensor(schema.spread[name], dtype=torch.float64)
            start += width
        for e in system.equations:
            if e.learned is None:
                centre[list(e.places)] = 0.0
        return Units(centre, unit)


@dataclass(frozen=True)
class Moments:
    """Σ w (x, r)(x, r)ᵀ of the rows with one pattern of seen cells, pattern by pattern.

    Args:
        seen: 1 where a cell is seen, (P, D).
        squares: (P, D + R, D + R), 0 in the rows and columns of missing cells.
        counts: sums of weights, (P,).

    """

    seen: Tensor
    squares: Tensor
    counts: Tensor

    @property
    def total(self) -> float:
        """The sum of all weights."""
        return float(self.counts.sum())

    @property
    def complete(self) -> bool:
        """Whether no cell is missing anywhere."""
        return bool(self.seen.all())

    def log_units(self, unit: Tensor) -> float:
        """Σ w log unit over the seen cells, units (D,): what log p in them is above that in the data's own."""
        return float(self.counts @ self.seen @ unit.log())


def moments_of(system: System, table: Table, units: Units) -> Moments:
    """The moments of all rows, in units; a streamed table is read once."""
    sums: dict[bytes, tuple[Array, float]] = {}
    for arrays, weights in _blocks(system, table, units):
        seen = ~np.isnan(arrays)
        filled = np.where(seen, arrays, 0.0)
        for pattern, rows in _patterns(seen):
            own = filled[rows]
            weighted = own if weights is None else own * weights[rows, None]
            count = float(len(rows)) if weights is None else float(weights[rows].sum())
            squares, before = sums.get(pattern, (0.0, 0.0))
            sums[pattern] = squares + weighted.T @ own, before + count
    size = len(system.places(system.observed))
    patterns = [np.frombuffer(pattern, dtype=bool)[:size] for pattern in sums]
    return Moments(
        torch.from_numpy(np.array(patterns, dtype=np.float64)),
        torch.from_numpy(np.stack([squares for squares, _ in sums.values()])),
        torch.tensor([count for _, count in sums.values()], dtype=torch.float64),
    )


def _patterns(seen: NDArray[np.bool_]) -> Iterator[tuple[bytes, NDArray[np.intp]]]:
    """Each distinct row of marks, and which rows have it."""
    if seen.all():
        yield seen[0].tobytes(), np.arange(len(seen))
        return
    packed = np.ascontiguousarray(np.packbits(seen, axis=1))
    keys = packed.view(np.dtype((np.void, packed.shape[1]))).reshape(-1)
    _, first, inverse = np.unique(keys, return_index=True, return_inverse=True)
    order = np.argsort(inverse.reshape(-1), kind="stable")
    ends = np.cumsum(np.bincount(inverse.reshape(-1)))[:-1]
    for one, rows in zip(first, np.split(order, ends), strict=True):
        yield seen[one].tobytes(), rows


def _blocks(system: System, table: Table, units: Units) -> Iterator[tuple[Array, Array | None]]:
    """Rows in units, observed nodes and regressors side by side (N, D + R), and their weights."""
    for block in blocks_of(table, BLOCK):
        counted = None if block.weights is None else block.weights > 0
        arrays, weights = block.arrays, block.weights
        if counted is not None and not counted.all():
            arrays = {name: array[counted] for name, array in arrays.items()}
            weights = block.weights[counted] if block.weights is not None else None
        if len(next(iter(arrays.values()))):
            yield side_by_side(system, arrays, units), weights


def side_by_side(system: System, arrays: Mapping[str, NDArray[np.generic]], units: Units) -> Array:
    """Rows in units, observed nodes and regressors with the constant: (N, D + R)."""
    places = [*system.places(system.observed).tolist(), *range(system.size, system.constant)]
    n = len(next(iter(arrays.values())))
    parts = [np.asarray(arrays[name], dtype=np.float64).reshape(n, -1) for name in system.observed]
    for name, levels in system.regressors:
        own = np.asarray(arrays[name]).reshape(n, -1)
        parts.append(own.astype(np.float64) if levels is None else own == np.arange(1, levels))
    together = np.concatenate(parts, axis=1)
    centre, unit = units.centre.numpy()[places], units.unit.numpy()[places]
    return np.concatenate([(together - centre) / unit, np.ones((n, 1))], axis=1)


def constant_columns(system: System, table: Table) -> tuple[str, ...]:
    """The observed columns that hold one value only."""
    source = table.extremes if isinstance(table, StreamedTable) else table
    found: list[str] = []
    for name in system.observed:
        columns = table.schema.column_names(name)
        found += [columns[d] for d in np.flatnonzero(constant(source.arrays[name]))]
    return tuple(found)
