"""Equal rows collapse to one of their summed weight, and nothing is lost by it."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ppl_gen import Rows
from ppl_gen.data import distinct
from ppl_gen.data.distinct import collapsed, collapsed_stream
from ppl_gen.data.reading import read_table
from ppl_gen.data.table import Table
from ppl_gen.declare.nodes import Bernoulli, Categorical, Input, Normal, Poisson
from ppl_gen.declare.spec import Spec
from ppl_gen.declare.terms import By, Linear

ITEMS = Spec(model={"z": Categorical(2), "x": Bernoulli(probs=By("z")), "c": Categorical(probs=By("z"))})
ROWS = st.tuples(st.sampled_from([0, 1, None]), st.sampled_from([0, 1]), st.sampled_from(["a", "b", None]))
SEEN = [(0, 0, "a"), (1, 1, "b")]


def table_of(rows: list[tuple[object, ...]], weights: object = None) -> Table:
    data = {"x": [list(row[:2]) for row in rows], "c": [row[2] for row in rows]}
    return read_table(data, ITEMS, weights=weights)


def keys(table: Table) -> list[tuple[str, ...]]:
    columns = [array.reshape(len(array), -1) for array in table.arrays.values()]
    return [tuple(map(str, row)) for row in np.concatenate(columns, axis=1).tolist()]


@given(st.lists(ROWS, max_size=40), st.data())
def test_every_pattern_is_counted_once_with_all_its_weight(rows: list[tuple], data: st.DataObject) -> None:
    rows = [*SEEN, *rows, *SEEN]
    weights = data.draw(
        st.none()
        | st.lists(st.integers(0, 4), min_size=len(rows), max_size=len(rows)).filter(lambda w: w[0] and w[1])
    )
    table = table_of(rows, weights)
    expected: Counter[tuple[str, ...]] = Counter()
    for key, weight in zip(keys(table), weights or [1] * len(rows), strict=True):
        expected[key] += weight
    found = collapsed(table)
    assert (found is None) == (2 * len(expected) > len(rows))
    if found is None:
        return
    fewer, inverse = found
    assert dict(zip(keys(fewer), fewer.weights.tolist(), strict=True)) == dict(expected)
    assert (fewer.n_units, fewer.total, fewer.holes) == (len(expected), table.total, table.holes)
    for name, array in table.arrays.items():
        np.testing.assert_array_equal(fewer.arrays[name][inverse], array)
        assert fewer.arrays[name].dtype == array.dtype


@pytest.mark.parametrize(
    ("spec", "data"),
    [
        (Spec(model={"x": Normal()}), {"x": np.zeros((6, 1))}),
        (Spec(model={"u": Input(1), "x": Bernoulli(logits=Linear("u"))}), {"u": [1.0] * 6, "x": [0, 1] * 3}),
        (Spec(model={"x": Poisson()}), {"x": np.arange(6)}),
    ],
)
def test_real_columns_and_rows_that_mostly_differ_stay_as_they_are(spec: Spec, data: dict) -> None:
    assert collapsed(read_table(data, spec)) is None


def test_counts_of_any_size_and_categorical_inputs_collapse() -> None:
    spec = Spec(model={"g": Input(k=2), "x": Poisson(rate=By("g"))})
    wide = np.tile([[1, 2**52, 0], [3, 0, 2**50], [1, 2**52, 2**51]], (20, 4))
    fewer, inverse = collapsed(read_table({"g": [0, 1, 1] * 20, "x": wide}, spec))
    assert fewer.arrays["x"].tolist() == wide[:3].tolist()
    assert fewer.arrays["g"].tolist() == [0, 1, 1]
    assert (fewer.weights.tolist(), inverse.tolist()) == ([20.0] * 3, [0, 1, 2] * 20)


def test_streamed_rows_collapse_to_the_same_patterns_and_weights(tmp_path, monkeypatch) -> None:
    random = np.random.default_rng(0)
    frame = pd.DataFrame(random.integers(0, 2, (700, 2)), columns=["a", "b"])
    frame["c"], frame["w"] = random.choice(["u", "v", None], 700), random.integers(1, 4, 700)
    frame.to_csv(tmp_path / "rows.csv", index=False)
    spec = Spec(model=ITEMS.model, columns={"x": ("a", "b"), "c": ("c",)})
    monkeypatch.setattr(distinct, "PASS_ROWS", 64)
    streamed = read_table(Rows(tmp_path / "rows.csv", chunk_rows=50), spec, weights="w")
    whole, found = collapsed(read_table(frame, spec, weights="w")), collapsed_stream(streamed)
    assert found is not None
    assert whole is not None
    assert dict(zip(keys(found), found.weights, strict=True)) == dict(
        zip(keys(whole[0]), whole[0].weights, strict=True)
    )
    assert found.holes == whole[0].holes == {"c"}
    monkeypatch.setattr(distinct, "MOST_DISTINCT", 5)
    assert collapsed_stream(streamed) is None


def test_a_streamed_real_column_keeps_all_rows_in_the_files(tmp_path) -> None:
    np.savetxt(tmp_path / "x.csv", np.arange(40) % 2, header="x", comments="")
    assert collapsed_stream(read_table(Rows(tmp_path / "x.csv"), Spec(model={"x": Normal(1)}))) is None
