"""Where SVI's minibatches come from: rows in memory, or rows that stay in their files."""

from __future__ import annotations

from collections.abc import Generator, Iterator
from contextlib import closing
from typing import Protocol

import torch
from torch import Tensor

from ppl_gen.data.stream import Block, StreamedTable, ahead
from ppl_gen.data.stream_parts import parted
from ppl_gen.data.table import Table
from ppl_gen.errors import DataError
from ppl_gen.infer.ascent_step import WEIGHTS, Rows, picked
from ppl_gen.infer.held_out import no_rows, split
from ppl_gen.program.program import Program

PIECE_BYTES = 4 * 2**20  # of rows turned into tensors at a time

Minibatch = tuple[Rows, Tensor]  # rows, and which of them


def side_by_side(minibatches: list[Minibatch]) -> Minibatch:
    """Minibatches of one size as one: their rows, and which of them, (minibatches, size)."""
    data = minibatches[0][0]
    if all(own is data for own, _ in minibatches):
        return data, torch.stack([index for _, index in minibatches])
    parts = [picked(*minibatch) for minibatch in minibatches]
    rows = {name: torch.cat([part[name] for part in parts]) for name in data}
    index = minibatches[0][1]
    return rows, torch.arange(len(parts) * len(index), device=index.device).view(len(parts), -1)


class Feed(Protocol):
    """Rows, a minibatch at a time."""

    @property
    def n_units(self) -> int:
        """Rows of an epoch."""

    def first(self, size: int) -> Rows:
        """Some rows, `size` at most."""

    def batches(self, size: int, seed: int, skip: int = 0) -> Generator[Minibatch]:
        """Every row once, in an order that is a function of the seed, from minibatch `skip` on."""

    def parted(self, share: float, seed: int) -> tuple[Feed, Rows]:
        """The rows to learn from, and those held out."""


class Kept:
    """Rows in memory.

    Args:
        rows: all of them, on one device.

    Example:
        >>> feed = Kept({"x": torch.arange(5.0)})
        >>> sorted(x for rows, index in feed.batches(2, seed=0) for x in rows["x"][index].tolist())
        [0.0, 1.0, 2.0, 3.0, 4.0]

    """

    def __init__(self, rows: Rows) -> None:
        self.rows = rows
        column = next(iter(rows.values()))
        self.n_units, self.device = len(column), column.device

    def first(self, size: int) -> Rows:
        """The first rows."""
        return {name: column[:size] for name, column in self.rows.items()}

    def batches(self, size: int, seed: int, skip: int = 0) -> Generator[Minibatch]:
        """Any order of all rows is as likely."""
        order = torch.randperm(self.n_units, generator=torch.Generator().manual_seed(seed))
        for index in order.to(self.device).split(size)[skip:]:
            yield self.rows, index

    def parted(self, share: float, seed: int) -> tuple[Feed, Rows]:
        """Exactly that share, rounded."""
        learned, held = (part.to(self.device) for part in split(self.n_units, share, seed))
        return Kept(picked(self.rows, learned)), picked(self.rows, held)


class Streamed:
    """Rows that are read again every epoch, the next ones by other threads while steps run.

    To a CUDA device they are copied from pinned memory, so that no copy is waited for. Their order is that of
    `StreamedTable.blocks`: chunks in any order, the rows of many mixed.

    Args:
        program: the compiled model.
        table: the rows.
        unit: what a weight is multiplied by, so that they are 1 on average over all rows.

    """

    def __init__(self, program: Program, table: StreamedTable, unit: float | None = None) -> None:
        self.program, self.table = program, table
        self.unit = table.n_units / table.total if unit is None else unit

    @property
    def n_units(self) -> int:
        """Rows of an epoch."""
        return self.table.n_units

    def first(self, size: int) -> Rows:
        """Rows of the sample."""
        return {name: column[:size] for name, column in self._tensors(self.table.sample).items()}

    def batches(self, size: int, seed: int, skip: int = 0) -> Generator[Minibatch]:
        """What is skipped is read and let go.

        Raises DataError where the files have lost rows since they were checked.
        """
        widths = (array[:1].nbytes for array in self.table.arrays.values())
        at_once = max(1, PIECE_BYTES // (size * sum(widths)))
        device = self.program.device
        index = torch.arange(size, device=device)
        seen, begun = skip // at_once * at_once * size, skip % at_once * size
        with closing(ahead(self._pieces(at_once * size, seed, skip // at_once))) as pieces:
            for read in pieces:
                piece = {name: column.to(device, non_blocking=True) for name, column in read.items()}
                rows = len(next(iter(piece.values())))
                for start in range(begun, rows, size):
                    part = {name: column[start : start + size] for name, column in piece.items()}
                    yield part, index[: min(size, rows - start)]
                seen, begun = seen + rows, 0
        if seen < self.n_units:
            raise DataError(
                f"the files have lost rows while they were read: {self.n_units} before, {seen} now"
            )

    def parted(self, share: float, seed: int) -> tuple[Feed, Rows]:
        """About that share, fewer where that many do not fit into memory."""
        learned, held = parted(self.table, share, seed)
        if not held.n_units or not learned.n_units:
            raise no_rows(share, self.n_units, held.n_units)
        return Streamed(self.program, learned, self.unit), self._tensors(held)

    def _pieces(self, rows: int, seed: int, skip: int) -> Iterator[Rows]:
        for number, block in enumerate(self.table.blocks(rows, seed=seed)):
            if number >= skip:
                piece = self._tensors(block, torch.device("cpu"))
                pinned = self.program.device.type == "cuda"
                yield {name: column.pin_memory() for name, column in piece.items()} if pinned else piece

    def _tensors(self, rows: Block | Table, device: torch.device | None = None) -> Rows:
        return tensors_of(self.program, rows, self.table.holes, self.unit, device)


def tensors_of(
    program: Program,
    rows: Block | Table,
    holes: frozenset[str],
    unit: float,
    device: torch.device | None = None,
) -> Rows:
    """Rows as a run takes them: all columns, marks of the seen cells, and weights, times `unit`.

    They are on the program's device, or another.
    """
    device = device or program.device
    data = program.tensors(rows.arrays, holes, device)
    if rows.weights is not None:
        data[WEIGHTS] = torch.tensor(rows.weights * unit, dtype=program.dtype).to(device)
    return data
