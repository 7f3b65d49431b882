"""What EM finds for each family, against SciPy's and statsmodels' own fits and a general optimiser.

The oracle is the weighted log-likelihood by SciPy's densities, climbed by L-BFGS and Nelder–Mead from the moments.
"""

from __future__ import annotations

import numpy as np
import pytest
import scipy.optimize
import statsmodels.api
from scipy import stats

from ppl_gen.declare.nodes import (
    Binomial,
    Categorical,
    Exponential,
    Gamma,
    Input,
    LogNormal,
    MultivariateStudentT,
    NegativeBinomial,
    Normal,
    StudentT,
)
from ppl_gen.declare.phrasebook import student_t_mixture
from ppl_gen.declare.spec import Spec
from ppl_gen.declare.terms import By, Free, Linear
from ppl_gen.errors import DataError, SpecError
from ppl_gen.fitting import fit
from ppl_gen.infer.algorithms import EM

N = 150
RANDOM = np.random.default_rng(8)
GROUP = np.repeat([0, 1], N // 2)
WEIGHTS = RANDOM.exponential(size=N)
TOTALS = RANDOM.integers(1, 30, (N, 1)).astype(float)
DATA = {
    "t": 40 + 3 * RANDOM.standard_t(3, (N, 1)) + 6 * GROUP[:, None],
    "positive": RANDOM.gamma(3 - GROUP, 2.0)[:, None],
    "count": RANDOM.negative_binomial(2 + 2 * GROUP, 0.3)[:, None].astype(float),
    "share": RANDOM.binomial(12, 0.3 + 0.3 * GROUP)[:, None].astype(float),
    "of totals": RANDOM.binomial(TOTALS.astype(int), 0.3).astype(float),
}
EXACT = EM(tol=1e-13, max_steps=3000)


def climbed(log_likelihood, start):
    """The best point a general optimiser finds, and the log-likelihood there."""
    best = np.asarray(start, dtype=float)
    for method in ("Nelder-Mead", "L-BFGS-B", "Nelder-Mead"):
        options = {"maxiter": 20_000, "maxfev": 20_000, "fatol": 1e-12, "xatol": 1e-9}
        options = options if method == "Nelder-Mead" else {"ftol": 1e-15, "gtol": 1e-9}
        best = scipy.optimize.minimize(lambda p: -log_likelihood(p), best, method=method, options=options).x
    return best, log_likelihood(best)


def t_density(x, p):
    return stats.t.logpdf(x, np.exp(p[0]), p[1], np.exp(p[2]))


def gamma_density(x, p):
    return stats.gamma.logpdf(x, np.exp(p[0]), scale=np.exp(-p[1]))


def negative_binomial_density(x, p):
    return stats.nbinom.logpmf(x, np.exp(p[0]), scipy.special.expit(-p[1]))


# node, its data, the density at unconstrained parameters, and where to begin
WEIGHTED = {
    "StudentT": (StudentT(), "t", t_density, [1, 43, 1]),
    "StudentT, df written": (
        StudentT(df=4),
        "t",
        lambda x, p: stats.t.logpdf(x, 4, p[0], np.exp(p[1])),
        [43, 1],
    ),
    "StudentT, scale written": (
        StudentT(scale=2),
        "t",
        lambda x, p: stats.t.logpdf(x, np.exp(p[0]), p[1], 2),
        [1, 43],
    ),
    "StudentT, loc written": (
        StudentT(loc=41),
        "t",
        lambda x, p: stats.t.logpdf(x, np.exp(p[0]), 41, np.exp(p[1])),
        [1, 1],
    ),
    "MultivariateStudentT of one": (
        MultivariateStudentT(),
        "t",
        lambda x, p: stats.t.logpdf(x, np.exp(p[0]), p[1], np.exp(p[2])),
        [1, 43, 1],
    ),
    "Gamma": (Gamma(), "positive", gamma_density, [0, 0]),
    "Gamma, rate written": (
        Gamma(rate=0.4),
        "positive",
        lambda x, p: gamma_density(x, [p[0], np.log(0.4)]),
        [0],
    ),
    "Gamma, concentration written": (
        Gamma(concentration=2),
        "positive",
        lambda x, p: gamma_density(x, [np.log(2), p[0]]),
        [0],
    ),
    "Exponential": (Exponential(), "positive", lambda x, p: stats.expon.logpdf(x, scale=np.exp(-p[0])), [0]),
    "LogNormal": (
        LogNormal(),
        "positive",
        lambda x, p: stats.lognorm.logpdf(x, np.exp(p[1]), scale=np.exp(p[0])),
        [0, 0],
    ),
    "NegativeBinomial": (NegativeBinomial(), "count", negative_binomial_density, [0, 0]),
    "NegativeBinomial, total_count written": (
        NegativeBinomial(total_count=1.5, logits=Free()),
        "count",
        lambda x, p: negative_binomial_density(x, [np.log(1.5), p[0]]),
        [0],
    ),
    "Binomial": (
        Binomial(total_count=12),
        "share",
        lambda x, p: stats.binom.logpmf(x, 12, scipy.special.expit(p[0])),
        [0],
    ),
}


@pytest.mark.parametrize("case", WEIGHTED)
def test_em_climbs_as_high_on_weighted_rows_as_a_general_optimiser(case):
    node, column, density, start = WEIGHTED[case]
    x = DATA[column]
    found = fit(Spec(model={"x": node}), {"x": x}, EXACT, weights=WEIGHTS)
    _, best = climbed(lambda p: float(WEIGHTS @ density(x[:, 0], p)), start)
    # The optimiser stops within about 1e-9 of the top, in nats; EM within the rest of its own ascent.
    assert found.log_likelihood == pytest.approx(best, abs=1e-6)


def by_group(density, x, group, split):
    """The log-likelihood of two groups; `split(p)` gives each its parameters."""

    def value(p):
        return float(sum(density(x[group == g, 0], split(p)[g]).sum() for g in (0, 1)))

    return value


# what is shared between two known groups, and how many parameters each optimiser has
TIED = {
    "scale of StudentT": (
        StudentT(df=By("g"), loc=By("g"), scale=Free()),
        "t",
        t_density,
        lambda p: ([p[0], p[1], p[4]], [p[2], p[3], p[4]]),
        [1, 40, 1, 46, 1],
    ),
    "df of StudentT": (
        StudentT(df=Free(), loc=By("g"), scale=By("g")),
        "t",
        t_density,
        lambda p: ([p[4], p[0], p[1]], [p[4], p[2], p[3]]),
        [40, 1, 46, 1, 1],
    ),
    "loc of StudentT": (
        StudentT(df=By("g"), loc=Free(), scale=By("g")),
        "t",
        t_density,
        lambda p: ([p[0], p[4], p[1]], [p[2], p[4], p[3]]),
        [1, 1, 1, 1, 43],
    ),
    "scale of MultivariateStudentT": (
        MultivariateStudentT(df=By("g"), loc=By("g"), cov=Free()),
        "t",
        t_density,
        lambda p: ([p[0], p[1], p[4]], [p[2], p[3], p[4]]),
        [1, 40, 1, 46, 1],
    ),
    "concentration of Gamma": (
        Gamma(concentration=Free(), rate=By("g")),
        "positive",
        gamma_density,
        lambda p: ([p[2], p[0]], [p[2], p[1]]),
        [0, 0, 0],
    ),
    "rate of Gamma": (
        Gamma(concentration=By("g"), rate=Free()),
        "positive",
        gamma_density,
        lambda p: ([p[0], p[2]], [p[1], p[2]]),
        [0, 0, 0],
    ),
    "total_count of NegativeBinomial": (
        NegativeBinomial(total_count=Free(), probs=By("g")),
        "count",
        negative_binomial_density,
        lambda p: ([p[2], p[0]], [p[2], p[1]]),
        [0, 0, 0],
    ),
}


@pytest.mark.parametrize("case", TIED)
def test_a_parameter_shared_by_groups_is_maximised_for_all_of_them(case):
    node, column, density, split, start = TIED[case]
    x = DATA[column]
    spec = Spec(model={"g": Categorical(2), "x": node})
    found = fit(spec, {"x": x, "g": GROUP}, EXACT)
    _, best = climbed(by_group(density, x, GROUP, split), start)
    groups = N * np.log(0.5)  # the two halves are equally likely
    assert found.log_likelihood - groups == pytest.approx(best, abs=1e-6)


def test_the_fits_are_those_of_scipy_and_statsmodels():
    def estimates(node, column):
        return fit(Spec(model={"x": node}), {"x": DATA[column]}, EXACT).parameters["x"]

    own = estimates(StudentT(), "t")
    # A simplex search, to four digits or so, and only from a start nearby: from its own it stops on the way.
    df, loc, scale = stats.t.fit(DATA["t"][:, 0], 4, loc=43, scale=4)
    assert (own["df"][0], own["loc"][0], own["scale"][0]) == pytest.approx((df, loc, scale), rel=1e-3)
    own = estimates(Gamma(), "positive")
    shape, _, scale = stats.gamma.fit(DATA["positive"][:, 0], floc=0)
    assert (own["concentration"][0], 1 / own["rate"][0]) == pytest.approx((shape, scale), rel=1e-6)
    own = estimates(LogNormal(), "positive")
    s, _, scale = stats.lognorm.fit(DATA["positive"][:, 0], floc=0)
    assert (own["scale"][0], np.exp(own["loc"][0])) == pytest.approx((s, scale), rel=1e-8)
    own = estimates(NegativeBinomial(), "count")
    stock = statsmodels.api.NegativeBinomial(DATA["count"][:, 0], np.ones(N)).fit(
        disp=False, gtol=1e-9, maxiter=200
    )
    mean = own["total_count"][0] * own["probs"][0] / (1 - own["probs"][0])
    assert (np.log(mean), 1 / own["total_count"][0]) == pytest.approx(tuple(stock.params), rel=1e-4)


def test_a_full_scale_matrix_and_df_are_those_of_a_general_optimiser():
    x = stats.multivariate_t([1, -2], [[2, 0.8], [0.8, 1]], df=4, seed=3).rvs(N)
    found = fit(Spec(model={"x": MultivariateStudentT()}), {"x": x}, EXACT, weights=WEIGHTS)

    def value(p):
        L = np.array([[np.exp(p[2]), 0], [p[3], np.exp(p[4])]])
        return float(WEIGHTS @ stats.multivariate_t.logpdf(x, p[:2], L @ L.T, df=np.exp(p[5])))

    best, top = climbed(value, [1, -2, 0, 0, 0, 1])
    assert found.log_likelihood == pytest.approx(top, abs=1e-6)
    assert found.parameters["x"]["df"][0] == pytest.approx(np.exp(best[5]), rel=1e-4)


def test_a_binomial_whose_total_is_in_the_row_is_logistic_regression_without_slopes():
    spec = Spec(model={"n": Input(), "x": Binomial(total_count="n", logits=Free())})
    data = {"x": DATA["of totals"], "n": TOTALS}
    found = fit(spec, data, EXACT).parameters["x"]["logits"][0]
    share = DATA["of totals"].sum() / TOTALS.sum()
    assert found == pytest.approx(np.log(share / (1 - share)), rel=1e-6)


MISSING = {
    "StudentT": (StudentT(), "t"),
    "Gamma": (Gamma(), "positive"),
    "Exponential": (Exponential(), "positive"),
    "LogNormal": (LogNormal(), "positive"),
    "Binomial": (Binomial(total_count=12), "share"),
    "NegativeBinomial": (NegativeBinomial(), "count"),
}


@pytest.mark.parametrize("case", MISSING)
def test_a_missing_cell_leaves_the_other_columns_as_if_they_stood_alone(case):
    node, column = MISSING[case]
    wide = np.hstack([DATA[column], DATA[column][::-1]])
    wide[::4, 0] = np.nan
    wide[1::4, 1] = np.nan
    both = fit(Spec(model={"x": node}), {"x": wide}, EXACT)
    alone = [fit(Spec(model={"x": node}), {"x": w[~np.isnan(w)][:, None]}, EXACT) for w in wide.T]
    assert both.log_likelihood == pytest.approx(sum(part.log_likelihood for part in alone), abs=1e-6)
    assert both.certificate.ok


def test_an_outlier_does_not_move_the_classes_of_a_student_t_mixture():
    rows = np.vstack([RANDOM.normal(0, 1, (80, 2)), RANDOM.normal(8, 1, (80, 2))])
    spoiled = np.vstack([rows, [[400.0, -300.0]]])
    found = fit(student_t_mixture(2, "tied"), {"x": spoiled}, EM(restarts=5)).parameters["x"]["loc"]
    centres = np.sort(found, axis=0)
    # Five standard errors of a mean over 80 rows.
    np.testing.assert_allclose(centres, [[0, 0], [8, 8]], atol=5 / np.sqrt(80))


def test_data_without_tails_are_reported_as_next_to_normal():
    found = fit(
        Spec(model={"x": StudentT()}), {"x": RANDOM.uniform(size=(400, 1))}, EM(tol=1e-9, max_steps=3000)
    )
    line = next(line for line in found.certificate.lines if line.name == "boundaries")
    assert "df of x above 1000" in line.text


WRONG = [
    (
        Gamma(),
        [[1.0], [0.0], [2.0]],
        "column 'x' holds 0 in row 1 (counting from 0), where the family takes values",
    ),
    (LogNormal(), [[1.0], [-3.0], [2.0]], "column 'x' holds -3 in row 1"),
    (NegativeBinomial(), [[1.0], [0.5], [2.0]], "counts are whole numbers"),
    (
        Binomial(total_count=3),
        [[1.0], [4.0], [5.0]],
        "holds 4 in row 1 (counting from 0), where total_count is 3; 2 such",
    ),
]


@pytest.mark.parametrize(("node", "rows", "message"), WRONG, ids=lambda v: getattr(v, "family", ""))
def test_values_a_family_does_not_take_are_named_with_column_row_and_count(node, rows, message):
    with pytest.raises(DataError) as caught:
        fit(Spec(model={"x": node}), {"x": rows})
    assert message in str(caught.value)


def test_more_successes_than_trials_are_named_with_the_total_beside_them():
    spec = Spec(model={"n": Input(), "x": Binomial(total_count="n")})
    with pytest.raises(DataError, match=r"holds 5 in row 1 .*, where total_count \(n\) is 4"):
        fit(spec, {"x": [[1.0], [5.0]], "n": [[3.0], [4.0]]})
    with pytest.raises(DataError, match="counts are whole numbers"):
        fit(spec, {"x": [[1.0], [2.0]], "n": [[3.0], [2.5]]})


def test_a_total_that_would_have_to_be_learned_is_refused():
    with pytest.raises(SpecError, match="'x' needs total_count given with every row, but n is Free"):
        Spec(model={"n": Free(dim=1), "x": Binomial(2, total_count="n")})


def test_a_robust_regression_is_that_of_a_general_optimiser():
    u = RANDOM.normal(size=(N, 1))
    y = 2 + 3 * u + RANDOM.standard_t(2, (N, 1))
    spec = Spec(model={"u": Input(), "y": StudentT(1, df=3, loc=Linear("u"), scale=Free())})
    found = fit(spec, {"u": u, "y": y}, EM(tol=1e-12, max_steps=500))
    _, best = climbed(
        lambda p: stats.t.logpdf(y[:, 0], 3, p[0] + p[1] * u[:, 0], np.exp(p[2])).sum(), [0, 0, 0]
    )
    assert found.log_likelihood == pytest.approx(best, abs=1e-5)


def test_mixed_rows_of_new_and_old_families_fit_together():
    spec = Spec(
        model={
            "z": Categorical(2),
            "a": StudentT(1, df=5, loc=By("z"), scale=By("z")),
            "b": Gamma(1, concentration=By("z"), rate=By("z")),
            "c": NegativeBinomial(1, total_count=Free(), logits=By("z")),
            "d": Normal(1, loc=By("z"), scale=By("z")),
        }
    )
    data = {
        "a": DATA["t"],
        "b": DATA["positive"],
        "c": DATA["count"],
        "d": RANDOM.normal(8.0 * GROUP)[:, None],
    }
    found = fit(spec, data, EM(restarts=2))
    assert found.certificate.ok, found.certificate
