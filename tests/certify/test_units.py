"""What the data's units do to a certificate: nothing, from 1e-200 to 1e+200."""

from __future__ import annotations

import numpy as np
import pytest

from ppl_gen.certify import bounds
from ppl_gen.certify.certify import certify
from ppl_gen.certify.subject import subject_of
from ppl_gen.data.reading import read_table
from ppl_gen.declare.nodes import Categorical, Exponential, Gamma, MultivariateNormal, Normal, StudentT
from ppl_gen.declare.spec import Spec
from ppl_gen.declare.terms import By, Free
from ppl_gen.infer.algorithms import EM
from ppl_gen.infer.em import run_em
from ppl_gen.program.program import compile_spec

Z = Categorical(2)
FORMS = {
    "full": {"z": Z, "x": MultivariateNormal(2, loc=By("z"), cov=By("z"))},
    "tied": {"z": Z, "x": MultivariateNormal(2, loc=By("z"), cov=Free())},
    "factor": {"z": Z, "x": MultivariateNormal(2, loc=By("z"), scale_tril=By("z"))},
    "diagonal": {"z": Z, "x": Normal(2, loc=By("z"), scale=By("z"))},
    "spherical": {"z": Z, "x": Normal(2, loc=By("z"), scale=By("z", dim=1))},
    "shared": {"z": Z, "x": Normal(2, loc=By("z"), scale=Free())},
    "Student": {"z": Z, "x": StudentT(2, df=5.0, loc=By("z"), scale=By("z"))},
}


@pytest.fixture(scope="module")
def rows():
    rng = np.random.default_rng(0)
    near = rng.normal(size=(40, 2)) @ np.array([[1, 0.5], [0, 1]])
    return np.concatenate([near, rng.normal(4, [1, 2], (20, 2))])


def certificate_of(model, x):
    spec = Spec(model=model)
    table = read_table({"x": x}, spec)
    program = compile_spec(spec, table.schema)
    run = run_em(program, table, EM(restarts=1, lowering="eager"))
    program.load_state_dict(run.state)
    return certify(program, run, table), program, table


UNITS = [(1e-150, 1e-100), (1e100, 1.0), (1e145, 1e150)]
FARTHER = [(1e-200, 1.0), (1e-170, 1e-170), (1e200, 1e200)]
CASES = [(form, unit) for form in FORMS for unit in UNITS]
CASES += [(form, unit) for form in FORMS for unit in FARTHER]


@pytest.mark.parametrize(("form", "unit"), CASES)
def test_a_sound_fit_is_certified_in_any_units(rows, form, unit):
    units = np.array(unit) if form != "spherical" else unit[0]  # one scale for both columns is of one unit
    plain, _, _ = certificate_of(FORMS[form], rows)
    far, _, _ = certificate_of(FORMS[form], rows * units)
    assert far.ok, str(far)
    judged = [line.name for line in plain.lines if line.ok is not None]
    assert [line.name for line in far.lines if line.ok is not None] == judged
    assert far["gradient"].value == pytest.approx(plain["gradient"].value, rel=1e-6, abs=1e-9)


@pytest.mark.parametrize("family", [Gamma(2), Exponential(2)])
def test_where_second_derivatives_overflow_the_line_says_so_and_gives_no_verdict(rows, family):
    found, _, _ = certificate_of({"x": family}, np.abs(rows) * 1e200)
    assert found.ok
    assert found["information"].ok is None
    assert "overflow" in found["information"].text


def test_the_formulas_densities_are_scipys_where_a_factor_is_shared_by_all_rows(rows):
    from scipy.stats import multivariate_normal

    _, program, table = certificate_of(FORMS["full"], rows)
    natural = program.natural()
    shares, x = natural["z"]["probs"], natural["x"]
    expected = [
        np.log(p) + multivariate_normal(loc, cov).logpdf(rows)
        for p, loc, cov in zip(shares, x["loc"], x["cov"], strict=True)
    ]
    found = bounds.exact_table(subject_of(program, table, 0))
    np.testing.assert_allclose(found, np.transpose(expected), rtol=1e-10)
