"""What users pass for one node, as named columns: arrays, lists, tensors, series and frames."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import narwhals as nw
import numpy as np
import pandas as pd
from numpy.typing import NDArray

from ppl_gen.data.checks import at, listed, where
from ppl_gen.data.schema import default_columns
from ppl_gen.errors import DataError

NUMBER_TYPES = {"integer", "floating", "mixed-integer-float", "boolean", "decimal"}


@dataclass(frozen=True, eq=False)
class Raw:
    """The cells of one node before any check of values.

    Args:
        columns: their names.
        cells: (N, width) in one array, or a tuple of arrays (N,), each with a type of its own.
        named: whether the names are the user's own (a frame's header) rather than `x[0]`, `x[1]`.
        shape: the shape of one row as passed: (28, 28) for an array (N, 28, 28).

    """

    columns: tuple[str, ...]
    cells: NDArray[Any] | tuple[NDArray[Any], ...]
    named: bool = True
    shape: tuple[int, ...] = ()

    @property
    def n_rows(self) -> int:
        """Number of rows."""
        return len(self.cells[0]) if isinstance(self.cells, tuple) else len(self.cells)

    def column(self, j: int) -> NDArray[Any]:
        """Column j, (N,), in its own type."""
        return self.cells[j] if isinstance(self.cells, tuple) else self.cells[:, j]

    def select(self, columns: tuple[str, ...]) -> Raw:
        """The named columns, in this order."""
        at = [self.columns.index(column) for column in columns]
        return Raw(columns, tuple(self.column(j) for j in at), self.named)


def raw_entry(node: str, value: Any, *, dim: tuple[int, ...] | int | None) -> Raw:
    """One node's value in any form we read.

    Args:
        node: its name, for messages and for the names of columns.
        value: array, nested list, tensor, series or frame.
        dim: what the node declares; a tuple is held against the shape of a row.

    Raises:
        DataError: ragged, empty, complex, without rows, or of a type that holds no cells.

    """
    native = as_frame(value)
    if isinstance(native, nw.DataFrame):
        return frame_columns(native, header_of(native))
    if isinstance(native, nw.Series):
        name = native.name if isinstance(native.name, str) and native.name else node
        return Raw((name,), (_plain(node, native.to_numpy()),), named=name != node)
    array = to_array(node, value)
    shape = array.shape[1:]
    if array.ndim == 1 and math.prod(dim if isinstance(dim, tuple) else (dim or 1,)) != 1:
        raise DataError(
            f"{node!r} needs {dim} columns and is given a one-dimensional array of length {len(array)}: "
            "pass an array with one row for each unit"
        )
    # An axis of length 1 says nothing: grey images are (28, 28) as well as (1, 28, 28).
    differs = isinstance(dim, tuple) and [n for n in shape if n > 1] != [n for n in dim if n > 1]
    if len(shape) > 1 and isinstance(dim, tuple) and len(dim) > 1 and differs:
        raise DataError(f"{node!r} is declared with dim={list(dim)} and its rows have shape {list(shape)}")
    flat = array.reshape(len(array), -1)  # row-major, as images are
    return Raw(default_columns(node, flat.shape[1]), flat, named=False, shape=shape)


def frame_columns(frame: nw.DataFrame[Any], columns: Mapping[str, int]) -> Raw:
    """Some columns of a frame, by name and position, each in its own type."""
    return Raw(tuple(columns), tuple(_plain(name, frame[:, j].to_numpy()) for name, j in columns.items()))


def header_of(frame: nw.DataFrame[Any]) -> dict[str, int]:
    """Column name → position; names that are numbers become text.

    Raises:
        DataError: there is no column, or two have one name.

    """
    names = [str(column) for column in frame.columns]
    if not names or len(frame) == 0:
        raise DataError(f"the data are empty: {len(frame)} rows, {len(names)} columns")
    if repeated := sorted({name for name in names if names.count(name) > 1}):
        raise DataError(f"two columns of the frame have one name: {listed(repeated)}")
    return {name: place for place, name in enumerate(names)}


def as_frame(value: Any) -> Any:
    """A narwhals frame or series where `value` is one of a library that narwhals knows, else `value`.

    Raises:
        DataError: two columns have one name, or the frame is lazy.

    """
    try:
        native = nw.from_native(value, allow_series=True, pass_through=True)
    except nw.exceptions.DuplicateError as error:
        raise DataError(f"two columns of the frame have one name: {error}") from error
    if isinstance(native, nw.LazyFrame):
        raise DataError("the frame is lazy: pass frame.collect()")
    return native


def to_array(node: str, value: Any) -> NDArray[Any]:
    """A value as an array of at least one row and one column; lists keep the types of their cells.

    Raises:
        DataError: it cannot be read as one.

    """
    if hasattr(value, "toarray"):
        raise DataError(f"{node!r} is a sparse matrix; pass {node}.toarray()")
    if isinstance(value, np.ma.MaskedArray):
        value = _unmasked(value)
    if hasattr(value, "detach"):  # a tensor that asks for gradients refuses to become an array
        value = value.detach().cpu()
    try:
        array = np.asarray(value)
        if array.dtype.kind in "US" and not isinstance(value, np.ndarray):
            array = np.asarray(value, dtype=object)  # else [1, "a"] becomes ["1", "a"]
    except (ValueError, TypeError, RuntimeError) as error:
        raise DataError(f"{node!r} cannot be read as rows and columns: {_ragged(value) or error}") from error
    if array.ndim == 0:
        raise DataError(f"{node!r} is a single {type(value).__name__}, not rows of cells")
    if array.size == 0:
        raise DataError(f"{node!r} is empty: its shape is {array.shape}")
    return _plain(node, array)


def to_numbers(node: str, raw: Raw) -> NDArray[np.float64]:
    """All cells as float64, (N, width), C-contiguous; the user's own memory where it already is that.

    Missing and blank cells become NaN.

    Raises:
        DataError: a column has text, dates or integers that no float can stand for.

    """
    if isinstance(raw.cells, np.ndarray) and raw.cells.dtype.kind in "fiub":
        array = np.ascontiguousarray(raw.cells, dtype=np.float64)
        return array if array.flags.writeable else array.copy()  # torch warns at memory it must not write
    out = np.empty((raw.n_rows, len(raw.columns)))
    for j, column in enumerate(raw.columns):
        out[:, j] = _column_numbers(node, column, raw.column(j))
    return out


def is_numeric(cells: NDArray[Any]) -> bool:
    """Whether every cell of a column is a number, a boolean or missing, and some cell is not missing.

    Example:
        >>> is_numeric(np.array([1, None, " "], dtype=object)), is_numeric(np.array(["1"]))
        (True, False)

    """
    if cells.dtype.kind == "O":
        return pd.api.types.infer_dtype(cells[~blank(cells)], skipna=True) in NUMBER_TYPES
    return cells.dtype.kind in "fiub"


def blank(cells: NDArray[Any]) -> NDArray[np.bool_]:
    """Which cells of a column are missing: NaN, None, NA, or text without a letter, (N,)."""
    lost: NDArray[np.bool_] = np.asarray(pd.isna(cells))
    if cells.dtype.kind in "OU":
        lost |= np.array([isinstance(cell, str) and not cell.strip() for cell in cells.tolist()])
    return lost


def _column_numbers(node: str, column: str, cells: NDArray[Any]) -> NDArray[Any]:
    if cells.dtype.kind in "fiub":
        return cells
    if cells.dtype.kind in "mM":
        raise DataError(f"{where(column, node)} holds dates or durations, where numbers are needed")
    cells = cells.astype(object)
    holes = blank(cells)
    rest = cells[~holes]
    if rest.size and not is_numeric(rest):
        bad = np.array([not is_numeric(np.array([c], dtype=object)) for c in cells.tolist()]) & ~holes
        row, count = int(bad.argmax()), int(bad.sum())
        kind = "text" if isinstance(cells[row], str) else f"a {type(cells[row]).__name__}"
        raise DataError(
            f"{where(column, node)} holds {kind}, {cells[row]!r}, {at(row)}, "
            f"where numbers are needed; {count} such cell{'s' * (count != 1)}"
        )
    cells[holes] = np.nan  # its own copy: astype made one
    try:
        return cells.astype(np.float64)
    except OverflowError as error:
        raise DataError(f"{where(column, node)} holds an integer beyond the range of float64") from error


def _unmasked(array: Any) -> NDArray[Any]:
    """A masked array's cells, NaN or None where they are masked."""
    mask = np.ma.getmaskarray(array)
    if not mask.any():
        return np.asarray(array.data)
    if array.dtype.kind in "fiu":
        return np.where(mask, np.nan, array.data.astype(np.float64))
    cells = array.data.astype(object)
    cells[mask] = None
    return np.asarray(cells)


def _plain(name: str, array: NDArray[Any]) -> NDArray[Any]:
    """Refuse types that are never cells."""
    if array.dtype.kind == "c" or (
        array.dtype.kind == "O" and any(isinstance(cell, complex | np.complexfloating) for cell in array.flat)
    ):
        raise DataError(f"{name!r} holds complex numbers; pass the real and imaginary parts as two columns")
    if array.dtype.kind == "V":
        raise DataError(f"{name!r} is a structured array; pass a DataFrame")
    if array.dtype.kind == "O" and any(
        isinstance(cell, list | tuple | dict | np.ndarray) for cell in array.flat
    ):
        raise DataError(f"{name!r} is ragged: {_ragged(array.tolist()) or 'its cells are lists'}")
    return array


def _ragged(value: Any) -> str:
    """Which rows of nested lists differ in length, if that is what is wrong."""
    try:
        lengths = [len(row) for row in value]
    except TypeError:
        return ""
    other = next((i for i, length in enumerate(lengths) if length != lengths[0]), None)
    return "" if other is None else f"row 0 has {lengths[0]} cells and row {other} has {lengths[other]}"
