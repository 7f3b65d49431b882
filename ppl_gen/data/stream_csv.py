"""A CSV file a chunk at a time, by the rules of `csv_files`."""

from __future__ import annotations

import warnings
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

import pandas as pd

from ppl_gen.data.csv_files import BLANK, longer_than_header, without_blanks
from ppl_gen.errors import DataError


def csv_header(path: Path) -> list[str]:
    """The names in a file's first line; "" where a column has none.

    Raises:
        DataError: the file is empty or no table, or two columns have one name.

    """
    try:
        line = pd.read_csv(path, sep=_separator(path), header=None, nrows=1, dtype=str, keep_default_na=False)
    except pd.errors.EmptyDataError as error:
        raise DataError(f"{path}: the file is empty") from error
    except (pd.errors.ParserError, UnicodeError, OSError) as error:
        raise DataError(f"{path}: not readable as CSV: {error}") from error
    names = [str(name) for name in line.iloc[0]]
    twice = [name for name in names if name and names.count(name) > 1]
    if twice:
        raise DataError(f"{path}: column {twice[0]!r} stands more than once in the header")
    if len(names) == 1 and (marks := [mark for mark in ";\t|" if mark in names[0]]):
        raise DataError(f"{path}: columns seem to be separated by {marks[0]!r}, where a CSV file has commas")
    return names


def csv_chunks(
    path: Path, read: list[str], size: int, text: Collection[str]
) -> Iterator[tuple[int, pd.DataFrame]]:
    """The row each chunk begins at, and the chunk: some columns, those in `text` as they are written.

    Where all columns are read, a row with more cells than the header is refused; else see `refuse_longer_rows`.

    Raises:
        DataError: a line is not like the header; the lines are counted from 1.

    """
    try:
        with _opened(path, read, size, text) as frames:
            first = 0
            while (frame := _next(frames)) is not None:
                yield first, _cells(frame[read], text)
                first += len(frame)
    except (pd.errors.ParserError, pd.errors.ParserWarning) as error:
        told = longer_than_header(path, _separator(path)) or str(error).strip()
        raise DataError(f"{path}: not readable as CSV: {told}") from error
    except (UnicodeError, OSError) as error:
        raise DataError(f"{path}: not readable as CSV: {error}") from error


def refuse_longer_rows(path: Path) -> None:
    """Refuse a row with more cells than the header, blanks aside: pandas drops them where it reads some columns.

    Raises:
        DataError: naming the line and both counts.

    """
    if told := longer_than_header(path, _separator(path), blanks=False):
        raise DataError(f"{path}: not readable as CSV: {told}")


def _opened(path: Path, read: list[str], size: int, text: Collection[str]) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("error", pd.errors.ParserWarning)
        return pd.read_csv(
            path,
            sep=_separator(path),
            usecols=None if read == csv_header(path) else read,
            dtype={name: str for name in read if name in text},
            chunksize=size,
            low_memory=False,
            keep_default_na=False,
            na_values=BLANK,
            index_col=False,
        )


def _next(frames: Any) -> pd.DataFrame | None:
    with warnings.catch_warnings():
        warnings.simplefilter("error", pd.errors.ParserWarning)
        found: pd.DataFrame | None = next(frames, None)
    return found


def _cells(frame: pd.DataFrame, text: Collection[str]) -> pd.DataFrame:
    """Cells of mere spaces are missing."""
    made = {}
    for name, own in frame.items():
        if name in text:
            own = own.mask(own.str.strip().isin(BLANK))
        elif not pd.api.types.is_numeric_dtype(own):
            own = without_blanks(own)
        made[name] = own
    return pd.DataFrame(made, copy=False)


def _separator(path: Path) -> str:
    return "\t" if ".tsv" in path.suffixes else ","
