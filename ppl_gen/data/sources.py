"""Rows in files, and what the forms of files have in common: chunks of rows, one after the other."""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Generator, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ppl_gen.errors import DataError

CHUNK_BYTES = 16 * 2**20  # of float64 cells read at a time
LARGEST_TABLE = 256 * 2**20  # bytes of cells, as float64, above which a file is streamed without being asked

Place = str | os.PathLike[str]


@dataclass(frozen=True)
class Rows:
    """Rows in files, to be streamed: read a chunk at a time on every pass, never held as a whole.

    A path alone is streamed where its rows would take more than 256 MiB; `Rows` streams whatever the size.

    Args:
        paths: a Parquet, .npy or CSV file; a folder or a pattern ("parts/*.parquet"); a list of files of one
            form, whose rows follow one another; or {"x": "x.npy", …}, one .npy file a node.
        chunk_rows: rows read at a time; default about 16 MiB of cells.

    Raises DataError where `chunk_rows` is no whole number from 1.

    Example:
        >>> Rows("measurements.csv", chunk_rows=100_000)
        Rows(paths='measurements.csv', chunk_rows=100000)

    """

    paths: Place | Sequence[Place] | Mapping[str, Place]
    chunk_rows: int | None = None

    def __post_init__(self) -> None:
        size = self.chunk_rows
        if size is not None and (isinstance(size, bool) or not isinstance(size, int) or size < 1):
            raise DataError(f"Rows: chunk_rows must be a whole number from 1, not {size!r}")


class Chunk(NamedTuple):
    """Some rows as they lie in a file: a frame, an array, or arrays by node; `first` is their row there."""

    file: str
    first: int
    cells: Any


@dataclass(frozen=True)
class Source(ABC):
    """Files of one form.

    Args:
        paths: the files, in the order of their rows.
        chunk_rows: rows read at a time; None: what CHUNK_BYTES hold.
        columns: which are read, by name; None: all.

    """

    paths: tuple[Path, ...]
    chunk_rows: int | None = None
    columns: tuple[str, ...] | None = None

    def only(self, columns: Iterable[str]) -> Source:
        """The same files, these columns alone."""
        return replace(self, columns=tuple(columns))

    @property
    @abstractmethod
    def bytes(self) -> int:
        """What all cells take as float64, as nearly as can be told without reading them."""

    @abstractmethod
    def chunks(self, order: np.random.Generator | None = None) -> Generator[Chunk]:
        """All rows, in order; or their chunks in a random one, as far as the form allows."""

    @abstractmethod
    def whole(self) -> tuple[Any, list[str]]:
        """All rows at once, as `read_table` takes them, and warnings."""

    @property
    def notes(self) -> list[str]:
        """What a user should know of how the files are read."""
        return []

    def rows_at_a_time(self, width: int) -> int:
        """Rows of a chunk that is `width` cells wide."""
        return self.chunk_rows or max(1, CHUNK_BYTES // (8 * max(width, 1)))
