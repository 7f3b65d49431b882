"""The first pass over streamed rows: every cell checked, and what all rows together settle."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ppl_gen.data import checks, holes
from ppl_gen.data import weights as weighting
from ppl_gen.data.columns import Need
from ppl_gen.data.levels import distinct, learn_levels, oddities
from ppl_gen.data.raw import Raw
from ppl_gen.data.reading import check_width, checked_numbers, discrete_nodes, read_table
from ppl_gen.data.schema import Level, Schema
from ppl_gen.data.sizes import Claim, Sizes, declared_sizes, is_scalar, settle
from ppl_gen.data.sources import LARGEST_TABLE, Place, Rows, Source
from ppl_gen.data.stream import StreamedTable, ahead
from ppl_gen.data.stream_files import Csv, open_rows
from ppl_gen.data.stream_layout import Conversion, Layout, layout_of, located, narrowed_to, with_raws
from ppl_gen.data.survey import Levels, Moments, Sample
from ppl_gen.data.table import Table
from ppl_gen.declare.spec import Spec
from ppl_gen.errors import DataError

SAMPLE_ROWS = 20_000
SAMPLE_SEED = 0  # the sample is part of the data: the same file, the same rows

Array = NDArray[Any]


def read_files(data: Place | Rows, spec: Spec, *, schema: Schema | None, need: Need, weights: Any) -> Table:
    """Files as a table: in memory where their rows fit, else, and where `Rows` asks for it, streamed.

    See `read_table` for the arguments and errors.
    """
    source = open_rows(data)
    if schema is None and (isinstance(data, Rows) or source.bytes > LARGEST_TABLE):
        if weights is not None and not isinstance(weights, str):
            raise DataError("rows that are streamed take their weights from a column: give its name")
        return stream_table(source, spec, weights=weights)
    cells, notes = source.whole()
    try:
        table = read_table(cells, spec, schema=schema, need=need, weights=weights)
    except DataError as error:
        raise DataError(f"{', '.join(map(str, source.paths))}: {error}") from error
    return replace(table, warnings=(*notes, *table.warnings))


def stream_table(source: Source, spec: Spec, *, weights: str | None = None) -> StreamedTable:
    """Read files once from end to end, check every cell, and settle the schema.

    Args:
        source: the files.
        spec: the declaration.
        weights: the column, or the entry, that says how often each row counts. Default: once.

    Raises:
        DataError: the data are wrong; the message names the file, the column and the row in it.
        SpecError: sizes that are declared twice and differ.

    """
    layout = layout_of(source, spec, weights)
    narrowed = narrowed_to(source, layout)
    if isinstance(narrowed, Csv) and not narrowed.text:
        narrowed.check_widths()
    found = _Survey(spec, layout)
    with closing(ahead(with_raws(narrowed, layout, spec))) as chunks:
        for chunk, raws, beside in chunks:
            with located(chunk):
                found.add(raws, beside)
    mixed = [own.column for per in found.levels.values() for own in per if own.settled().mixed]
    if mixed and isinstance(source, Csv) and not source.text:
        # Where one cell of a column is text all are, as if the file had been read at once.
        return stream_table(source.keeping(mixed), spec, weights=weights)
    return found.settled(narrowed)


def chunk_tables(source: Source, spec: Spec, schema: Schema, need: Need) -> Iterator[Table]:
    """New rows for a fitted model, a chunk at a time, each held against its schema.

    Raises:
        DataError: the rows do not fit; the message names the file, the column and the row in it.

    """
    if isinstance(source, Csv):
        # A chunk may show only digits where the training data had words beside them.
        levels = zip(schema.columns.values(), map(schema.levels.get, schema.columns), strict=True)
        source = source.keeping(
            column
            for own, per in levels
            for column, known in zip(own, per or (), strict=False)
            if known is not None and any(isinstance(level, str) for level in known)
        )
    with closing(ahead(source.chunks())) as chunks:
        for chunk in chunks:
            with located(chunk):
                table = read_table(chunk.cells, spec, schema=schema, need=need)
            yield table


@dataclass
class _Survey:
    """What the first pass adds up."""

    spec: Spec
    layout: Layout
    n_rows: int = 0
    weight_sum: float = 0.0
    bare: int = 0  # rows without an observed value
    moments: dict[str, Moments] = field(default_factory=dict)
    levels: dict[str, list[Levels]] = field(default_factory=dict)
    holes: set[str] = field(default_factory=set)

    def __post_init__(self) -> None:
        self.sample = Sample(SAMPLE_ROWS, SAMPLE_SEED)
        self.roles = self.spec.roles(present=tuple(self.layout.columns))
        self.declared = declared_sizes(self.spec)
        for name, own in self.layout.columns.items():
            check_width(name, own, self.declared.dims.get(name))
            if self.spec.is_category(name):
                self.levels[name] = [Levels(name, column) for column in own]
            self.moments[name] = Moments(len(own))

    def add(self, raws: Mapping[str, Raw], beside: Raw | None) -> None:
        """Take in one chunk."""
        n_rows = checks.equal_lengths({name: raw.n_rows for name, raw in raws.items()})
        weights = None if beside is None else weighting.each_checked(beside, str(self.layout.weights), n_rows)
        arrays: dict[str, Array] = {}
        for name, raw in raws.items():
            if name in self.levels:
                cells = [
                    own.add(distinct(name, own.column, raw.column(j)))
                    for j, own in enumerate(self.levels[name])
                ]
                arrays[name] = np.stack(cells, axis=1)
            else:
                arrays[name] = checked_numbers(self.spec, name, raw)
        checks.within_totals(self.spec, self.layout.columns, arrays)
        self._add_holes(arrays, weights)
        self.n_rows += n_rows
        self.weight_sum += float(n_rows if weights is None else weights.sum())
        self.sample.add(arrays if weights is None else {**arrays, "": weights})

    def _add_holes(self, arrays: Mapping[str, Array], weights: NDArray[np.float64] | None) -> None:
        lost = {name: holes.lacking(array) for name, array in arrays.items()}
        for name, mask in lost.items():
            if mask is not None:
                k = self._k_so_far(name)
                holes.allowed(self.spec, name, self.layout.columns[name], mask, k)
                self.holes.add(name)
            cells = arrays[name]
            if name in self.levels:
                cells = cells.astype(np.float64) if mask is None else np.where(mask, np.nan, cells)
            self.moments[name].add(cells, weights)
        masks = [lost[name] for name in self.roles.observed]
        if all(mask is not None for mask in masks):
            self.bare += int(
                np.logical_and.reduce([mask.all(axis=1) for mask in masks if mask is not None]).sum()
            )

    def _k_so_far(self, name: str) -> int | None:
        claim = self.declared.k.get(name)
        if claim is not None:
            return claim.size
        return max((len(own.numbers) for own in self.levels.get(name, ())), default=None)

    def settled(self, source: Source) -> StreamedTable:
        """The table that all rows make."""
        if self.layout.weights is not None:
            weighting.sum_checked(self.weight_sum, self.layout.weights)
        found = Sizes({name: Claim(len(own), "") for name, own in self.layout.columns.items()}, {})
        levels: dict[str, tuple[tuple[Level, ...] | None, ...]] = {}
        notes = list(self.layout.notes)
        for name, own in self.levels.items():
            claim = self.declared.k.get(name)
            every = [column.settled() for column in own]
            per, k = learn_levels(every, None if claim is None else claim.size)
            found.k[name], levels[name] = Claim(k, ""), tuple(per)
            inner = name not in (*self.spec.leaves, *self.spec.inputs)
            notes += [note for column in every for note in oddities(column, label=inner)]
        for name in self.holes:
            empty = self.moments[name].mass == 0
            holes.some_value(self.spec, name, self.layout.columns[name], empty[None, :], None)
        dims, sizes = settle(self.spec, self.declared, found)
        checks.enough_rows(self.roles, sizes, self.n_rows, self.weight_sum)
        schema = self._schema(dims, sizes, levels)
        notes += self._notes(schema)
        arrays = self.sample.settled()
        weights = arrays.pop("", None)
        for name, own in self.levels.items():
            codes = [
                column.recoded(arrays[name][:, j], levels[name][j], sizes[name])
                for j, column in enumerate(own)
            ]
            arrays[name] = codes[0] if is_scalar(self.spec, name, len(own)) else np.stack(codes, axis=1)
        numeric = {name: own for name, own in self.moments.items() if name not in levels}
        return StreamedTable(
            schema,
            arrays,
            self.n_rows,
            tuple(notes),
            frozenset(self.holes),
            weights,
            discrete_nodes(self.spec, arrays),
            source=source,
            convert=Conversion(self.spec, schema, self.layout),
            weight_sum=self.weight_sum,
            low={name: own.low for name, own in numeric.items()},
            high={name: own.high for name, own in numeric.items()},
            seen={name: own.mass for name, own in numeric.items()},
        )

    def _schema(
        self,
        dims: dict[str, int],
        sizes: dict[str, int],
        levels: dict[str, tuple[tuple[Level, ...] | None, ...]],
    ) -> Schema:
        moments = {
            name: own.settled()
            for name, own in self.moments.items()
            if name not in levels and self.spec.nodes[name].support != "boolean"
        }
        leaves = self.spec.leaves
        return Schema(
            roles=self.roles,
            dims=dims,
            k=sizes,
            columns=dict(self.layout.columns),
            levels=levels,
            centre={name: own[0] for name, own in moments.items()},
            spread={name: own[1] for name, own in moments.items()},
            partial=tuple(n for n in self.roles.observed if n in self.holes and n not in leaves),
            holes=tuple(n for n in self.roles.observed if n in self.holes and n in leaves),
        )

    def _notes(self, schema: Schema) -> list[str]:
        same = {name: self.moments[name].constant for name in self.roles.observed}
        notes = checks.constant_columns(self.spec, schema, same, self.n_rows)
        if self.bare:
            rows = "1 row has" if self.bare == 1 else f"{self.bare} rows have"
            notes.append(f"{rows} no observed value: kept, but nothing is learned there")
        return notes
