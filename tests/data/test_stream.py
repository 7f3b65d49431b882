"""Rows that stay in their files say the same as rows in memory: schema, errors, blocks."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from ppl_gen import Binomial, By, Categorical, Input, Normal, Poisson, Rows, Spec
from ppl_gen.data.reading import read_table
from ppl_gen.data.schema import Schema
from ppl_gen.data.sources import LARGEST_TABLE
from ppl_gen.data.stream import StreamedTable, ahead, blocks_of
from ppl_gen.data.stream_files import open_rows
from ppl_gen.data.stream_reading import chunk_tables
from ppl_gen.errors import DataError

N, CHUNK = 503, 100
R = np.random.default_rng(0)
FRAME = pd.DataFrame(
    {
        "a": R.normal(1e8, 1, N),
        "b": R.normal(0, 1e-200, N),
        "n": R.poisson(3, N),
        "c": np.array(["u", "v", "w"])[R.integers(0, 3, N)],
        "w": R.integers(1, 4, N) / 2,
        "unread": "text",
    }
)
FRAME.loc[17, "a"] = np.nan
FRAME.loc[N - 1, "c"] = "seen only once"
SPEC = Spec(
    model={
        "z": Categorical(2),
        "x": Normal(loc=By("z"), scale=By("z")),
        "n": Poisson(rate=By("z")),
        "c": Categorical(probs=By("z")),
    },
    columns={"x": ("a", "b"), "n": ("n",), "c": ("c",)},
)
LEAF = Spec(model={"z": Categorical(2), "x": Normal(loc=By("z"))})


@pytest.fixture
def files(tmp_path: Path) -> dict[str, Path]:
    parts = tmp_path / "parts"
    parts.mkdir()
    FRAME.to_csv(tmp_path / "rows.csv", index=False)
    FRAME.to_parquet(tmp_path / "rows.parquet", row_group_size=CHUNK)
    for i in range(3):
        own = FRAME.iloc[i * 200 : (i + 1) * 200]
        own.to_parquet(parts / f"{i}.parquet", row_group_size=CHUNK)
    return {"csv": tmp_path / "rows.csv", "parquet": tmp_path / "rows.parquet", "folder": parts}


def close(schema: Schema, other: Schema) -> bool:
    """Equal but for what rounding allows the moments, which are summed in another order."""
    mine, theirs = schema.to_dict(), other.to_dict()
    for name, centre in theirs["centre"].items():
        size = np.abs(centre) + theirs["spread"][name]
        for key in ("centre", "spread"):
            apart = np.abs(np.subtract(mine[key][name], theirs[key][name]))
            assert (apart <= N * np.finfo(float).eps * size).all()
    for moments in (mine, theirs):
        del moments["centre"], moments["spread"]
    return mine == theirs


@pytest.mark.parametrize("weights", [None, "w"])
@pytest.mark.parametrize("kind", ["csv", "parquet", "folder"])
@pytest.mark.parametrize("size", [None, 70])
def test_a_streamed_file_settles_and_gives_what_the_same_rows_in_memory_do(
    files: dict[str, Path], kind: str, size: int | None, weights: str | None
) -> None:
    memory = read_table(FRAME, SPEC, weights=weights)
    table = read_table(Rows(files[kind], chunk_rows=size), SPEC, weights=weights)
    assert isinstance(table, StreamedTable)
    assert close(table.schema, memory.schema)
    assert (table.n_units, table.total, table.holes) == (N, memory.total, memory.holes)
    assert table.warnings == memory.warnings
    for ours, theirs in zip(blocks_of(table, 64), blocks_of(memory, 64), strict=True):
        for name, array in theirs.arrays.items():
            np.testing.assert_array_equal(ours.arrays[name], array)
        np.testing.assert_array_equal(ours.weights, theirs.weights)
    sample = table.sample.arrays  # all rows, since there are fewer than a sample has
    for name, array in memory.arrays.items():
        np.testing.assert_array_equal(sample[name], array)
    mixed = np.concatenate([block.arrays["n"] for block in table.blocks(50, seed=1)])
    assert not np.array_equal(mixed, memory.arrays["n"])
    np.testing.assert_array_equal(np.sort(mixed, axis=0), np.sort(memory.arrays["n"], axis=0))


@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize("dtype", [np.float64, np.float32, np.int16])
def test_npy_files_of_any_layout_are_streamed(tmp_path: Path, order: str, dtype: type) -> None:
    x = np.asarray(R.normal(size=(N, 3)) * 100, dtype=dtype, order=order)  # type: ignore[call-overload]
    np.save(tmp_path / "x.npy", x)
    for rows in (Rows(tmp_path / "x.npy", chunk_rows=60), Rows({"x": tmp_path / "x.npy"}, chunk_rows=60)):
        table = read_table(rows, LEAF)
        found = np.concatenate([block.arrays["x"] for block in blocks_of(table, 37)])
        np.testing.assert_array_equal(found, x.astype(np.float64))
        assert close(table.schema, read_table(x.astype(np.float64), LEAF).schema)
    assert not isinstance(
        read_table(tmp_path / "x.npy", LEAF), StreamedTable
    )  # small: in memory, as asked by none


def test_a_path_is_streamed_only_where_its_rows_are_large(tmp_path: Path, files: dict[str, Path]) -> None:
    assert not isinstance(read_table(files["parquet"], SPEC), StreamedTable)
    large = np.lib.format.open_memmap(
        tmp_path / "large.npy", "w+", np.float64, (LARGEST_TABLE // 8 + 1, 1)
    )  # a hole in the disk: no bytes are written
    del large
    assert open_rows(tmp_path / "large.npy").bytes > LARGEST_TABLE
    assert close(read_table(str(files["folder"] / "*.parquet"), SPEC).schema, read_table(FRAME, SPEC).schema)


BAD = {
    "infinite": (
        lambda frame: frame.assign(b=frame.b.where(frame.index != 357, np.inf)),
        "column 'b' of 'x'",
    ),
    "fraction": (
        lambda frame: frame.assign(n=frame.n.where(frame.index != 357, 0.5)),
        "column 'n' holds 0.5",
    ),
}


@pytest.mark.parametrize("bad", BAD)
@pytest.mark.parametrize("kind", ["csv", "parquet"])
def test_a_bad_cell_far_into_a_file_is_named_by_file_column_and_row(
    tmp_path: Path, bad: str, kind: str
) -> None:
    spoil, said = BAD[bad]
    path = tmp_path / f"bad.{kind}"
    spoilt = spoil(FRAME)
    if kind == "csv":
        spoilt.to_csv(path, index=False)
    else:
        spoilt.to_parquet(path, row_group_size=CHUNK)
    with pytest.raises(DataError) as told:
        read_table(Rows(path, chunk_rows=CHUNK), SPEC)
    assert str(path) in str(told.value)
    assert said in str(told.value)
    assert "in row 357 (counting from 0)" in str(told.value)


def test_words_that_come_late_in_a_column_of_numbers_are_found(tmp_path: Path) -> None:
    text = FRAME.assign(a=FRAME.a.astype(object).where(FRAME.index != 357, "much"), c=np.arange(N) % 2)
    text["c"] = text.c.astype(object).where(text.index != 400, "maybe")
    text.to_csv(tmp_path / "late.csv", index=False)
    rows = Rows(tmp_path / "late.csv", chunk_rows=CHUNK)
    with pytest.raises(DataError, match=r"column 'a' of 'x' holds text, 'much', in row 357"):
        read_table(rows, SPEC)
    only = Spec(model={"c": Categorical()}, columns={"c": ("c",)})
    table = read_table(rows, only)
    assert (
        table.schema.levels
        == read_table(tmp_path / "late.csv", only).schema.levels
        == {"c": (("0", "1", "maybe"),)}
    )
    # A new file that shows digits alone is read as the words they are.
    FRAME.assign(c=np.arange(N) % 2).to_csv(tmp_path / "new.csv", index=False)
    new = open_rows(Rows(tmp_path / "new.csv", chunk_rows=CHUNK))
    codes = np.concatenate([t.arrays["c"] for t in chunk_tables(new, only, table.schema, "all")])
    np.testing.assert_array_equal(codes, np.arange(N) % 2)


def test_what_is_no_file_of_rows_is_told(tmp_path: Path, files: dict[str, Path]) -> None:
    other = FRAME.drop(columns="w")
    other.to_parquet(tmp_path / "other.parquet")
    np.save(tmp_path / "objects.npy", np.array([{}], dtype=object))
    (tmp_path / "broken.parquet").write_bytes(b"PAR1")
    cases = {
        "no such file; did you mean 'rows.csv'": tmp_path / "row.csv",
        "its columns": [files["parquet"], tmp_path / "other.parquet"],
        "not readable as an .npy": tmp_path / "objects.npy",
        "not readable as Parquet": tmp_path / "broken.parquet",
        "files of one form": [files["parquet"], files["csv"]],
        "each node needs one .npy": {"x": files["csv"]},
        "take their weights from a column": None,
    }
    for said, paths in cases.items():
        with pytest.raises(DataError, match=said):
            read_table(Rows(paths or files["csv"]), SPEC, weights=None if paths else np.ones(N))  # type: ignore[arg-type]
    with pytest.raises(DataError, match="chunk_rows must be a whole number"):
        Rows("x.csv", chunk_rows=0)


def test_without_pyarrow_the_line_that_installs_it_is_told(
    files: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(DataError, match=r"pip install 'ppl_gen\[parquet\]'"):
        read_table(files["parquet"], SPEC)


def test_what_fails_while_reading_ahead_is_raised_where_the_rows_are_used() -> None:
    def items() -> object:
        yield 1
        raise DataError("the disk is gone")

    read = ahead(items())  # type: ignore[arg-type]
    assert next(read) == 1
    with pytest.raises(DataError, match="the disk is gone"):
        next(read)


@pytest.mark.parametrize(("total", "said"), [("n", "total_count (n) is 4"), (5, "total_count is 5")])
def test_more_successes_than_trials_are_found_in_a_later_chunk(
    tmp_path: Path, total: object, said: str
) -> None:
    frame = pd.DataFrame({"n": [5] * 30 + [4] * 10, "y": [3] * 35 + [9] + [2] * 4})
    frame.to_csv(tmp_path / "y.csv", index=False)
    model = {"n": Input(1)} if total == "n" else {}
    spec = Spec(model=model | {"z": Categorical(2), "y": Binomial(1, total_count=total, probs=By("z"))})
    with pytest.raises(DataError) as found:
        read_table(Rows(tmp_path / "y.csv", chunk_rows=10), spec)
    assert "column 'y' holds 9 in row 35 (counting from 0)" in str(found.value)
    assert said in str(found.value)


@pytest.mark.parametrize("read", [("a", "b"), ("b",)])
@pytest.mark.parametrize("line", [2, 25])
def test_a_row_longer_than_the_header_is_told_by_its_line(tmp_path: Path, read: tuple, line: int) -> None:
    rows = ["a,b"] + ["1,2"] * 40
    rows[line - 1] = "1,2,3"
    (tmp_path / "long.csv").write_text("\n".join(rows))
    spec = Spec(model={name: Normal(1) for name in read})
    for place in (tmp_path / "long.csv", Rows(tmp_path / "long.csv", chunk_rows=10)):
        with pytest.raises(DataError, match=f"line {line} has 3 cells, and the header names 2"):
            read_table(place, spec)


def test_a_separator_at_the_end_of_every_line_is_no_cell(tmp_path: Path) -> None:
    (tmp_path / "ends.csv").write_text("a,b\n" + "1,2,\n3,4,\n" * 20)
    spec = Spec(model={"b": Normal(1)})
    table = read_table(Rows(tmp_path / "ends.csv", chunk_rows=10), spec)
    assert table.loaded().arrays["b"][:2, 0].tolist() == [2, 4]
