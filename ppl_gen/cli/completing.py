"""The rows of a file with their missing cells filled in, all else as it stands there."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from ppl_gen.cli.tabular import Columns
from ppl_gen.data.holes import lacking
from ppl_gen.data.stream_files import open_rows
from ppl_gen.errors import DataError
from ppl_gen.results.rows import read_rows

if TYPE_CHECKING:
    from ppl_gen.data.table import Table
    from ppl_gen.results.fit import Fit

DRAW = "draw"


def completed_rows(fit: Fit, path: Path, *, draws: int | None, seed: int) -> Iterator[Columns]:
    """The file's columns in its order, cells that the model imputes among them; once, or once a draw.

    A column without gaps is as the file has it, whether the model reads it or not. A leaf that the file lacks
    stands behind the others. With draws, a first column `draw` counts them from 0.

    Raises:
        DataError: the rows do not fit the fit's columns and levels, or have a column `draw` of their own.

    """
    table = read_rows(fit.program, path)
    frame = _frame(fit, table, path)
    if draws is not None and DRAW in frame:
        raise DataError(
            f"{path}: has a column {DRAW!r}, by which the completed copies are told apart: rename it"
        )
    found = fit.impute(table, draws=draws, seed=seed)
    gaps = _gaps(fit, table)
    for number in range(draws or 1):
        columns: Columns = {} if draws is None else {DRAW: np.full(len(frame), number)}
        columns |= {str(name): frame[name].to_numpy() for name in frame}
        for name, place, header in gaps:
            copy = found[name] if draws is None else found[name][number]
            columns[header] = copy.reshape(len(frame), -1)[:, place]
        yield columns


def _gaps(fit: Fit, table: Table) -> list[tuple[str, int, str]]:
    """Each column with a missing cell: its node, its place there, its header."""
    schema, found = fit.program.schema, []
    for name in schema.roles.observed:
        if name in table.arrays and (mask := lacking(table.arrays[name])) is not None:
            missing = mask.any(axis=0)
            headers = schema.column_names(name)
            found += [(name, place, headers[place]) for place in np.flatnonzero(missing).tolist()]
    return found


def _frame(fit: Fit, table: Table, path: Path) -> pd.DataFrame:
    """The file as a frame; an array under the fit's own column names."""
    cells, _ = open_rows(path).whole()
    if isinstance(cells, pd.DataFrame):
        return cells
    schema = fit.program.schema
    headers = [header for name in table.arrays for header in schema.column_names(name)]
    return pd.DataFrame(np.asarray(cells).reshape(table.n_units, -1), columns=headers)
