"""A CSV file as a frame: separators, blanks, and rows with more or fewer cells than the header."""

from __future__ import annotations

import csv
import warnings
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import narwhals as nw
import pandas as pd

from ppl_gen.declare.declared import nearest
from ppl_gen.errors import DataError

# Not pandas' own list, which takes the answer "None" for a missing one.
BLANK = ["", "NA", "N/A", "n/a", "#N/A", "<NA>", "NaN", "nan", "null", "NULL"]


def read_csv(path: Path) -> tuple[nw.DataFrame[Any], list[str]]:
    """A CSV file as a frame, and warnings; an unnamed first column that only counts the rows is dropped.

    Blank cells and NA, NaN, N/A, null are missing. A file whose name says .tsv has tabs.

    Args:
        path: of the file.

    Raises:
        DataError: there is no such file, or it is not a table.

    """
    if not path.is_file():
        beside = [p.name for p in path.parent.glob("*")] if path.parent.is_dir() else []
        raise DataError(f"{path}: no such file{nearest(path.name, beside)}")
    if path.suffix in (".parquet", ".xlsx", ".feather", ".npy", ".npz"):
        raise DataError(f"{path}: CSV files are read; load this one yourself and pass the frame or the array")
    separator = "\t" if ".tsv" in path.suffixes else ","
    frame, header = _parsed(path, separator)
    twice = header[header.duplicated()].unique().tolist()
    if twice:
        raise DataError(f"{path}: column {twice[0]!r} stands more than once in the header")
    first = str(frame.columns[0])
    if len(frame.columns) == 1 and (marks := [mark for mark in ";\t|" if mark in first]):
        raise DataError(f"{path}: columns seem to be separated by {marks[0]!r}, where a CSV file has commas")
    notes = _cut_short(path, separator, frame)
    for name in frame.columns:
        if not pd.api.types.is_numeric_dtype(frame[name]):
            frame[name] = without_blanks(frame[name])
    if first == "Unnamed: 0":
        frame = frame.iloc[:, 1:]
        notes.append("the first column has no name (a row index, it seems) and is not read")
    return nw.from_native(frame, eager_only=True), notes


def _parsed(path: Path, separator: str) -> tuple[pd.DataFrame, pd.Series[Any]]:
    """The frame, and the header as it is written."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", pd.errors.ParserWarning)
            frame = pd.read_csv(
                path,
                sep=separator,
                low_memory=False,
                keep_default_na=False,
                na_values=BLANK,
                index_col=False,  # else a row with a cell too many shifts all columns by one
            )
        header = pd.read_csv(path, sep=separator, header=None, nrows=1, dtype=str).iloc[0].dropna()
    except pd.errors.EmptyDataError as error:
        raise DataError(f"{path}: the file is empty") from error
    except (pd.errors.ParserError, pd.errors.ParserWarning) as error:
        told = longer_than_header(path, separator) or str(error).strip()
        raise DataError(f"{path}: not readable as CSV: {told}") from error
    except (UnicodeError, OSError) as error:
        raise DataError(f"{path}: not readable as CSV: {error}") from error
    return frame, header


def longer_than_header(path: Path, separator: str, *, blanks: bool = True) -> str:
    """The first row with more cells than the header, in words; "" where none is found.

    Args:
        path: of the file.
        separator: between its cells.
        blanks: whether a row counts that has nothing but blanks too much.

    """
    for line, width, row in _uneven(path, separator):
        if len(row) > width and (blanks or any(cell.strip() for cell in row[width:])):
            return f"line {line} has {len(row)} cells, and the header names {width}"
    return ""


def _cut_short(path: Path, separator: str, frame: pd.DataFrame) -> list[str]:
    """A note of rows with fewer cells than the header; a spreadsheet leaves out blanks at a line's end."""
    if not frame.iloc[:, -1].isna().any():
        return []
    short = [line for line, width, row in _uneven(path, separator) if len(row) < width]
    if not short:
        return []
    rows = "1 row has" if len(short) == 1 else f"{len(short)} rows have"
    return [f"{rows} fewer cells than the header, line {short[0]} first: what they lack is taken as missing"]


def _uneven(path: Path, separator: str) -> Iterator[tuple[int, int, list[str]]]:
    """Each row of another width than the header: its line, the header's width, its cells; none if compressed."""
    if path.suffix.lower() not in (".csv", ".tsv", ".txt", ""):
        return
    with path.open(newline="", encoding="utf-8-sig", errors="replace") as file, suppress(csv.Error):
        reader = csv.reader(file, delimiter=separator)
        width = next((len(row) for row in reader if row), 0)
        for row in reader:
            if row and len(row) != width:
                yield reader.line_num, width, row


def without_blanks(column: pd.Series[Any]) -> pd.Series[Any]:
    """A column of text in which cells of mere spaces are missing; of numbers, if those were all its text."""
    if not pd.api.types.is_string_dtype(column):
        return column
    blank = column.str.strip().isin(BLANK)
    if not blank.any():
        return column
    rest = column.mask(blank)
    try:
        return pd.to_numeric(rest)
    except (ValueError, TypeError):
        return rest
