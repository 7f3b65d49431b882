"""Some rows of a streamed table set apart: which they are depends on where they lie, not on how they are read."""

from __future__ import annotations

import zlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ppl_gen.data.sources import Chunk
from ppl_gen.data.stream import Block, StreamedTable, joined
from ppl_gen.data.table import Table

HELD_BYTES = 64 * 2**20  # of rows set apart, which are kept in memory

Marks = NDArray[np.bool_]


def parted(table: StreamedTable, share: float, seed: int) -> tuple[StreamedTable, Table]:
    """The rows without those set apart, and these, in memory, in the order of the files.

    Args:
        table: the rows.
        share: about which share of them is set apart; fewer where that would take more than 64 MiB.
        seed: of which.

    The files are read once. Either part may come out empty.

    """
    kept: list[Block] = []
    width = sum(array.itemsize * array[:1].size for array in table.arrays.values())
    choice = Choice(min(share, HELD_BYTES / (width * table.n_units)), seed)
    for chunk in table.source.chunks():
        kept.append(Some(table.convert, choice, wanted=True)(chunk))
    whole = joined(kept)
    held = replace(table.sample, arrays=whole.arrays, weights=whole.weights, n_units=whole.n_rows)
    others = Some(table.convert, choice, wanted=False)
    return replace(table, convert=others, n_units=table.n_units - whole.n_rows), held


@dataclass(frozen=True)
class Choice:
    """Marks rows by a hash of their file's name and their number in it.

    Args:
        share: of the rows that are marked, about.
        seed: another one marks others.

    Example:
        >>> marks = Choice(0.25, seed=0)("rows.npy", 0, 10_000)
        >>> bool(abs(marks.mean() - 0.25) < 0.02), bool((Choice(0.25, 0)("rows.npy", 7, 9) == marks[7:16]).all())
        (True, True)

    """

    share: float
    seed: int

    def __call__(self, file: str, first: int, rows: int) -> Marks:
        """Of `rows` rows from `first` on."""
        key = np.random.SeedSequence([self.seed, zlib.crc32(Path(file).name.encode())])
        x = np.arange(first, first + rows, dtype=np.uint64) + key.generate_state(1, np.uint64)
        # SplitMix64's finaliser: Steele, Lea & Flood (2014), https://doi.org/10.1145/2714064.2660195
        x = (x * np.uint64(0x9E3779B97F4A7C15)) & np.uint64(2**64 - 1)
        for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB), (31, 1)):
            x = (x ^ (x >> np.uint64(shift))) * np.uint64(factor)
        marks: Marks = (x >> np.uint64(11)) < self.share * 2.0**53
        return marks


@dataclass(frozen=True)
class Some:
    """A conversion of chunks that keeps the rows a choice marks, or the others."""

    convert: Callable[[Chunk], Block]
    choice: Choice
    wanted: bool

    def __call__(self, chunk: Chunk) -> Block:
        """The rows of the chunk that are kept."""
        block = self.convert(chunk)
        marks = self.choice(chunk.file, chunk.first, block.n_rows) == self.wanted
        arrays: dict[str, NDArray[Any]] = {name: array[marks] for name, array in block.arrays.items()}
        return Block(arrays, None if block.weights is None else block.weights[marks])
