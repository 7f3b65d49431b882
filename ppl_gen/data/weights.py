"""Weights of the rows: a column of the data, or numbers beside them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import narwhals as nw
import numpy as np
from numpy.typing import NDArray

from ppl_gen.data.checks import at, listed, missing
from ppl_gen.data.raw import Raw, frame_columns, header_of, raw_entry, to_numbers
from ppl_gen.declare.declared import nearest
from ppl_gen.declare.spec import Spec
from ppl_gen.errors import DataError

Weights = NDArray[np.float64]


def from_frame(
    frame: nw.DataFrame[Any], name: str, spec: Spec | None = None
) -> tuple[nw.DataFrame[Any], Raw]:
    """A frame without its column of weights, and that column.

    Raises:
        DataError: there is none of this name, or it is data by the declaration.

    """
    header = header_of(frame)
    _its_own(name, list(header), spec)
    others = [j for column, j in header.items() if column != name]
    return frame[:, others], frame_columns(frame, {name: header[name]})


def from_mapping(data: Mapping[Any, Any], name: str, spec: Spec | None = None) -> tuple[dict[Any, Any], Raw]:
    """A dictionary without its entry of weights, and that entry.

    Raises:
        DataError: there is none of this name, or it is data by the declaration.

    """
    _its_own(name, [str(key) for key in data], spec)
    raw = raw_entry(name, data[name], dim=None)
    raw = replace(raw, columns=(name,) * len(raw.columns), named=True)
    return {key: value for key, value in data.items() if key != name}, raw


def checked(raw: Raw, what: str, n_rows: int) -> Weights:
    """One number a row, (N,): finite, at least 0, not all 0, their sum finite.

    Args:
        raw: as it was passed.
        what: how messages name it: the column's name, or "weights".
        n_rows: N of the data.

    Raises:
        DataError: any of this does not hold.

    """
    cells = each_checked(raw, what, n_rows)
    with np.errstate(over="ignore"):
        sum_checked(float(cells.sum()), what)
    return cells


def sum_checked(total: float, what: str) -> None:
    """Refuse weights whose sum is 0 or no float."""
    if total == 0:
        raise DataError(f"{what!r} is 0 in every row: some row has to count")
    if not np.isfinite(total):
        raise DataError(f"the sum of {what!r} is beyond the range of float64: divide all by one number")


def each_checked(raw: Raw, what: str, n_rows: int) -> Weights:
    """One number a row, (N,): finite and at least 0; see `checked`."""
    if raw.n_rows != n_rows:
        raise DataError(f"{what!r} has {raw.n_rows} weights and the data {n_rows} rows; each row needs one")
    if len(raw.columns) != 1:
        raise DataError(f"{what!r} has {len(raw.columns)} columns; weights are one number a row")
    cells = np.array(to_numbers(what, Raw((what,), raw.cells, raw.named))[:, 0])
    if (lost := np.isnan(cells)).any():
        raise missing(
            what,
            what,
            count=int(lost.sum()),
            row=int(lost.argmax()),
            why="every row needs its weight: drop those rows",
        )
    for bad, rule in ((np.isinf(cells), "finite"), (cells < 0, "0 or more")):
        if bad.any():
            row = int(bad.argmax())
            raise DataError(f"{what!r} holds {cells[row]:g} {at(row)}, where weights are {rule}")
    return cells


def _its_own(name: str, there: list[str], spec: Spec | None) -> None:
    if name not in there:
        raise DataError(
            f"the data lack the column of weights {name!r}; they have {listed(there)}{nearest(name, there)}"
        )
    if spec is None:
        return
    owner = next((node for node, own in (spec.columns or {}).items() if name in own), None)
    if owner is None and name in spec.nodes:
        owner = name
    if owner is not None:
        raise DataError(f"column {name!r} belongs to node {owner!r}; weights need a column of their own")
