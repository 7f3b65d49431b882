"""The forms of files whose rows are streamed: Parquet, memory-mapped .npy, CSV."""

from __future__ import annotations

import glob
import math
import os
from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import narwhals as nw
import numpy as np
import pandas as pd
from numpy.typing import NDArray

from ppl_gen.data.checks import equal_lengths
from ppl_gen.data.csv_files import read_csv
from ppl_gen.data.sources import Chunk, Place, Rows, Source
from ppl_gen.data.stream_csv import csv_chunks, csv_header, refuse_longer_rows
from ppl_gen.declare.declared import nearest
from ppl_gen.errors import DataError

PIECES = 16  # of a chunk of an .npy file, where rows are read in a random order
ENDINGS = (".parquet", ".pq", ".npy", ".csv", ".tsv")

Item = TypeVar("Item")


class _RowGroup(NamedTuple):
    path: Path
    number: int
    first: int
    names: list[str]


class Parquet(Source):
    """Parquet files, through pyarrow."""

    @property
    def bytes(self) -> int:
        """Rows × columns × 8, from the files' footers."""
        return sum(
            8 * meta.num_rows * meta.num_columns for meta in (_parquet(p).metadata for p in self.paths)
        )

    def chunks(self, order: np.random.Generator | None = None) -> Generator[Chunk]:
        """Data frames, none over the edge of a row group."""
        groups = list(self._groups())
        names = groups[0].names if groups else []
        wanted = None if self.columns is None else list(self.columns)
        size = self.rows_at_a_time(len(wanted or names))
        for place in _ordered(groups, order):
            with _parquet(place.path) as file:
                first = place.first
                for batch in file.iter_batches(batch_size=size, row_groups=[place.number], columns=wanted):
                    yield Chunk(str(place.path), first, batch.to_pandas())
                    first += batch.num_rows

    def whole(self) -> tuple[pd.DataFrame, list[str]]:
        """One data frame."""
        return _joined([chunk.cells for chunk in self.chunks()]), []

    def _groups(self) -> Iterator[_RowGroup]:
        header = None
        for path in self.paths:
            with _parquet(path) as file:
                names = file.schema_arrow.names
                _same_header(path, names, header := header or names, self.paths[0])
                first = 0
                for number in range(file.num_row_groups):
                    yield _RowGroup(path, number, first, names)
                    first += file.metadata.row_group(number).num_rows


@dataclass(frozen=True)
class Npy(Source):
    """Arrays in .npy files: one after the other, or side by side where `nodes` names them."""

    nodes: tuple[str, ...] = ()

    @property
    def bytes(self) -> int:
        """Cells × 8, from the files' headers."""
        return sum(8 * _mapped(path).size for path in self.paths)

    def chunks(self, order: np.random.Generator | None = None) -> Generator[Chunk]:
        """Arrays, or arrays by node, copied from the mapped file."""
        if self.nodes:
            return self._side_by_side(order)
        return self._in_a_row(order)

    def whole(self) -> tuple[Any, list[str]]:
        """One array, or arrays by node."""
        if self.nodes:
            return {node: np.load(path) for node, path in zip(self.nodes, self.paths, strict=True)}, []
        return np.concatenate([np.load(path) for path in self.paths]), []

    def _piece(self, width: int, order: np.random.Generator | None) -> int:
        """Rows read at a time: fewer out of order, so that what is mixed comes from many places."""
        size = self.rows_at_a_time(width)
        return size if order is None else math.ceil(size / PIECES)

    def _in_a_row(self, order: np.random.Generator | None) -> Generator[Chunk]:
        size = self._piece(_width(self.paths[0]), order)
        places = [(path, first) for path in self.paths for first in range(0, len(_mapped(path)), size)]
        for path, first in _ordered(places, order):
            yield Chunk(str(path), first, _copied(path, first, size))

    def _side_by_side(self, order: np.random.Generator | None) -> Generator[Chunk]:
        n_rows = equal_lengths({str(path): len(_mapped(path)) for path in self.paths})
        size = self._piece(sum(_width(path) for path in self.paths), order)
        for first in _ordered(range(0, n_rows, size), order):
            pairs = zip(self.nodes, self.paths, strict=True)
            cells = {node: _copied(path, first, size) for node, path in pairs}
            yield Chunk(", ".join(map(str, self.paths)), first, cells)


@dataclass(frozen=True)
class Csv(Source):
    """CSV files. `text` names columns whose cells are kept as they are written."""

    text: frozenset[str] = frozenset()

    @property
    def bytes(self) -> int:
        """The files' own size: a written number is about as long as a float64."""
        return sum(path.stat().st_size for path in self.paths)

    def keeping(self, text: Iterable[str]) -> Csv:
        """The same files, these columns read as text."""
        return replace(self, text=self.text | frozenset(text))

    def check_widths(self) -> None:
        """Refuse rows longer than the header, which pandas does by itself only where it reads all columns."""
        for path in self.paths:
            if self.columns is not None and {*self.columns} != {*csv_header(path)}:
                refuse_longer_rows(path)

    def chunks(self, order: np.random.Generator | None = None) -> Generator[Chunk]:
        """Data frames; types are inferred chunk by chunk. Only whole files can be read out of order."""
        header = csv_header(self.paths[0])
        read = [name for name in header if name and (self.columns is None or name in self.columns)]
        size = self.rows_at_a_time(len(read))
        for path in _ordered(self.paths, order):
            _same_header(path, csv_header(path), header, self.paths[0])
            for first, frame in csv_chunks(path, read, size, self.text):
                yield Chunk(str(path), first, frame)

    def whole(self) -> tuple[pd.DataFrame, list[str]]:
        """One data frame."""
        found = [read_csv(path) for path in self.paths]
        return _joined([nw.to_native(frame) for frame, _ in found]), [
            note for _, own in found for note in own
        ]

    @property
    def notes(self) -> list[str]:
        """An unnamed first column only counts the rows."""
        unnamed = not csv_header(self.paths[0])[0]
        return ["the first column has no name (a row index, it seems) and is not read"] * unnamed


def open_rows(data: Place | Rows) -> Source:
    """The files that a path or `Rows` means.

    Raises:
        DataError: nothing is there, or it is of a form that is not read.

    """
    rows = data if isinstance(data, Rows) else Rows(data)
    if isinstance(rows.paths, Mapping):
        nodes = tuple(map(str, rows.paths))
        files = tuple(file for place in rows.paths.values() for file in _files(place))
        if {file.suffix for file in files} != {".npy"} or len(files) != len(nodes):
            raise DataError(
                "Rows: each node needs one .npy file; other files hold the columns of several nodes"
            )
        return Npy(files, rows.chunk_rows, nodes=nodes)
    places = [rows.paths] if isinstance(rows.paths, str | os.PathLike) else list(rows.paths)
    files = tuple(file for place in places for file in _files(place))
    forms = {_form(file) for file in files}
    if len(forms) != 1:
        raise DataError(
            f"Rows: files of one form are needed, not {', '.join(f.__name__ for f in forms) or 'none'}"
        )
    return forms.pop()(files, rows.chunk_rows)


def _files(place: Place) -> list[Path]:
    path = Path(place)
    if path.is_file():
        return [path]
    if path.is_dir():
        for ending in ENDINGS:
            if found := sorted(path.glob(f"*{ending}")):
                return found
        raise DataError(f"{path}: the folder has no file that ends in {', '.join(ENDINGS)}")
    if found := sorted(Path(name) for name in glob.glob(str(place)) if Path(name).is_file()):
        return found
    beside = [p.name for p in path.parent.glob("*")] if path.parent.is_dir() else []
    raise DataError(f"{path}: no such file{nearest(path.name, beside)}")


def _form(path: Path) -> type[Source]:
    if path.suffix in (".parquet", ".pq"):
        return Parquet
    if path.suffix == ".npy":
        return Npy
    if path.suffix in (".xlsx", ".feather", ".npz", ".arrow"):
        raise DataError(
            f"{path}: CSV, Parquet and .npy files are read; load this one yourself and pass the frame or the array"
        )
    return Csv


def _parquet(path: Path) -> Any:
    try:
        from pyarrow import ArrowInvalid
        from pyarrow.parquet import ParquetFile
    except ImportError:
        raise DataError(
            f"{path}: Parquet files need pyarrow, which is not installed: pip install 'ppl_gen[parquet]'"
        ) from None
    try:
        return ParquetFile(path, buffer_size=2**20)  # pages are read as they come, not a row group at once
    except (ArrowInvalid, OSError) as error:
        raise DataError(f"{path}: not readable as Parquet: {error}") from error


def _mapped(path: Path) -> NDArray[Any]:
    try:
        array: NDArray[Any] = np.load(path, mmap_mode="r", allow_pickle=False)
    except (ValueError, OSError, EOFError) as error:
        raise DataError(f"{path}: not readable as an .npy file of numbers or text: {error}") from error
    if array.ndim == 0:
        raise DataError(f"{path}: holds one number, not rows")
    return array


def _copied(path: Path, first: int, size: int) -> NDArray[Any]:
    # Mapped anew for every chunk: pages that were read count as ours until they are unmapped.
    return np.array(_mapped(path)[first : first + size])


def _width(path: Path) -> int:
    return int(np.prod(_mapped(path).shape[1:], dtype=np.int64))


def _same_header(path: Path, names: Sequence[str], header: Sequence[str], first: Path) -> None:
    if sorted(names) != sorted(header):
        raise DataError(
            f"{path}: its columns ({', '.join(names)}) are not those of {first} ({', '.join(header)})"
        )


def _ordered(places: Sequence[Item], order: np.random.Generator | None) -> Iterator[Item]:
    """Places to read, as they stand or in a random order."""
    picked = range(len(places)) if order is None else order.permutation(len(places)).tolist()
    return (places[i] for i in picked)


def _joined(frames: list[pd.DataFrame]) -> pd.DataFrame:
    return frames[0] if len(frames) == 1 else pd.concat(frames, ignore_index=True)
