"""Sizes before there are data, and the way back from codes to levels."""

from __future__ import annotations

import re
from dataclasses import replace

import numpy as np
import pytest

from ppl_gen.data.schema import Schema
from ppl_gen.data.sizes import declared_sizes, schema_without_data
from ppl_gen.declare.nodes import Categorical, Input, MultivariateNormal, Normal
from ppl_gen.declare.spec import Roles, Spec
from ppl_gen.declare.terms import By, Linear
from ppl_gen.errors import DataError, SpecError

SCHEMA = Schema(
    Roles(("c", "d"), ("z",), ()),
    dims={"z": 1, "c": 1, "d": 2},
    k={"z": 2, "c": 3, "d": 3},
    columns={"c": ("c",), "d": ("a", "b")},
    levels={"c": (("no", "yes"),), "d": (None, ("u", "v"))},
)


def test_a_model_can_be_shown_before_there_are_data() -> None:
    spec = Spec(model={"z": Categorical(3), "x": MultivariateNormal(loc=By("z"), cov=By("z"))})
    schema = schema_without_data(spec, {"x": 2})
    assert (schema.dims, schema.k) == ({"z": 1, "x": 2}, {"z": 3})
    assert schema.columns == {"x": ("x[0]", "x[1]")}
    assert (schema.centre, schema.spread) == ({"x": (0.0, 0.0)}, {"x": (1.0, 1.0)})
    assert Schema.from_dict(schema.to_dict()) == schema


@pytest.mark.parametrize(
    ("model", "name", "size"),
    [
        ({"x": Normal(loc=[0, 1])}, "x", 2),
        ({"x": MultivariateNormal(cov=[[1, 0, 0], [0, 1, 0], [0, 0, 1]])}, "x", 3),
        ({"z": Normal(3, loc=0, scale=1), "x": Normal(loc="z")}, "x", 3),
        ({"u": Input(1), "x": Normal(loc=Linear("u", dim=4))}, "x", 4),
        ({"x": Categorical(2, probs=[[0.5, 0.5], [0.1, 0.9], [0.2, 0.8]])}, "x", 3),
        ({"x": Normal([4, 5])}, "x", 20),
    ],
)
def test_a_size_written_once_anywhere_is_enough(model: dict, name: str, size: int) -> None:
    assert declared_sizes(Spec(model=model)).dims[name].size == size


def test_one_value_for_all_dimensions_is_no_size() -> None:
    spec = Spec(model={"z": Categorical(2), "x": Normal(loc=By("z"), scale=By("z", dim=1))})
    assert "x" not in declared_sizes(spec).dims


def test_the_number_of_categories_may_be_written_in_the_probabilities() -> None:
    schema = schema_without_data(Spec(model={"c": Categorical(probs=[0.2, 0.3, 0.5])}))
    assert schema.k == {"c": 3}


@pytest.mark.parametrize(
    ("spec", "sizes", "message"),
    [
        (
            Spec(model={"x": Normal()}),
            {},
            "the size of 'x' is written nowhere and no data give it: write x: Normal(dim, ...)",
        ),
        (Spec(model={"c": Categorical()}), {}, "write c: Categorical(k, ...)"),
        (Spec(model={"x": Normal(3)}), {"x": 2}, "'x' is declared Normal(3), but sizes gives it 2"),
        (Spec(model={"x": Normal(3)}), {"y": 2}, "sizes has 'y'"),
        (
            Spec(model={"x": Normal(loc=[0, 1], scale=[1, 1, 1])}),
            {},
            "'x' has loc=[0, 1] (2 wide), but has scale=[1, 1, 1] (3 wide)",
        ),
        (
            Spec(model={"x": Normal(loc=[0, 1])}, columns={"x": ("a", "b", "c")}),
            {},
            "'x' has 3 columns under columns:, but has loc=[0, 1] (2 wide)",
        ),
    ],
)
def test_an_unsettled_size_says_what_to_write(spec: Spec, sizes: dict[str, int], message: str) -> None:
    with pytest.raises(SpecError, match=re.escape(message)):
        schema_without_data(spec, sizes)


def test_categorical_sizes_are_told_apart() -> None:
    schema = schema_without_data(Spec(model={"c": Categorical()}), {"c.dim": 7, "c.k": 2})
    assert (schema.dims, schema.k, schema.levels) == ({"c": 7}, {"c": 2}, {"c": (None,) * 7})


@pytest.mark.parametrize(
    ("name", "codes", "values"),
    [
        ("c", [0, 1], ["no", "yes"]),
        ("c", [[1.0], [0.0]], [["yes"], ["no"]]),
        ("c", 1, "yes"),
        ("c", [0, 2], ["no", 2]),
        ("d", [[2, 1], [0, 0]], [[2, "v"], [0, "u"]]),
        ("z", [1, 0], [1, 0]),
    ],
)
def test_codes_become_the_levels_of_their_column(name: str, codes: object, values: object) -> None:
    assert SCHEMA.decode(name, codes).tolist() == values


@pytest.mark.parametrize(
    ("name", "codes", "message"),
    [
        ("c", [3], "must be 0..2; found 3..3"),
        ("c", [-1], "must be 0..2"),
        ("c", [0.5], "not whole numbers"),
        ("d", [0, 1, 1], "need 2 columns on their last axis"),
        ("q", [0], "no node is called 'q'; there are z, c, d"),
    ],
)
def test_codes_that_stand_for_nothing_are_refused(name: str, codes: object, message: str) -> None:
    with pytest.raises(DataError, match=re.escape(message)):
        SCHEMA.decode(name, codes)


def test_columns_narrower_than_k_say_so() -> None:
    assert SCHEMA.level_counts("d") == (3, 2)
    assert SCHEMA.level_counts("c") == (3,)  # declared: one exists without a level
    assert replace(SCHEMA, partial=("d",)).level_counts("d") == (3, 3)  # an unlabelled row may be any
    assert SCHEMA.column_names("d") == ("a", "b")
    assert SCHEMA.column_names("z") == ("z",)


def test_files_written_before_labels_could_be_partial_still_load() -> None:
    partly = replace(SCHEMA, partial=("d",))
    assert Schema.from_dict(partly.to_dict()) == partly
    stored = SCHEMA.to_dict()
    del stored["partial"]
    assert Schema.from_dict(stored) == SCHEMA


def test_a_damaged_file_is_told_as_such() -> None:
    stored = SCHEMA.to_dict()
    del stored["dims"]
    with pytest.raises(DataError, match="the stored schema is damaged: KeyError"):
        Schema.from_dict(stored)


def test_integer_levels_stay_integers() -> None:
    schema = Schema(Roles(("c",), (), ()), {"c": 1}, {"c": 2}, levels={"c": ((1, 2),)})
    assert schema.decode("c", np.array([1, 0])).dtype == np.int64
