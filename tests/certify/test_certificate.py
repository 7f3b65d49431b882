"""What a reader of a certificate would lose: the verdict, its way through JSON, a table that can be read."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest

from ppl_gen.certify import lines
from ppl_gen.certify.certificate import Certificate, Line
from ppl_gen.certify.certify import certify
from ppl_gen.certify.check import check
from ppl_gen.data.reading import read_table
from ppl_gen.declare.files import read_spec
from ppl_gen.declare.nodes import Bernoulli, Categorical, Input, MultivariateNormal, Normal
from ppl_gen.declare.spec import Spec
from ppl_gen.declare.terms import MLP, By, Free, Linear
from ppl_gen.infer.algorithms import EM
from ppl_gen.infer.em import run_em
from ppl_gen.infer.run import Mode, Run
from ppl_gen.infer.status import Status
from ppl_gen.program.program import compile_spec

THREE = Certificate(
    (
        Line("ascent", True, 0.0, 1e-7, "never fell"),
        Line("gap", False, -2.0, -0.3, "a bound above log p(x), " * 12),
        Line("modes", None, math.nan, None, "one"),
    )
)


def test_one_failed_line_fails_the_certificate_and_an_informing_one_does_not():
    assert not THREE.ok
    assert THREE.failed == ("gap",)
    assert Certificate((THREE["ascent"], THREE["modes"])).ok


def test_a_certificate_survives_strict_json_with_values_that_are_no_numbers():
    stored = json.dumps(THREE.to_dict(), allow_nan=False)
    back = Certificate.from_dict(json.loads(stored))
    assert math.isnan(back["modes"].value)
    assert back.lines[:2] == THREE.lines[:2]


def test_the_table_is_aligned_names_every_verdict_and_fits_a_terminal():
    printed = str(THREE).splitlines()
    assert max(map(len, printed)) <= 110
    assert printed[0].split() == ["check", "verdict", "value", "limit", "meaning"]
    column = printed[0].index("meaning")
    assert all(line[column - 1] == " " and line[column] != " " for line in printed)
    assert [line.split()[1] for line in printed if line[0] != " "][1:] == ["ok", "FAILED", "-"]


def test_an_unknown_line_is_answered_with_those_there_are():
    with pytest.raises(KeyError, match="ascent, gap, modes"):
        THREE["objective"]


def test_ascent_allows_rounding_and_nothing_more():
    n, top = 100, -1000.0
    assert lines.ascent([-1200.0, top, top - 1e-8], n).ok
    fallen = lines.ascent([-1200.0, top, top - 1e-6, top], n)
    assert fallen.ok is False
    assert fallen.value == pytest.approx(1e-6)
    assert not lines.ascent([-1200.0, math.nan], n).ok


def test_an_estimated_gap_may_be_three_standard_errors_below_zero_and_no_more():
    zero = np.zeros(4)
    error = np.full(4, 0.2)  # of the mean: 0.1
    assert lines.estimated_gap(zero - 0.29, error, zero, zero).ok
    assert not lines.estimated_gap(zero - 0.31, error, zero, zero).ok
    assert not lines.estimated_gap(zero * np.nan, error, zero, zero).ok


def test_modes_tell_hits_and_collapsed_restarts():
    line = lines.modes([Mode(-10.0, 3), Mode(-12.5, 1)], finished=5, collapsed=1)
    assert line.ok is None
    assert all(part in line.text for part in ("3 of 5", "-10", "-12.5 (1)", "1 collapsed"))


def boundaries_of(spec, data, state_changes):
    table = read_table(data, spec)
    program = compile_spec(spec, table.schema)
    for path, change in state_changes.items():
        parameter = dict(program.named_parameters())[path]
        change(parameter.data)
    run = Run(program.state_dict(), (-1.0,), Status.MAX_STEPS)
    return certify(program, run, table)["boundaries"].text


def test_an_empty_class_a_sure_probability_and_a_floored_variance_are_listed():
    spec = Spec(
        model={
            "z": Categorical(3),
            "x": Normal(2, loc=By("z"), scale=By("z")),
            "y": Bernoulli(1, probs=By("z")),
        }
    )
    rng = np.random.default_rng(0)
    data = {"x": rng.normal(size=(50, 2)) * [1, 1000], "y": rng.integers(0, 2, (50, 1))}
    changes = {
        "generative.layers.z:probs.table": lambda table: table[2].fill_(-50.0),
        "generative.layers.x:scale.table": lambda table: table[0, 1].fill_(np.log(1e-1)),
        "generative.layers.y:probs.table": lambda table: table[1].fill_(40.0),
    }
    text = boundaries_of(spec, data, changes)
    assert "z=2 is empty" in text
    assert "the variance of x[1] is at its floor (0.01)" in text
    assert "1 of 3 probabilities of y at 0 or 1" in text
    assert boundaries_of(spec, data, {}) == "none"


def test_a_latent_dimension_that_carries_nothing_is_listed():
    spec = Spec(
        model={"z": Normal(2, loc=0, scale=1), "x": Normal(3, loc=Linear("z"), scale=1)},
        guide={"z": Normal(2, loc=Linear("x"), scale=1)},
    )
    data = {"x": np.random.default_rng(0).normal(size=(40, 3))}
    path = "recognition.layers.z:loc.weight"
    text = boundaries_of(spec, data, {path: lambda weight: (weight.fill_(1.0), weight[1].fill_(0.0))})
    assert text.endswith("z[1]")


def test_the_gradient_does_not_depend_on_the_units_of_the_columns():
    rng = np.random.default_rng(1)
    x = np.concatenate([rng.normal(0, 1, (40, 2)), rng.normal(3, 2, (30, 2))])
    values = []
    for unit in ([1.0, 1.0], [1000.0, 0.01]):
        spec = Spec(model={"z": Categorical(2), "x": MultivariateNormal(2, loc=By("z"), cov=By("z"))})
        table = read_table({"x": x * unit}, spec)
        program = compile_spec(spec, table.schema)
        run = run_em(program, table, EM(max_steps=3, restarts=1, init="random-rows", lowering="eager"))
        program.load_state_dict(run.state)
        values.append(certify(program, run, table)["gradient"].value)
    assert values[0] > 1e-3  # three steps are not enough
    assert values[1] == pytest.approx(values[0], rel=1e-8)


def test_more_than_a_thousand_rows_are_certified_on_a_thousand_of_them_by_seed():
    spec = read_spec("poisson_mixture")
    table = read_table({"x": np.random.default_rng(0).poisson(3, (1500, 1))}, spec)
    program = compile_spec(spec, table.schema)
    run = Run(program.state_dict(), (-1.0,), Status.MAX_STEPS)
    first, again, other = (certify(program, run, table, seed=seed) for seed in (0, 0, 1))
    assert "1000 rows" in first["objective"].text
    assert str(first) == str(again)
    assert first["gap"].ok
    assert other["gap"].ok


HIERARCHY = Spec(
    model={
        "a": Normal(2, loc=0, scale=1),
        "b": MultivariateNormal(2, loc=Linear("a"), cov=Free()),
        "x": Normal(3, loc=MLP("b", [4]), scale=1),
    }
)
TWO_CLASSES = Spec(
    model={
        "u": Input(2),
        "a": Categorical(2, logits=Linear("u")),
        "b": Bernoulli(2, probs=By("a")),
        "x": Normal(3, loc=By(["a", "b"]), scale=Free(dim=1)),
    }
)


@pytest.mark.parametrize("name", ["gaussian_mixture", "vae", "vae_diagonal", HIERARCHY, TWO_CLASSES])
def test_check_compares_every_term_and_all_agree_before_any_fit(name):
    spec = read_spec(name) if isinstance(name, str) else name
    rng = np.random.default_rng(0)
    data = {"x": rng.normal(size=(40, 3))} | {key: rng.normal(size=(40, 2)) for key in spec.inputs}
    table = read_table(data, spec)
    found = check(compile_spec(spec, table.schema), table)
    assert found.ok, str(found)
    names = [line.name for line in found.lines]
    assert len(set(names)) == len(names)
    wanted = (
        ["log p(x)", "LB at q = r", "Q"]
        if name == "gaussian_mixture" or name is TWO_CLASSES
        else ["sampled bound"]
    )
    assert set(wanted) <= set(names)
    assert ("closed bound" in names) == (name in ("vae", "vae_diagonal"))
    assert all("Pyro" in line.text and "formula" in line.text for line in found.lines)
