"""A checked set of rows: arrays by node, ready for a program."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ppl_gen.data.schema import Schema


@dataclass(frozen=True, eq=False, repr=False)
class Table:
    """Rows that passed every check, one array a node.

    Args:
        schema: the shape they have; at predict time the schema of the training data.
        arrays: by node name. Real, count and 0/1 nodes and real Inputs: (N, width) float64. A scalar
            Categorical and a categorical Input: (N,) int64 codes. A Categorical with `dim`: (N, dim) int64.
            Nodes that these rows lack have no entry. A missing cell is NaN, or the code -1. Arrays may share
            memory with what the user passed: they are read, never written.
        n_units: number of rows; each is an independent unit, or `weights` of them.
        warnings: what is usable but imperfect, each with the column it is about.
        holes: the nodes with a missing cell.
        weights: how often each row counts, (N,) float64; None: once.
        discrete: the nodes and Inputs whose values are categories, 0 and 1, or counts.

    Example:
        >>> from ppl_gen.data.reading import read_table
        >>> from ppl_gen.declare.nodes import Normal
        >>> from ppl_gen.declare.spec import Spec
        >>> read_table({"x": [[1.0, 2.0], [3.0, 5.0]]}, Spec(model={"x": Normal()}))
        Table(2 rows; x: x[0], x[1])

    """

    schema: Schema
    arrays: dict[str, NDArray[Any]]
    n_units: int
    warnings: tuple[str, ...] = field(default=())
    holes: frozenset[str] = field(default=frozenset())
    weights: NDArray[np.float64] | None = None
    discrete: frozenset[str] = field(default=frozenset())

    @property
    def total(self) -> float:
        """The number of independent units: the sum of the weights, or the number of rows.

        Example:
            >>> from ppl_gen.declare.spec import Roles
            >>> Table(Schema(Roles((), (), ()), {}), {}, 2, weights=np.array([3.0, 0.5])).total
            3.5

        """
        return float(self.n_units if self.weights is None else self.weights.sum())

    def __repr__(self) -> str:
        parts = []
        for name in self.arrays:
            columns = self.schema.column_names(name)
            shown = ", ".join(columns) if len(columns) <= 8 else f"{len(columns)} columns"
            parts.append(name if columns == (name,) else f"{name}: {shown}")
        return f"Table({self.n_units} row{'s' * (self.n_units != 1)}; {'; '.join(parts)})"
