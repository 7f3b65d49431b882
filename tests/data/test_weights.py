"""A row of weight w is w rows: weights are read from where the user has them, and wrong ones are refused."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ppl_gen.data.reading import read_table
from ppl_gen.declare.nodes import Categorical, Normal
from ppl_gen.declare.spec import Spec
from ppl_gen.declare.terms import By
from ppl_gen.errors import DataError

GAUSS = Spec(model={"x": Normal()})
MIXTURE = Spec(model={"z": Categorical(4), "x": Normal(1, loc=By("z"))})
FRAME = pd.DataFrame({"a": [1.0, 2.0, 4.0], "n": [2, 0, 1], "b": [0.0, 1.0, 3.0]})
nan, inf = np.nan, np.inf


def check(table: object) -> None:
    assert table.weights.tolist() == [2.0, 0.0, 1.0]
    assert table.weights.dtype == np.float64
    assert (table.n_units, table.total) == (3, 3.0)
    assert table.arrays["x"].tolist() == [[1.0, 0.0], [2.0, 1.0], [4.0, 3.0]]


def test_a_column_of_weights_is_not_read_as_data(tmp_path: Path) -> None:
    check(read_table(FRAME, GAUSS, weights="n"))
    FRAME.to_csv(tmp_path / "rows.csv", index=False)
    check(read_table(tmp_path / "rows.csv", GAUSS, weights="n"))
    check(read_table({"x": FRAME[["a", "b"]], "n": FRAME["n"]}, GAUSS, weights="n"))
    check(read_table(FRAME, Spec(model=GAUSS.model, columns={"x": ("a", "b")}), weights="n"))


@pytest.mark.parametrize(
    "weights",
    [[2, 0, 1], np.array([[2.0], [0.0], [1.0]]), FRAME["n"], torch.tensor([2, 0, 1]), FRAME[["n"]]],
    ids=lambda own: type(own).__name__,
)
def test_weights_beside_the_data_have_any_form(weights: object) -> None:
    check(read_table(FRAME[["a", "b"]].to_numpy(), GAUSS, weights=weights))


def test_rows_without_weights_count_once() -> None:
    table = read_table(FRAME, GAUSS)
    assert (table.weights, table.total) == (None, 3.0)


WRONG = {
    "too few": (FRAME, [1, 2], "'weights' has 2 weights and the data 3 rows; each row needs one"),
    "two columns": (FRAME, np.ones((3, 2)), "'weights' has 2 columns; weights are one number a row"),
    "nan": (FRAME, [1, nan, nan], "column 'weights' has 2 missing values (NaN or blank), the first in row 1"),
    "infinite": (
        FRAME,
        [1, inf, 2],
        "'weights' holds inf in row 1 (counting from 0), where weights are finite",
    ),
    "negative": (
        FRAME,
        [1, 2, -0.5],
        "'weights' holds -0.5 in row 2 (counting from 0), where weights are 0 or",
    ),
    "all 0": (FRAME, [0, 0, 0], "'weights' is 0 in every row: some row has to count"),
    "beyond": (FRAME, [1e308, 1e308, 1], "the sum of 'weights' is beyond the range of float64"),
    "text": (FRAME, ["1", "2", "3"], "column 'weights' holds text, '1', in row 0"),
    "a number": (FRAME, 3.0, "'weights' is a single float"),
    "a negative column": (FRAME.assign(n=[1, -1, 1]), "n", "'n' holds -1 in row 1"),
    "a negative entry": ({"x": [1.0, 2.0], "n": [1, -1]}, "n", "'n' holds -1 in row 1"),
    "a mistyped column": (FRAME, "m", "the data lack the column of weights 'm'; they have a, n, b"),
    "a mistyped entry": ({"x": [1.0], "num": [1]}, "numm", "did you mean 'num'?"),
    "one array": (np.ones((3, 2)), "n", "the data are one array, which has no column 'n'"),
    "a node": ({"x": [1.0, 2.0]}, "x", "column 'x' belongs to node 'x'; weights need a column of their own"),
    "nothing left": (
        pd.DataFrame({"a": [1.0, nan], "b": [1.0, 2.0]}),
        [0, 1],
        "column 'a' of 'x' has no value in any row of weight above 0",
    ),
}


@pytest.mark.parametrize("case", WRONG)
def test_wrong_weights_are_refused_with_the_place_and_the_remedy(case: str) -> None:
    data, weights, message = WRONG[case]
    with pytest.raises(DataError, match=re.escape(message)):
        read_table(data, GAUSS, weights=weights)


def test_weights_that_columns_lists_as_data_are_refused(tmp_path: Path) -> None:
    spec = Spec(model=GAUSS.model, columns={"x": ("a", "n")})
    FRAME.to_csv(tmp_path / "rows.csv", index=False)
    with pytest.raises(DataError, match=r"rows.csv: column 'n' belongs to node 'x'"):
        read_table(tmp_path / "rows.csv", spec, weights="n")


def test_a_few_patterns_of_many_rows_carry_many_classes() -> None:
    rows = {"x": [0.0, 1.0, 3.0]}
    with pytest.raises(DataError, match="'z' has 4 classes and the data 3 rows"):
        read_table(rows, MIXTURE)
    read_table(rows, MIXTURE, weights=[50, 20, 10])


@given(st.data(), st.sampled_from([0.0, 1e8]))
def test_weights_give_the_moments_of_repeated_rows(data: st.DataObject, shift: float) -> None:
    size = data.draw(st.integers(1, 12))
    cells = st.integers(-9, 9).map(lambda x: x + shift) | st.just(nan)
    x = np.array(data.draw(st.lists(st.tuples(cells, cells), min_size=size, max_size=size)))
    weights = np.array(data.draw(st.lists(st.integers(0, 5), min_size=size, max_size=size)))
    repeated = np.repeat(x, weights, axis=0)
    if not len(repeated) or np.isnan(repeated).all(axis=0).any():
        return
    one, other = read_table(x, GAUSS, weights=weights), read_table(repeated, GAUSS)
    # Integers of one digit have exact sums; what rounds are quotients and a root, a few ulps of 9 (and of 1e8).
    np.testing.assert_allclose(one.schema.centre["x"], other.schema.centre["x"], rtol=4e-16, atol=4e-15)
    np.testing.assert_allclose(one.schema.spread["x"], other.schema.spread["x"], rtol=0, atol=1e-14)
    assert one.total == len(repeated)
    assert [note for note in one.warnings if "the same value" in note] == [
        note for note in other.warnings if "the same value" in note
    ]


def test_moments_agree_with_numpys_weighted_mean() -> None:
    random = np.random.default_rng(0)
    x, weights = random.normal(size=(500, 2)), random.random(500) * 1e-300
    schema = read_table(x, GAUSS, weights=weights).schema
    mean = np.average(x, axis=0, weights=weights)
    np.testing.assert_allclose(schema.centre["x"], mean, rtol=1e-12)
    np.testing.assert_allclose(
        schema.spread["x"], np.sqrt(np.average((x - mean) ** 2, axis=0, weights=weights)), rtol=1e-12
    )
