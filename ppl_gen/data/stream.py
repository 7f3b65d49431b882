"""A table whose rows stay in their files: read again on every pass, a block at a time."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray

from ppl_gen.data.sources import Chunk, Source
from ppl_gen.data.table import Table

POOL_BYTES = 48 * 2**20  # of rows that are mixed at a time where a random order is asked for

Array = NDArray[Any]
Item = TypeVar("Item")


class Block(NamedTuple):
    """Some rows as `Table.arrays` holds them, and their weights (N,), None where each counts once."""

    arrays: dict[str, Array]
    weights: NDArray[np.float64] | None

    @property
    def n_rows(self) -> int:
        """Number of rows."""
        return len(next(iter(self.arrays.values())))


@dataclass(frozen=True, eq=False, repr=False, kw_only=True)
class StreamedTable(Table):
    """Rows that passed every check once, left in their files.

    `arrays` and `weights` hold a sample, spread over all rows; `n_units`, `total`, `holes` and the schema are
    of all rows.

    Args:
        source: the files.
        convert: a chunk of them as the table's arrays.
        weight_sum: the sum of the weights of all rows.
        low: the least value of each numeric node's columns, (width,); `high` the greatest.
        high: see `low`.
        seen: the sum of weights over the seen cells of each column, (width,).

    """

    source: Source
    convert: Callable[[Chunk], Block]
    weight_sum: float
    low: dict[str, Array] = field(default_factory=dict)
    high: dict[str, Array] = field(default_factory=dict)
    seen: dict[str, Array] = field(default_factory=dict)

    @property
    def total(self) -> float:
        """The number of independent units: the sum of the weights, or the number of rows."""
        return self.weight_sum

    @property
    def sample(self) -> Table:
        """The sample as a table of its own, under the schema of all rows."""
        n_rows = len(next(iter(self.arrays.values())))
        return Table(self.schema, self.arrays, n_rows, (), self.holes, self.weights, self.discrete)

    @property
    def extremes(self) -> Table:
        """Two rows, the least and the greatest value of each column: what tells constant columns."""
        arrays = {
            name: np.stack([self.low[name], self.high[name]]) if name in self.low else array[:2]
            for name, array in self.arrays.items()
        }
        return Table(self.schema, arrays, 2, (), self.holes)

    def blocks(self, size: int, *, seed: int | None = None) -> Iterator[Block]:
        """All rows, `size` at a time, the last block smaller; the next ones are read meanwhile.

        Args:
            size: rows of a block.
            seed: of a random order: chunks are read in any order their files allow, and the rows of many
                mixed. Default: the order of the files.

        """
        random = None if seed is None else np.random.default_rng(seed)
        found = ahead(self._converted(random))
        return _cut(found if random is None else _mixed(found, random), size)

    def _converted(self, random: np.random.Generator | None) -> Iterator[Block]:
        with closing(self.source.chunks(random)) as chunks:
            for chunk in chunks:
                yield self.convert(chunk)

    def loaded(self) -> Table:
        """All rows in memory."""
        found = list(self.blocks(2**62))
        assert len(found) == 1
        return Table(self.schema, found[0].arrays, self.n_units, self.warnings, self.holes, found[0].weights)

    def __repr__(self) -> str:
        return f"Streamed{super().__repr__()}"


def held(table: Table) -> Table:
    """The rows in memory: all of a table's, a streamed one's sample.

    Example:
        >>> from ppl_gen.declare.spec import Roles
        >>> from ppl_gen.data.schema import Schema
        >>> table = Table(Schema(Roles((), (), ()), {}), {}, 0)
        >>> held(table) is table
        True

    """
    return table.sample if isinstance(table, StreamedTable) else table


def blocks_of(table: Table, size: int) -> Iterator[Block]:
    """All rows of any table, `size` at a time.

    Example:
        >>> from ppl_gen.data.reading import read_table
        >>> from ppl_gen.declare.files import read_spec
        >>> table = read_table([[1.0], [2.0], [4.0]], read_spec("gaussian_mixture").replace("z.k", "2"))
        >>> [block.n_rows for block in blocks_of(table, 2)]
        [2, 1]

    """
    if isinstance(table, StreamedTable):
        yield from table.blocks(size)
        return
    for start in range(0, table.n_units, size):
        own = slice(start, start + size)
        weights = None if table.weights is None else table.weights[own]
        yield Block({name: array[own] for name, array in table.arrays.items()}, weights)


def ahead(items: Iterable[Item]) -> Generator[Item]:
    """The items, each next one made by another thread while the last one is used.

    Example:
        >>> list(ahead(x * x for x in range(3)))
        [0, 1, 4]

    """
    source, end = iter(items), object()
    try:
        with ThreadPoolExecutor(1, thread_name_prefix="ppl_gen-reader") as pool:
            coming = pool.submit(next, source, end)
            while (item := coming.result()) is not end:
                coming = pool.submit(next, source, end)
                yield item  # type: ignore[misc]
    finally:
        getattr(source, "close", lambda: None)()  # files, where the items are left before their end


def _cut(found: Iterable[Block], size: int) -> Iterator[Block]:
    """Blocks of exactly `size` rows, whatever the sizes they come in; the last may be smaller."""
    waiting: list[Block] = []
    rows = 0
    for block in found:
        waiting.append(block)
        rows += block.n_rows
        if rows < size:
            continue
        whole, waiting = joined(waiting), []
        del block  # what is mixed next should not stand beside more than it has to
        for start in range(0, rows - size + 1, size):
            yield _rows(whole, slice(start, start + size))
        rest = rows % size
        # A copy, so that the few rows left over do not keep all of a chunk.
        waiting = [_rows(whole, np.arange(rows - rest, rows))] if rest else []
        rows = rest
        del whole
    if rows:
        yield joined(waiting)


def _mixed(found: Iterable[Block], random: np.random.Generator) -> Iterator[Block]:
    """As many rows as the pool holds at a time, in random order."""
    pool: list[Block] = []
    held_bytes = 0
    for block in found:
        pool.append(block)
        held_bytes += sum(array.nbytes for array in block.arrays.values())
        if held_bytes >= POOL_BYTES:
            held_bytes = 0
            yield _shuffled(pool, random)
    if pool:
        yield _shuffled(pool, random)


def _shuffled(pool: list[Block], random: np.random.Generator) -> Block:
    """The rows of a pool, which is emptied, in random order."""
    whole = joined(pool)
    pool.clear()
    return _rows(whole, random.permutation(whole.n_rows))


def joined(parts: list[Block]) -> Block:
    """Blocks of the same nodes, one after the other."""
    if len(parts) == 1:
        return parts[0]
    weights = [part.weights for part in parts if part.weights is not None]
    arrays = {name: np.concatenate([part.arrays[name] for part in parts]) for name in parts[0].arrays}
    return Block(arrays, np.concatenate(weights) if weights else None)


def _rows(block: Block, index: slice | NDArray[np.intp]) -> Block:
    weights = None if block.weights is None else block.weights[index]
    return Block({name: array[index] for name, array in block.arrays.items()}, weights)


def with_arrays(table: Table, block: Block) -> Table:
    """A block as a table of its own."""
    return replace(held(table), arrays=block.arrays, n_units=block.n_rows, weights=block.weights)
