"""Where the nodes' cells stand in chunks of files, and how a chunk becomes a table's arrays."""

from __future__ import annotations

from collections.abc import Generator, Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace
from typing import Any

import narwhals as nw
import numpy as np
import pandas as pd
from numpy.typing import NDArray

from ppl_gen.data import checks, columns
from ppl_gen.data import weights as weighting
from ppl_gen.data.levels import distinct, encode
from ppl_gen.data.raw import Raw, frame_columns, header_of, to_numbers
from ppl_gen.data.schema import Schema
from ppl_gen.data.sizes import is_scalar
from ppl_gen.data.sources import Chunk, Source
from ppl_gen.data.stream import Block
from ppl_gen.declare.spec import Spec
from ppl_gen.errors import DataError

Array = NDArray[Any]


@dataclass(frozen=True)
class Layout:
    """Where the nodes' cells stand in each chunk, as the first one settles it."""

    columns: dict[str, tuple[str, ...]]
    weights: str | None
    notes: list[str]

    def raws(self, cells: Any, spec: Spec) -> tuple[dict[str, Raw], Raw | None]:
        """The cells of each node, and the weights."""
        if isinstance(cells, pd.DataFrame):
            frame = nw.from_native(cells, eager_only=True)
            header = header_of(frame)
            found = {
                node: frame_columns(frame, {name: header[name] for name in own})
                for node, own in self.columns.items()
            }
            found = {node: raw if spec.is_category(node) else _parsed(raw) for node, raw in found.items()}
            if self.weights is None:
                return found, None
            return found, frame_columns(frame, {self.weights: header[self.weights]})
        beside = None
        if isinstance(cells, Mapping):
            if self.weights is not None:
                cells, beside = weighting.from_mapping(cells, self.weights, spec)
            return columns.from_mapping(cells, spec, None)[0], beside
        return columns.from_array(cells, spec, None)[0], None


def with_raws(
    source: Source, layout: Layout, spec: Spec
) -> Generator[tuple[Chunk, dict[str, Raw], Raw | None]]:
    """Each chunk, with the cells of each node and the weights."""
    with closing(source.chunks()) as chunks:
        for chunk in chunks:
            with located(chunk):
                found = layout.raws(chunk.cells, spec)
            yield chunk, *found


@contextmanager
def located(chunk: Chunk) -> Iterator[None]:
    """Errors name the file, rows as they are counted there, and between which rows cells were counted."""
    cells = chunk.cells
    length = len(next(iter(cells.values()))) if isinstance(cells, Mapping) else len(cells)
    try:
        with checks.counting_from(chunk.first):
            yield
    except DataError as error:
        where = f"rows {chunk.first} to {chunk.first + length - 1} were looked at together"
        raise DataError(f"{chunk.file}: {error} ({where})") from error


def layout_of(source: Source, spec: Spec, weights: str | None) -> Layout:
    """The columns of each node, by the rules that frames and arrays follow, from the first chunk."""
    with closing(source.chunks()) as chunks:
        chunk = next(chunks, None)
    if chunk is None:
        raise DataError(f"{', '.join(map(str, source.paths))}: the data are empty")
    cells = chunk.cells
    with located(chunk):
        if isinstance(cells, pd.DataFrame):
            frame = nw.from_native(cells, eager_only=True)
            there = list(frame.columns)
            if weights is not None:
                frame, _ = weighting.from_frame(frame, weights, spec)
            chosen, notes = columns.from_frame(frame, spec, None)
        elif isinstance(cells, Mapping):
            there = list(cells)
            if weights is not None:
                cells, _ = weighting.from_mapping(cells, weights, spec)
            chosen, notes = columns.from_mapping(cells, spec, None)
        else:
            there = []
            if weights is not None:
                raise DataError(f"the data are one array, which has no column {weights!r}")
            chosen, notes = columns.from_array(cells, spec, None)
        columns.present(chosen, spec, None, "observed", [str(name) for name in there])
    return Layout({name: raw.columns for name, raw in chosen.items()}, weights, [*source.notes, *notes])


def _parsed(raw: Raw) -> Raw:
    """Of a column that is text in a chunk, the cells that are numbers as numbers: the others are to be named."""
    if not isinstance(raw.cells, tuple) or all(cells.dtype.kind in "fiub" for cells in raw.cells):
        return raw
    made = []
    for cells in raw.cells:
        if cells.dtype.kind == "O" and any(isinstance(cell, str) for cell in cells):
            numbers = np.asarray(pd.to_numeric(pd.Series(cells), errors="coerce"))
            cells = np.where(np.isnan(numbers), cells, numbers.astype(object))
        made.append(cells)
    return replace(raw, cells=tuple(made))


def narrowed_to(source: Source, layout: Layout) -> Source:
    """The files, the columns that are read alone."""
    wanted = [column for own in layout.columns.values() for column in own]
    return source.only([*wanted, *([] if layout.weights is None else [layout.weights])])


@dataclass(frozen=True)
class Conversion:
    """A chunk of files as a table's arrays, on the passes after the first, which has checked every cell."""

    spec: Spec
    schema: Schema
    layout: Layout

    def __call__(self, chunk: Chunk) -> Block:
        """The arrays, and the weights."""
        with located(chunk):
            raws, beside = self.layout.raws(chunk.cells, self.spec)
            arrays = {name: self._array(name, raw) for name, raw in raws.items()}
            if beside is None:
                return Block(arrays, None)
            return Block(arrays, to_numbers(str(self.layout.weights), beside)[:, 0])

    def _array(self, name: str, raw: Raw) -> Array:
        if name not in self.schema.k:
            return to_numbers(name, raw)
        k = self.schema.k[name]
        codes = [
            encode(distinct(name, column, raw.column(j)), self.schema.levels[name][j], k)
            for j, column in enumerate(raw.columns)
        ]
        return codes[0] if is_scalar(self.spec, name, len(codes)) else np.stack(codes, axis=1)
