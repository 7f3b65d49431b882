"""Wrong data are refused before anything is computed, and the message says what, where, and what to do."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from ppl_gen.data.reading import read_table
from ppl_gen.declare.nodes import Bernoulli, Categorical, Input, Normal, Poisson
from ppl_gen.declare.spec import Spec
from ppl_gen.declare.terms import By, Linear
from ppl_gen.errors import DataError

FAITHFUL = Path(__file__).parents[2] / "examples" / "data" / "faithful.csv"
GAUSS = Spec(model={"x": Normal()})
WIDE = Spec(model={"x": Normal(3)})
IMAGE = Spec(model={"x": Normal([2, 2], loc=0, scale=1)})
COINS = Spec(model={"x": Bernoulli()})
COUNTS = Spec(model={"x": Poisson()})
CLASS = Spec(model={"c": Categorical()})
TWO = Spec(model={"c": Categorical(2)})
MIXTURE = Spec(model={"z": Categorical(3), "x": Normal(loc=By("z"))})
REGRESSION = Spec(model={"u": Input(1), "y": Normal(1, loc=Linear("u"))})
PAIR = Spec(model={"z": Categorical(2), "x": Normal(loc=By("z")), "y": Normal(loc=By("z"))})
CHAIN = Spec(model={"a": Normal(2), "y": Normal(1, loc=Linear("a"))})
CHOSEN = Spec(model={"x": Normal()}, columns={"x": ("a", "b")})

nan, inf = np.nan, np.inf


def holed(shape: tuple[int, int], at: list[tuple[int, int]], value: float) -> np.ndarray:
    array = np.arange(float(np.prod(shape))).reshape(shape)
    for place in at:
        array[place] = value
    return array


WRONG = {
    "infinity": (
        holed((9, 2), [(3, 0)], -inf),
        GAUSS,
        "column 'x[0]' has 1 infinite value, the first in row 3",
    ),
    "nan in an Input": (
        {"u": [nan, 1.0, nan], "y": [0.0, 1.0, 2.0]},
        REGRESSION,
        "column 'u' has 2 missing values (NaN or blank), the first in row 0 (counting from 0); an Input is given "
        "and not modelled, so that every row needs it: drop those rows or fill them in",
    ),
    "a blank in a categorical Input": (
        {"g": ["a", " "], "y": [0.0, 1.0]},
        Spec(model={"g": Input(), "y": Normal(1, loc=By("g"))}),
        "column 'g' has 1 missing value (NaN or blank), the first in row 1 (counting from 0); an Input",
    ),
    "nan in a real node that others depend on": (
        {"a": [[1.0, 2.0], [0.0, nan]], "y": [0.0, 1.0]},
        CHAIN,
        "column 'a[1]' has 1 missing value (NaN or blank), the first in row 1 (counting from 0); other nodes "
        "depend on 'a' and its values cannot be summed over, so that every row needs it",
    ),
    "nan in a count that others depend on": (
        {"n": [1, None], "y": [0.0, 1.0]},
        Spec(model={"n": Poisson(), "y": Normal(1, loc=Linear("n"))}),
        "other nodes depend on 'n' and its values cannot be summed over",
    ),
    "a partly labelled vector with too many values": (
        {"c": [["a"] * 14, ["b"] * 14, [None] * 14], "y": [0.0, 1.0, 2.0]},
        Spec(model={"c": Categorical(2, dim=14), "y": Normal(1, loc=Linear("c"))}),
        "column 'c[0]' has 1 missing value (NaN or blank), the first in row 2 (counting from 0); other nodes "
        "depend on 'c' and its values cannot be summed over",
    ),
    "half a label": (
        {"c": [["a", "b"], ["b", "a"], [None, "a"]], "y": [0.0, 1.0, 2.0]},
        Spec(model={"c": Categorical(2, dim=2), "y": Normal(1, loc=Linear("c"))}),
        "'c' has some of its 2 cells in row 2 (counting from 0) and lacks others",
    ),
    "a column of nothing": (
        pd.DataFrame({"a": [1.0, 2.0], "b": [nan, nan]}),
        GAUSS,
        "column 'b' of 'x' has no value in any row: leave it out",
    ),
    "an item of nothing": ({"c": [["a", None], ["b", " "]]}, CLASS, "column 'c[1]' has no value in any row"),
    "no label at all": (
        {"z": [None, None, None], "x": [1.0, 2.0, 3.0]},
        MIXTURE,
        "column 'z' has no value in any row: leave it out, and 'z' is latent",
    ),
    "the missing label of other libraries": (
        {"c": [0, 1, -1]},
        TWO,
        "declared with 2 categories: -1, 0, 1; a cell without a label is blank or NaN, not -1",
    ),
    "infinite category": ({"c": [1.0, inf]}, CLASS, "column 'c' holds an infinite value"),
    "a 7 in a Bernoulli": (
        np.array([[0.0, 1.0], [1.0, 7.0], [0.0, 7.0]]),
        COINS,
        "column 'x[1]' holds 7 in row 1 (counting from 0), where Bernoulli takes 0 and 1; "
        "2 such cells in this column",
    ),
    "a half in a Bernoulli": (np.array([[0.5]]), COINS, "column 'x' holds 0.5 in row 0"),
    "negative count": (
        np.array([[1], [-2]]),
        COUNTS,
        "column 'x' holds -2 in row 1 (counting from 0), where counts are 0, 1, 2",
    ),
    "fractional count": (
        np.array([[1.0], [2.5]]),
        COUNTS,
        "column 'x' holds 2.5 in row 1 (counting from 0), where counts are whole",
    ),
    "text among numbers": (
        {"x": [1.5, "n/a", 2.0]},
        GAUSS,
        "column 'x' holds text, 'n/a', in row 1 (counting from 0), where numbers are needed; 1 such cell",
    ),
    "numbers as text": ({"x": np.array([["1"], ["2"]])}, GAUSS, "column 'x' holds text, '1', in row 0"),
    "a spoilt column of a frame": (
        pd.DataFrame({"a": [1.0, 2.0], "b": ["3", "n/a"]}),
        GAUSS,
        "column 'b' of 'x' is numeric in most rows, but has 'n/a' in row 1",
    ),
    "no numeric column": (
        pd.DataFrame({"a": ["u", "v"]}),
        GAUSS,
        "'x' needs numbers and no column holds them; the columns are a",
    ),
    "dates": (pd.DataFrame({"x": pd.to_datetime(["2020-01-01"])}), GAUSS, "column 'x' holds dates"),
    "complex": (np.ones((3, 1)) * 1j, GAUSS, "'x' holds complex numbers"),
    "complex in a list": ({"x": [[1.0], [1j]]}, GAUSS, "'x' holds complex numbers"),
    "an integer that no float holds": ({"x": [10**400]}, GAUSS, "beyond the range of float64"),
    "ragged": (
        {"x": [[1, 2], [3]]},
        GAUSS,
        "'x' cannot be read as rows and columns: row 0 has 2 cells and row 1 has 1",
    ),
    "lists in a frame": (
        pd.DataFrame({"x": [[1, 2], [3]]}),
        GAUSS,
        "'x' is ragged: row 0 has 2 cells and row 1 has 1",
    ),
    "a list as category": ({"c": np.array([[1], None], dtype=object)}, CLASS, "'c' is ragged"),
    "no rows": (np.empty((0, 2)), GAUSS, "'x' is empty: its shape is (0, 2)"),
    "no columns": (np.empty((3, 0)), GAUSS, "'x' is empty: its shape is (3, 0)"),
    "an empty frame": (pd.DataFrame({"x": []}), GAUSS, "the data are empty: 0 rows, 1 columns"),
    "an empty dictionary": ({}, GAUSS, "the data lack the leaf 'x'; they have nothing"),
    "None as data": (None, GAUSS, "no data are given"),
    "one number": (3.0, GAUSS, "'x' is a single float"),
    "a set": ({"x": {1.0, 2.0}}, GAUSS, "'x' is a single set"),
    "one-dimensional": (
        np.ones(5),
        GAUSS,
        "is given one of length 5: reshape(-1, 1) makes it one column, or pass it by name, {'x': ...}",
    ),
    "a bare series": (pd.Series([1.0, 2.0]), GAUSS, "reshape(-1, 1)"),
    "one-dimensional for a vector": (
        {"x": np.ones(5)},
        WIDE,
        "'x' needs 3 columns and is given a one-dimensional array of length 5",
    ),
    "narrow array": (
        np.ones((5, 2)),
        WIDE,
        "'x' is declared Normal(3) and the data give it 2 columns: x[0], x[1]",
    ),
    "narrow file": (
        FAITHFUL,
        WIDE,
        "'x' is declared Normal(3) and the data give it 2 columns: eruptions, waiting",
    ),
    "wrong image": (
        np.ones((5, 4, 1)),
        IMAGE,
        "'x' is declared with dim=[2, 2] and its rows have shape [4, 1]",
    ),
    "a mistyped entry": (
        {"X": np.ones((5, 2))},
        GAUSS,
        "the data have an entry 'X', which is no node; the nodes are x; did you mean 'x'?",
    ),
    "a mistyped column": (
        pd.DataFrame({"z": [0, 1, 2], "xx": [1.0, 2.0, 3.0], "k": 1}),
        MIXTURE,
        "the data lack the leaf 'x'; they have z, xx, k; did you mean 'xx'?",
    ),
    "a gap in a vector": (pd.DataFrame({"x[0]": [1.0], "x[2]": [1.0]}), GAUSS, "the data lack x[1]"),
    "two claims to a node": (
        pd.DataFrame({"x": [1.0], "x[0]": [1.0]}),
        GAUSS,
        "a column 'x' and also 'x[0]'",
    ),
    "no column named like two leaves": (
        pd.DataFrame({"a": [1.0], "b": [1.0]}),
        PAIR,
        "the data lack 'x': no column is named like a node; the nodes are z, x, y, the columns a, b",
    ),
    "one array for two leaves": (np.ones((3, 2)), PAIR, "pass a dictionary {'x': ..., 'y': ...}"),
    "one array and an Input": (np.ones((3, 2)), REGRESSION, "pass a dictionary {'y': ..., 'u': ...}"),
    "no Input": ({"y": [1.0, 2.0]}, REGRESSION, "the data lack the Input 'u'; they have y"),
    "a listed column that is not there": (
        pd.DataFrame({"a": [1.0], "B": [1.0]}),
        CHOSEN,
        "columns: gives 'x' the columns a, b, and the data lack b; they have a, B; did you mean 'B'?",
    ),
    "a repeated column": (
        pd.DataFrame(np.ones((2, 2)), columns=["a", "a"]),
        GAUSS,
        "two columns of the frame have one name",
    ),
    "unequal lengths": ({"x": np.ones(3), "y": np.ones(4)}, PAIR, "'x' has 3 rows and 'y' has 4"),
    "fewer rows than classes": (np.ones((2, 1)), MIXTURE, "'z' has 3 classes and the data 2 rows"),
    "too many levels": (
        {"c": ["a", "b", "c"]},
        TWO,
        "column 'c' has 3 levels and 'c' is declared with 2 categories: 'a', 'b', 'c'",
    ),
    "a category out of range": (
        {"c": [0, 1, 2]},
        TWO,
        "has 3 levels and 'c' is declared with 2 categories: 0, 1, 2",
    ),
    "a category of a strange type": ({"c": np.array([(), None], dtype=object)}, CLASS, "ragged"),
    "dates as categories": (
        pd.DataFrame({"c": pd.to_datetime(["2020-01-01"])}),
        CLASS,
        "categories are text or numbers",
    ),
    "structured": (np.zeros(3, dtype=[("a", "f8")]), GAUSS, "structured array; pass a DataFrame"),
    "no such file": (
        FAITHFUL.with_name("faithfull.csv"),
        GAUSS,
        "no such file; did you mean 'faithful.csv'?",
    ),
}


@pytest.mark.parametrize("case", WRONG)
def test_wrong_data_are_refused_with_the_place_and_the_remedy(case: str) -> None:
    data, spec, message = WRONG[case]
    with pytest.raises(DataError, match=re.escape(message)):
        read_table(data, spec)


def test_a_sparse_matrix_is_refused_with_the_call_that_helps() -> None:
    from scipy.sparse import csr_array

    with pytest.raises(DataError, match=re.escape("pass x.toarray()")):
        read_table({"x": csr_array(np.eye(2))}, GAUSS)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "the file is empty"),
        ("a;b\n1;2\n", "separated by ';'"),
        ("a,b\n", "the data are empty: 0 rows"),
        ("a,b\n1,2\n3,4,5\n", "line 3 has 3 cells, and the header names 2"),
        ("a,b\n1,2,3\n4,5\n", "line 2 has 3 cells, and the header names 2"),
        ('a,b\n"1\n",2\n3,4,5\n', "line 4 has 3 cells, and the header names 2"),
        ("a,b\n1,2,3\n4,5,6\n", "line 2 has 3 cells, and the header names 2"),
        ("a,b\n1,\n2,NA\n", "column 'b' of 'x' has no value in any row"),
        ("a,b\n1,inf\n2,\n", "column 'b' of 'x' has 1 infinite value, the first in row 0"),
        ("a,b\n1,2\n3,None\n", "column 'b' of 'x' is numeric in most rows, but has 'None' in row 1"),
    ],
)
def test_an_error_in_a_file_names_the_file(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "rows.csv"
    path.write_text(text)
    with pytest.raises(DataError, match=re.escape(f"{path}: ") + ".*" + re.escape(message)):
        read_table(str(path), GAUSS)


def test_nothing_is_silently_dropped_from_a_csv(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    path.write_text(",a,id\n0,1.5,u1\n1,2.5,u2\n")
    table = read_table(path, GAUSS)
    assert table.schema.columns == {"x": ("a",)}
    assert [note.split(" (")[0] for note in table.warnings] == [
        "the first column has no name",
        "not numeric, so not read: 1 column is left out",
    ]


FITTED = {
    "gauss": (GAUSS, pd.DataFrame({"a": [1.0, 2.0], "b": [3.0, 5.0]})),
    "array": (GAUSS, np.array([[1.0, 3.0], [2.0, 5.0]])),
    "codes": (CLASS, {"c": [0, 1, 2]}),
    "words": (CLASS, {"c": ["no", "yes"]}),
    "coins": (COINS, np.array([[0], [1]])),
    "regression": (REGRESSION, {"u": [1.0, 2.0], "y": [1.0, 0.0]}),
    "items": (CLASS, {"c": [[0, 0], [1, 1], [2, 0]]}),
}

WRONG_LATER = [
    (
        "gauss",
        pd.DataFrame({"a": [1.0], "B": [1.0]}),
        "'x' was fitted on the columns a, b, and the data lack b; they have a, B; did you mean 'B'?",
    ),
    (
        "gauss",
        pd.DataFrame({"u": [1.0], "v": [1.0]}),
        "the data lack the leaf 'x' (columns a, b); they have u, v",
    ),
    ("gauss", np.ones((2, 3)), "'x' was fitted on 2 columns (a, b) and the data give it 3"),
    ("array", np.ones((2, 1)), "'x' was fitted on 2 columns (x[0], x[1]) and the data give it 1"),
    (
        "array",
        pd.DataFrame({"u": [1.0], "v": [1.0]}),
        "the data lack the leaf 'x' (columns x[0], x[1]); they have u, v",
    ),
    (
        "codes",
        {"c": [0, 3, 3]},
        "column 'c' holds 3 in row 1 (counting from 0), "
        "a level never seen (2 such cells); the levels are the integers 0 to 2",
    ),
    (
        "words",
        {"c": ["maybe"]},
        "column 'c' holds 'maybe' in row 0 (counting from 0), "
        "a level never seen (1 such cell); the levels are 'no', 'yes'",
    ),
    ("words", {"c": [0, 1]}, "column 'c' holds 0 in row 0"),
    ("coins", np.array([[7]]), "column 'x' holds 7 in row 0"),
    ("regression", {"u": [nan], "y": [1.0]}, "column 'u' has 1 missing value"),
    (
        "items",
        {"c": [[0, 0], [1, 2]]},
        "column 'c[1]' holds 2 in row 1 (counting from 0), a level never seen",
    ),
    ("regression", {"y": [1.0]}, "the data lack the Input 'u'"),
]


@pytest.mark.parametrize(("fitted", "data", "message"), WRONG_LATER)
def test_new_data_are_held_against_the_training_data(fitted: str, data: object, message: str) -> None:
    spec, training = FITTED[fitted]
    schema = read_table(training, spec).schema
    with pytest.raises(DataError, match=re.escape(message)):
        read_table(data, spec, schema=schema)


def test_a_size_that_only_a_parameter_declares_is_held_against_the_data() -> None:
    with pytest.raises(
        DataError,
        match=re.escape("'x' has loc=[0, 1] (2 wide) and the data give it 3 columns: x[0]"),
    ):
        read_table(np.ones((4, 3)), Spec(model={"x": Normal(loc=[0, 1])}))


def test_a_tensor_that_needs_gradients_is_read_and_not_changed() -> None:
    tensor = torch.ones(3, 2, requires_grad=True)
    assert read_table(tensor, GAUSS).arrays["x"].tolist() == [[1.0, 1.0]] * 3
