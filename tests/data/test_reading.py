"""Every form of data a user has ends as the same table."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from ppl_gen.data.reading import read_table
from ppl_gen.data.schema import Schema
from ppl_gen.declare.nodes import Bernoulli, Categorical, Input, Normal, Poisson
from ppl_gen.declare.spec import Spec
from ppl_gen.declare.terms import MLP, By, Linear
from ppl_gen.errors import DataError

EXAMPLES = Path(__file__).parents[2] / "examples" / "data"
GAUSS = Spec(model={"x": Normal()})
CLASS = Spec(model={"c": Categorical()})
MIXTURE = Spec(model={"z": Categorical(2), "x": Normal(loc=By("z"))})
ROWS = [[1.0, 4.0], [2.0, 6.0], [3.0, 5.0]]
LABELS = st.one_of(
    st.text(min_size=1).filter(str.strip), st.integers(-9, 9), st.floats(-9, 9).filter(lambda x: x % 1)
)


@pytest.mark.parametrize(
    "data",
    [
        ROWS,
        np.array(ROWS),
        np.array(ROWS, dtype=np.float32),
        np.array(ROWS, dtype=">f8"),
        np.array(ROWS, dtype=np.int32),
        np.asfortranarray(ROWS),
        torch.tensor(ROWS),
        pd.DataFrame(ROWS, columns=["a", "b"]),
        pd.DataFrame(ROWS, columns=["a", "b"], dtype=object),
        pd.DataFrame(ROWS),
        pd.DataFrame(ROWS, columns=["x[1]", "x[0]"])[["x[0]", "x[1]"]].rename(
            columns={"x[0]": "x[1]", "x[1]": "x[0]"}
        ),
        {"x": ROWS},
        {"x": pd.DataFrame(ROWS, columns=["a", "b"])},
        {"x": np.array(ROWS)[:, :, None]},
    ],
)
def test_every_form_of_the_same_rows_gives_the_same_array(data: object) -> None:
    table = read_table(data, GAUSS)
    array = table.arrays["x"]
    assert array.tolist() == ROWS
    assert array.dtype == np.float64
    assert array.flags.c_contiguous
    assert array.flags.writeable
    assert (table.n_units, table.schema.dims, table.warnings) == (3, {"x": 2}, ())
    assert table.schema.centre == {"x": (2.0, 5.0)}


def test_large_data_are_neither_copied_nor_written() -> None:
    data = np.array(ROWS)
    assert np.shares_memory(read_table({"x": data}, GAUSS).arrays["x"], data)
    data.flags.writeable = False
    assert not np.shares_memory(read_table(data, GAUSS).arrays["x"], data)


def test_a_csv_goes_to_the_only_leaf_with_its_header() -> None:
    table = read_table(EXAMPLES / "faithful.csv", MIXTURE)
    assert table.schema.columns == {"x": ("eruptions", "waiting")}
    assert table.schema.dims == {"z": 1, "x": 2}
    assert table.schema.k == {"z": 2}
    assert table.schema.roles.latent == ("z",)
    assert repr(table) == "Table(272 rows; x: eruptions, waiting)"


def test_a_categorical_leaf_takes_its_items_from_several_columns() -> None:
    schema = read_table(
        str(EXAMPLES / "carcinoma.csv"), Spec(model={"z": Categorical(2), "x": Categorical(probs=By("z"))})
    ).schema
    assert schema.dims["x"] == 7
    assert schema.k["x"] == 2
    assert schema.levels["x"] == ((1, 2),) * 7
    assert schema.columns["x"] == tuple("ABCDEFG")


def test_columns_named_like_nodes_go_to_them_and_labels_become_observed() -> None:
    frame = pd.DataFrame({"other": [9.0, 9.0], "x[1]": [1.0, 2.0], "z": ["b", "a"], "x[0]": [3.0, 4.0]})
    table = read_table(frame, MIXTURE)
    assert table.schema.roles.observed == ("z", "x")
    assert table.arrays["x"].tolist() == [[3.0, 1.0], [4.0, 2.0]]
    assert table.arrays["z"].tolist() == [1, 0]


@pytest.mark.parametrize("as_frame", [True, False])
def test_a_stray_column_named_like_a_latent_is_no_label_under_columns(as_frame: bool) -> None:
    spec = Spec(model=MIXTURE.model, columns={"x": ("b", "a")})
    data = {"z": [0, 1], "a": [1.0, 2.0], "b": [3.0, 4.0]}
    table = read_table(pd.DataFrame(data) if as_frame else data, spec)
    assert table.schema.roles.latent == ("z",)
    assert table.arrays["x"].tolist() == [[3.0, 1.0], [4.0, 2.0]]
    assert len(table.warnings) == (0 if as_frame else 1)


def test_a_vector_by_name_is_one_column() -> None:
    spec = Spec(model={"x": Normal(1), "y": Poisson()})
    table = read_table({"x": pd.Series([1.0, 2.0], name="height"), "y": [3, 4]}, spec)
    assert {name: array.shape for name, array in table.arrays.items()} == {"x": (2, 1), "y": (2, 1)}
    assert table.schema.columns == {"x": ("height",), "y": ("y",)}


@pytest.mark.parametrize("dim", [[2, 3], 6, None])
def test_images_are_flattened_row_by_row(dim: object) -> None:
    images = np.arange(24.0).reshape(4, 2, 3)
    spec = Spec(model={"x": Normal(dim)})
    table = read_table(images, spec)
    assert table.arrays["x"].tolist() == images.reshape(4, 6).tolist()
    assert read_table(images.reshape(4, 6), spec, schema=table.schema).arrays["x"].shape == (4, 6)


def test_bernoulli_takes_booleans() -> None:
    table = read_table(pd.DataFrame({"a": [True, False], "b": [0, 1]}), Spec(model={"x": Bernoulli()}))
    assert table.arrays["x"].tolist() == [[1.0, 0.0], [0.0, 1.0]]
    assert table.schema.centre == {}


@pytest.mark.parametrize(
    ("node", "cells", "levels", "k", "codes"),
    [
        (Categorical(), ["b", "a", "b"], (("a", "b"),), 2, [1, 0, 1]),
        (Categorical(), [0, 2, 1], (None,), 3, [0, 2, 1]),
        (Categorical(), [0, 2, 2], ((0, 2),), 2, [0, 1, 1]),
        (Categorical(3), [0, 2, 2], (None,), 3, [0, 2, 2]),
        (Categorical(), [1, 2, 1], ((1, 2),), 2, [0, 1, 0]),
        (Categorical(2), [1, 2, 1], ((1, 2),), 2, [0, 1, 0]),
        (Categorical(3), ["a", "b"], (("a", "b"),), 3, [0, 1]),
        (Categorical(), [1.0, 0.0], (None,), 2, [1, 0]),
        (Categorical(), [0.5, -1.0], ((-1, 0.5),), 2, [1, 0]),
        (Categorical(), [True, False], ((False, True),), 2, [1, 0]),
        (Categorical(), ["x", 10, 9], ((9, 10, "x"),), 3, [2, 1, 0]),
        (Categorical(), np.array(["b", "a"]), (("a", "b"),), 2, [1, 0]),
        (Categorical(), pd.Categorical(["b", "a"], categories=["b", "c", "a"]), (("a", "b"),), 2, [1, 0]),
        (Categorical(), [[0, 1], [1, 2]], (None, (1, 2)), 2, [[0, 0], [1, 1]]),
        (Categorical(), [[0, 1], [1, 1]], (None, None), 2, [[0, 1], [1, 1]]),
        (Categorical(), [[0, 0], [1, 1], [2, 0]], (None, (0, 1)), 3, [[0, 0], [1, 1], [2, 0]]),
        (Categorical(3), [[0, 0], [1, 1], [1, 0]], ((0, 1), (0, 1)), 3, [[0, 0], [1, 1], [1, 0]]),
        (Categorical(), [[0, 0], [1, 1], [1, 2]], ((0, 1), None), 3, [[0, 0], [1, 1], [1, 2]]),
        (
            Categorical(),
            [[0, "a"], [1, "b"], [1, "c"]],
            ((0, 1), ("a", "b", "c")),
            3,
            [[0, 0], [1, 1], [1, 2]],
        ),
        (
            Categorical(),
            [["n", "x"], ["y", "z"], ["y", "w"]],
            (("n", "y"), ("w", "x", "z")),
            3,
            [[0, 1], [1, 2], [1, 0]],
        ),
        (Categorical(dim=1), [0, 1], (None,), 2, [[0], [1]]),
        (Categorical(), [[0], [1]], (None,), 2, [0, 1]),
    ],
)
def test_levels_are_the_sorted_distinct_values_and_codes_stay(
    node: Categorical, cells: object, levels: object, k: int, codes: object
) -> None:
    table = read_table({"c": cells}, Spec(model={"c": node}))
    assert table.schema.levels == {"c": levels}
    assert table.schema.k == {"c": k}
    assert table.arrays["c"].tolist() == codes
    assert table.arrays["c"].dtype == np.int64
    json.dumps(table.schema.to_dict())


def test_an_input_used_as_a_category_is_one() -> None:
    spec = Spec(model={"g": Input(), "u": Input(), "y": Normal(1, loc=Linear("u", by="g"))})
    table = read_table({"g": ["b", "a"], "u": [1.0, 3.0], "y": [0.0, 1.0]}, spec)
    assert table.arrays["g"].tolist() == [1, 0]
    assert table.schema.k == {"g": 2}
    assert set(table.schema.centre) == {"u", "y"}


def test_new_rows_are_matched_by_column_name_in_any_order() -> None:
    frame = pd.DataFrame(ROWS, columns=["a", "b"])
    schema = read_table(frame, GAUSS).schema
    shuffled = frame.assign(extra="text")[["extra", "b", "a"]]
    for data in (
        shuffled,
        {"x": shuffled},
        {"a": frame["a"], "b": frame["b"]},
        np.array(ROWS),
        frame.iloc[:, ::-1],
    ):
        assert read_table(data, GAUSS, schema=schema).arrays["x"].tolist() == ROWS


def test_new_rows_keep_the_codes_of_the_training_levels() -> None:
    schema = read_table({"c": ["a", "b", "c"]}, CLASS).schema
    table = read_table({"c": ["c", "b"]}, CLASS, schema=schema)
    assert table.arrays["c"].tolist() == [2, 1]
    assert table.schema is schema


@pytest.mark.parametrize(
    ("data", "need", "lacking"),
    [
        ({"u": [1.0]}, "inputs", None),
        ({"u": [1.0]}, "observed", "leaf 'y'"),
        ({"y": [1.0]}, "any", None),
        ({"y": [1.0]}, "inputs", "Input 'u'"),
        ({"u": [1.0], "y": [1.0]}, "observed", None),
        ({"u": [1.0], "y": [1.0]}, "all", None),
        ({"u": [1.0], "c": [0]}, "all", "leaf 'y'"),
        ({}, "any", "leaf 'y'"),
    ],
)
def test_what_must_be_there_at_predict_time_is_what_was_asked(
    data: dict, need: str, lacking: str | None
) -> None:
    spec = Spec(model={"u": Input(1), "c": Categorical(2), "y": Normal(1, loc=Linear("u", by="c"))})
    schema = read_table({"u": [1.0, 2.0], "c": [0, 1], "y": [0.0, 1.0]}, spec).schema
    if lacking is None:
        assert set(read_table(data, spec, schema=schema, need=need).arrays) == set(data)
    else:
        with pytest.raises(DataError, match=lacking):
            read_table(data, spec, schema=schema, need=need)


def test_labels_given_for_a_latent_at_predict_time_are_not_silently_used() -> None:
    schema = read_table(np.array(ROWS), MIXTURE).schema
    table = read_table({"x": ROWS, "z": [0, 1, 0]}, MIXTURE, schema=schema)
    assert set(table.arrays) == {"x"}
    assert table.warnings == ("the entry 'z' is not read: it was latent when the model was fitted",)


@pytest.mark.parametrize("shift", [0.0, 1e8, -1e8])
@pytest.mark.parametrize("unit", [1e-200, 1.0, 1e200])
def test_centre_and_spread_survive_offsets_and_units(shift: float, unit: float) -> None:
    whole = np.random.default_rng(0).integers(-50, 50, size=(1001, 3)).astype(float)
    schema = read_table((whole + shift) * unit, GAUSS).schema
    centre, spread = np.array(schema.centre["x"]) / unit, np.array(schema.spread["x"]) / unit
    # The oracle's integers near 0 have exact sums. A sum of N terms rounds by at most N·eps of its size,
    # and the unit rounds each cell by half an ulp, there and back.
    bound = len(whole) * np.finfo(float).eps * 50 + np.spacing(abs(shift) + 50)
    np.testing.assert_allclose(centre, whole.mean(axis=0) + shift, rtol=0, atol=bound)
    np.testing.assert_allclose(spread, whole.std(axis=0), rtol=0, atol=bound)


def test_extreme_cells_give_finite_moments() -> None:
    cells = np.array([[1e308, 5e-324], [-1e308, 0.0], [1e308, 0.0]])
    schema = read_table(cells, GAUSS).schema
    assert np.isfinite(schema.centre["x"]).all()
    assert schema.spread["x"][0] == pytest.approx(1e308 * np.sqrt(8 / 9), rel=1e-15)


@given(arrays(np.float64, st.tuples(st.integers(1, 20), st.integers(1, 4)), elements=st.floats(-1e6, 1e6)))
def test_spread_is_never_zero_and_the_mean_lies_among_the_rows(cells: np.ndarray) -> None:
    schema = read_table(cells, GAUSS).schema
    centre, spread = np.array(schema.centre["x"]), np.array(schema.spread["x"])
    assert (spread > 0).all()
    assert ((cells.min(axis=0) <= centre) & (centre <= cells.max(axis=0))).all()
    assert (spread[cells.min(axis=0) == cells.max(axis=0)] == 1.0).all()


def test_constant_columns_are_named() -> None:
    frame = pd.DataFrame({"a": [1.0, 2.0], "flat": [3.1, 3.1]})
    (note,) = read_table(frame, GAUSS).warnings
    assert "column 'flat' of 'x': the same value in every row" in note
    assert read_table(frame, GAUSS).schema.spread["x"] == (0.5, 1.0)


def test_equal_rows_are_told() -> None:
    notes = read_table(np.full((4, 2), 0.1), GAUSS).warnings
    assert notes[-1] == "all 4 rows are equal: there is nothing to tell classes apart"
    assert "columns 'x[0]', 'x[1]' of 'x'" in notes[0]


@given(st.lists(st.tuples(LABELS, LABELS), min_size=1, max_size=12))
def test_levels_come_back_as_the_user_wrote_them(rows: list[tuple[object, object]]) -> None:
    cells = np.empty((len(rows), 2), dtype=object)
    cells[:] = rows
    table = read_table({"c": cells}, CLASS)
    schema = table.schema
    assert schema.decode("c", table.arrays["c"]).tolist() == cells.tolist()
    again = read_table({"c": schema.decode("c", table.arrays["c"])}, CLASS, schema=schema)
    assert again.arrays["c"].tolist() == table.arrays["c"].tolist()


@given(st.lists(LABELS, min_size=1, max_size=12))
def test_a_stored_schema_is_the_same_schema(cells: list[object]) -> None:
    spec = Spec(model={"h": Normal(2, loc=0, scale=1), "x": Normal(loc=MLP("h", [3])), "c": Categorical()})
    schema = read_table(
        {"x": np.arange(2.0 * len(cells)).reshape(-1, 2), "c": np.array(cells, dtype=object)}, spec
    ).schema
    assert Schema.from_dict(json.loads(json.dumps(schema.to_dict()))) == schema
