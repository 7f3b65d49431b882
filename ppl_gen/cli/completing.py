"""The rows of a file with their missing cells filled in, all else as it stands there."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from ppl_gen.cli.tabular import Columns
from ppl_gen.data.holes import lacking
from ppl_gen.data.sources import LARGEST_TABLE
from ppl_gen.data.stream_csv import csv_header
from ppl_gen.data.stream_files import Csv, open_rows
from ppl_gen.errors import DataError
from ppl_gen.results.rows import read_in_parts

if TYPE_CHECKING:
    from ppl_gen.data.table import Table
    from ppl_gen.results.fit import Fit

DRAW = "draw"


def completed_rows(fit: Fit, path: Path, *, draws: int | None, seed: int) -> Iterator[Columns]:
    """The file's columns in its order, cells that the model imputes among them; once, or once a draw.

    A column without gaps is as the file has it, whether the model reads it or not. A leaf that the file lacks
    stands behind the others. With draws, a first column `draw` counts them from 0. Of a file that is large enough
    to be streamed, a chunk's rows are completed, under all draws, before the next chunk's.

    Raises:
        DataError: the rows do not fit the fit's columns and levels, or have a column `draw` of their own.

    """
    parts = zip(read_in_parts(fit.program, path), _frames(path), strict=True)
    for i, (table, cells) in enumerate(parts):
        frame = _frame(fit, table, cells)
        if draws is not None and DRAW in frame:
            raise DataError(
                f"{path}: has a column {DRAW!r}, by which the completed copies are told apart: rename it"
            )
        yield from _completed(fit, table, frame, draws=draws, seed=seed + i)


def _completed(
    fit: Fit, table: Table, frame: pd.DataFrame, *, draws: int | None, seed: int
) -> Iterator[Columns]:
    found = fit.impute(table, draws=draws, seed=seed)
    gaps = _gaps(fit, table)
    for number in range(draws or 1):
        columns: Columns = {} if draws is None else {DRAW: np.full(len(frame), number)}
        columns |= {str(name): frame[name].to_numpy() for name in frame}
        for name, place, header in gaps:
            copy = found[name] if draws is None else found[name][number]
            columns[header] = copy.reshape(len(frame), -1)[:, place]
        yield columns


def _frames(path: Path) -> Iterator[Any]:
    """The cells of each part that `read_in_parts` makes of a file, all columns as they stand there."""
    source = open_rows(path)
    if source.bytes <= LARGEST_TABLE:
        yield source.whole()[0]
        return
    if isinstance(source, Csv):
        source = source.keeping(name for name in csv_header(source.paths[0]) if name)
    for chunk in source.chunks():
        yield chunk.cells


def _gaps(fit: Fit, table: Table) -> list[tuple[str, int, str]]:
    """Each column with a missing cell: its node, its place there, its header."""
    schema, found = fit.program.schema, []
    for name in schema.roles.observed:
        if name in table.arrays and (mask := lacking(table.arrays[name])) is not None:
            missing = mask.any(axis=0)
            headers = schema.column_names(name)
            found += [(name, place, headers[place]) for place in np.flatnonzero(missing).tolist()]
    return found


def _frame(fit: Fit, table: Table, cells: Any) -> pd.DataFrame:
    """The file's cells as a frame; an array's under the fit's own column names."""
    if isinstance(cells, pd.DataFrame):
        return cells
    schema = fit.program.schema
    headers = [header for name in table.arrays for header in schema.column_names(name)]
    return pd.DataFrame(np.asarray(cells).reshape(table.n_units, -1), columns=headers)
