"""Missing cells in any form are one thing: NaN, or the code -1; what is computed is of the cells that are there."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ppl_gen.data.reading import read_table
from ppl_gen.data.schema import Schema
from ppl_gen.declare.nodes import Bernoulli, Categorical, Normal, Poisson
from ppl_gen.declare.spec import Spec
from ppl_gen.declare.terms import By, Linear

nan = np.nan
GAUSS = Spec(model={"x": Normal()})
CLASS = Spec(model={"c": Categorical()})
LABELS = Spec(model={"z": Categorical(3), "x": Normal(1, loc=By("z"))})
X = [1.0, 2.0, 3.0, 4.0]


@pytest.mark.parametrize(
    "column",
    [
        [1.0, nan, 3.0],
        [1, None, 3],
        [1.0, " ", 3.0],
        np.ma.masked_array([1.0, np.inf, 3.0], [False, True, False]),
        np.ma.masked_array([1, 7, 3], [False, True, False]),
        pd.Series([1, None, 3], dtype="Int64"),
        pd.Series([1.0, pd.NA, 3.0], dtype="Float64"),
        pd.Series([1, pd.NA, 3], dtype=object),
    ],
    ids=str,
)
@pytest.mark.parametrize("node", [Normal(), Poisson()])
def test_a_missing_number_is_nan_however_it_was_written(column: object, node: Normal) -> None:
    table = read_table({"x": column}, Spec(model={"x": node}))
    np.testing.assert_array_equal(table.arrays["x"], [[1.0], [nan], [3.0]])
    assert table.holes == {"x"}
    assert table.schema.partial == ()
    assert (table.schema.centre, table.schema.spread) == ({"x": (2.0,)}, {"x": (1.0,)})


def test_a_missing_answer_among_booleans_is_nan() -> None:
    table = read_table({"x": [True, None, False]}, Spec(model={"x": Bernoulli()}))
    np.testing.assert_array_equal(table.arrays["x"], [[1.0], [nan], [0.0]])


@pytest.mark.parametrize(
    ("column", "levels", "codes"),
    [
        (["a", None, "b", ""], (("a", "b"),), [0, -1, 1, -1]),
        (["a", nan, "b", " "], (("a", "b"),), [0, -1, 1, -1]),
        (pd.Series(["a", None, "b", None], dtype="string"), (("a", "b"),), [0, -1, 1, -1]),
        (pd.Categorical(["a", None, "b", None]), (("a", "b"),), [0, -1, 1, -1]),
        (np.ma.masked_array(["a", "q", "b", "q"], [0, 1, 0, 1]), (("a", "b"),), [0, -1, 1, -1]),
        ([0.0, nan, 1.0, nan], (None,), [0, -1, 1, -1]),
        ([1.0, nan, 2.0, nan], ((1, 2),), [0, -1, 1, -1]),
        (np.ma.masked_array([0, 9, 1, 9], [0, 1, 0, 1]), (None,), [0, -1, 1, -1]),
        (pd.Series([0, None, 1, None], dtype="Int64"), (None,), [0, -1, 1, -1]),
        ([True, None, False, None], ((False, True),), [1, -1, 0, -1]),
    ],
    ids=str,
)
def test_a_missing_category_is_minus_one_and_whole_numbers_stay_codes(
    column: object, levels: object, codes: list[int]
) -> None:
    table = read_table({"c": column}, CLASS)
    assert table.arrays["c"].tolist() == codes
    assert table.schema.levels == {"c": levels}
    assert (table.schema.k, table.holes) == ({"c": 2}, {"c"})


def test_a_csv_with_blanks_and_na_is_the_frame_with_nan(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    path.write_text("a,b,z\n1, ,lo\n,2.5,NA\nNaN,4,None\n0,3.5,\n5\n")
    spec = Spec(model={"z": Categorical(3), "x": Normal(loc=By("z"))}, columns={"x": ("a", "b"), "z": ("z",)})
    table = read_table(path, spec)
    np.testing.assert_array_equal(table.arrays["x"], [[1, nan], [nan, 2.5], [nan, 4], [0, 3.5], [5, nan]])
    assert table.arrays["z"].tolist() == [1, -1, 0, -1, -1]
    assert table.schema.levels["z"] == (("None", "lo"),)  # an answer, which pandas alone would lose
    assert table.warnings == (
        "1 row has fewer cells than the header, line 6 first: what they lack is taken as missing",
    )


@pytest.mark.parametrize(
    ("labels", "levels", "codes"),
    [
        (["hi", None, "lo", ""], (("hi", "lo"),), [0, -1, 1, -1]),
        ([0, None, 2, 1], (None,), [0, -1, 2, 1]),
        ([1.0, nan, 2.0, 3.0], ((1, 2, 3),), [0, -1, 1, 2]),
        ([nan, nan, "lo", nan], (("lo",),), [-1, -1, 0, -1]),
    ],
)
def test_a_partly_labelled_latent_keeps_its_labels_and_all_its_categories(
    labels: list[object], levels: object, codes: list[int]
) -> None:
    table = read_table({"z": labels, "x": X}, LABELS)
    schema = table.schema
    assert table.arrays["z"].tolist() == codes
    assert (schema.roles.observed, schema.partial) == (("z", "x"), ("z",))
    assert schema.levels["z"] == levels
    assert (schema.k["z"], schema.level_counts("z")) == (3, (3,))
    assert Schema.from_dict(json.loads(json.dumps(schema.to_dict()))) == schema


def test_labels_in_every_row_are_not_partial_and_a_partly_seen_leaf_is_no_label() -> None:
    assert read_table({"z": [0, 1, 2, 0], "x": X}, LABELS).schema.partial == ()
    table = read_table({"z": [0, 1, 2, 0], "x": [1.0, nan, 3.0, 4.0]}, LABELS)
    assert (table.schema.partial, table.holes) == ((), {"x"})


def test_boolean_and_vector_labels_may_be_partial() -> None:
    spec = Spec(model={"b": Bernoulli(2), "c": Categorical(3, dim=2), "x": Normal(1, loc=Linear(["b", "c"]))})
    data = {"b": [[0, 1], [nan, nan], [1, 1], [0, 0]], "c": [[0, 1], [2, 0], [None, None], [1, 1]], "x": X}
    table = read_table(data, spec)
    assert table.schema.partial == ("b", "c")
    assert table.schema.level_counts("c") == (3, 3)
    np.testing.assert_array_equal(table.arrays["b"][1], [nan, nan])
    assert table.arrays["c"][2].tolist() == [-1, -1]


def test_other_libraries_minus_one_for_no_label_is_told() -> None:
    note = "column 'z' holds -1, a level as others are; a cell without a label is blank or NaN"
    assert note in read_table({"z": [0, 1, -1, -1], "x": X}, LABELS).warnings


@pytest.mark.parametrize(
    ("spec", "data", "lacking"),
    [
        (GAUSS, [[1.0, 2.0], [3.0, 5.0]], {"x": [[nan, 2.0], [nan, nan]]}),
        (CLASS, {"c": ["a", "b"]}, {"c": [None, "b"]}),
        (LABELS, {"z": [0, 1, 2, 0], "x": X}, {"z": [None, 2], "x": [1.0, nan]}),
        (LABELS, {"z": [0, None, 2, 0], "x": X}, {"z": [1, 2], "x": [1.0, 2.0]}),
        (LABELS, {"z": [0, None, 2, 0], "x": X}, {"z": [None, None], "x": [1.0, 2.0]}),
        (LABELS, {"z": [0, 1, 2, 0], "x": X}, {"x": [1.0, nan]}),
        (LABELS, {"z": [0, None, 2, 0], "x": X}, {"x": [1.0, 2.0]}),
    ],
)
def test_new_rows_may_lack_what_the_training_rows_had(spec: Spec, data: object, lacking: dict) -> None:
    schema = read_table(data, spec).schema
    for need in ("observed", "all", "any"):
        table = read_table(lacking, spec, schema=schema, need=need)
        assert set(table.arrays) == set(lacking)
        assert table.holes == {
            n for n, own in lacking.items() if pd.isna(np.asarray(own, dtype=object)).any()
        }
        assert table.schema is schema
        assert table.warnings == ()


def test_rows_and_columns_without_a_value_are_counted_or_named() -> None:
    table = read_table({"z": [0, None, None, 1], "x": [1.0, nan, nan, nan]}, LABELS)
    assert [note for note in table.warnings if "no observed" in note] == [
        "2 rows have no observed value, the first in row 1 (counting from 0): kept, but nothing is learned there"
    ]
    constant = read_table([[1.0, 5.0], [nan, 5.0], [2.0, nan]], GAUSS)
    assert len(constant.warnings) == 1
    assert "column 'x[1]' of 'x': the same value in every row" in constant.warnings[0]
    equal = read_table([[1.0, 5.0], [nan, 5.0], [1.0, nan]], GAUSS)
    assert equal.warnings[-1].startswith("all 3 rows are equal in the cells they have")
    assert "column 'c' of 'c': the same value" in read_table({"c": [0, None, 0]}, CLASS).warnings[1]


@pytest.mark.parametrize("shift", [0.0, 1e8, -1e8])
@pytest.mark.parametrize("unit", [1e-200, 1.0, 1e200])
def test_centre_and_spread_of_seen_cells_survive_offsets_and_units(shift: float, unit: float) -> None:
    random = np.random.default_rng(0)
    whole = random.integers(-50, 50, size=(1001, 3)).astype(float)
    whole[random.random(whole.shape) < 0.3] = nan
    whole[0] = nan
    schema = read_table((whole + shift) * unit, GAUSS).schema
    centre, spread = np.array(schema.centre["x"]) / unit, np.array(schema.spread["x"]) / unit
    # The oracle's integers near 0 have exact sums. A sum of N terms rounds by at most N·eps of its size,
    # and the unit rounds each cell by half an ulp, there and back.
    bound = len(whole) * np.finfo(float).eps * 50 + np.spacing(abs(shift) + 50)
    np.testing.assert_allclose(centre, np.nanmean(whole, axis=0) + shift, rtol=0, atol=bound)
    np.testing.assert_allclose(spread, np.nanstd(whole, axis=0), rtol=0, atol=bound)


@given(
    st.integers(1, 4).flatmap(
        lambda m: st.lists(st.sampled_from([*range(m), None]), max_size=12).map(
            lambda rest: [*range(m), *rest]
        )
    )
)
def test_degrees_of_freedom_do_not_depend_on_how_answers_are_coded(cells: list[int | None]) -> None:
    full = [*range(4), *[0] * len(cells)][: max(4, len(cells))]  # an item beside it that shows all of four
    item = [*cells, *[0] * (len(full) - len(cells))]
    numbers = list(zip(full, item, strict=True))
    words = [(f"w{f}", None if c is None else f"w{c}") for f, c in numbers]
    as_numbers, as_words = (read_table({"c": own}, CLASS) for own in (numbers, words))
    assert as_numbers.schema.level_counts("c") == as_words.schema.level_counts("c")
    assert as_numbers.arrays["c"].tolist() == as_words.arrays["c"].tolist()
