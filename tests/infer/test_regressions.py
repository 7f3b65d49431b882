"""Regressions, one class or several: what statsmodels and a general optimiser find is what is found here."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from scipy.optimize import minimize
from scipy.special import expit, logsumexp
from scipy.stats import bernoulli, gamma, norm, poisson

from ppl_gen.declare.nodes import (
    Bernoulli,
    Binomial,
    Categorical,
    Gamma,
    Input,
    NegativeBinomial,
    Node,
    Normal,
    Poisson,
)
from ppl_gen.declare.spec import Spec
from ppl_gen.declare.terms import MLP, By, Free, Linear, Sum
from ppl_gen.errors import FitError
from ppl_gen.fitting import fit
from ppl_gen.infer.algorithms import EM
from ppl_gen.infer.status import Status

sm = pytest.importorskip("statsmodels.api")

R = np.random.default_rng(0)
N = 400
RAW = np.column_stack([R.normal(1e4, 300, N), R.normal(0, 1, N)])  # one column far from 0, as in real tables
U = (RAW - [1e4, 0]) / [300, 1]
ETA = 0.5 + 0.4 * U[:, 0] - 0.7 * U[:, 1]
MU = np.exp(ETA)
COUNTED = R.integers(0, 4, N)
HOURS = np.log(R.uniform(1, 10, N))
TRIALS = R.integers(1, 20, N)
DESIGN = sm.add_constant(RAW)
EXACT = EM(tol=1e-13)
INPUT = {"u": Input(2)}


def in_order(term: dict[str, np.ndarray]) -> np.ndarray:
    """Intercept, then slopes, as statsmodels has them."""
    return np.concatenate([np.ravel(term["bias"]), np.ravel(term["weight"])])


def glm(y: np.ndarray, family: str, **options: np.ndarray) -> tuple[np.ndarray, float]:
    links = {"Gamma": sm.families.links.Log()}
    chosen = getattr(sm.families, family)(**({"link": links[family]} if family in links else {}))
    found = sm.GLM(y, DESIGN, family=chosen, **options).fit(tol=1e-14, maxiter=200)
    return found.params, found.llf


def test_poisson_regression_with_weights_and_exposure_is_the_glm() -> None:
    y = R.poisson(MU * np.exp(HOURS)).astype(float)
    params, log_likelihood = glm(y, "Poisson", freq_weights=COUNTED, offset=HOURS)
    model = INPUT | {"hours": Input(1), "y": Poisson(1, rate=Sum(Linear("u"), "hours"))}
    data = {"u": RAW, "hours": HOURS[:, None], "y": y[:, None]}
    found = fit(Spec(model=model), data, EXACT, weights=COUNTED)
    np.testing.assert_allclose(in_order(found.parameters["y"]["rate"][0]), params, rtol=1e-8)
    assert found.log_likelihood == pytest.approx(log_likelihood, rel=1e-12)
    assert found.certificate.ok, found.certificate


def test_logistic_and_binomial_regression_are_the_glms() -> None:
    y = (R.random(N) < expit(ETA)).astype(float)
    params, log_likelihood = glm(y, "Binomial")
    found = fit(
        Spec(model=INPUT | {"y": Bernoulli(1, probs=Linear("u"))}), {"u": RAW, "y": y[:, None]}, EXACT
    )
    np.testing.assert_allclose(in_order(found.parameters["y"]["probs"]), params, rtol=1e-8)
    assert found.log_likelihood == pytest.approx(log_likelihood, rel=1e-12)
    successes = R.binomial(TRIALS, expit(ETA)).astype(float)
    params, log_likelihood = glm(np.column_stack([successes, TRIALS - successes]), "Binomial")
    model = INPUT | {"n": Input(1), "y": Binomial(1, total_count="n", logits=Linear("u"))}
    data = {"u": RAW, "n": TRIALS[:, None].astype(float), "y": successes[:, None]}
    found = fit(Spec(model=model), data, EXACT)
    np.testing.assert_allclose(in_order(found.parameters["y"]["logits"]), params, rtol=1e-8)
    assert found.log_likelihood == pytest.approx(log_likelihood, rel=1e-12)


def test_gamma_regression_has_the_glms_slopes() -> None:
    # The mean is concentration/rate: the rate's slopes are those of the mean, negative, at any concentration.
    y = R.gamma(3.0, MU / 3.0)
    params, _ = glm(y, "Gamma")
    model = INPUT | {"y": Gamma(1, concentration=Free(), rate=Linear("u"))}
    found = fit(Spec(model=model), {"u": RAW, "y": y[:, None]}, EXACT)
    p = found.parameters["y"]
    np.testing.assert_allclose(-in_order(p["rate"])[1:], params[1:], rtol=1e-7)
    mean = np.exp(DESIGN @ params)
    best = max(
        gamma.logpdf(y, a, scale=mean / a).sum() for a in p["concentration"] * np.array([0.99, 1.0, 1.01])
    )
    assert found.log_likelihood == pytest.approx(best, rel=1e-10)


def test_negative_binomial_regression_is_statsmodels() -> None:
    y = R.negative_binomial(3, 3 / (3 + MU)).astype(float)
    peer = sm.NegativeBinomial(y, sm.add_constant(U)).fit(disp=0, maxiter=500, gtol=1e-8)
    model = INPUT | {"y": NegativeBinomial(1, total_count=Free(), logits=Linear("u"))}
    found = fit(Spec(model=model), {"u": RAW, "y": y[:, None]}, EXACT)
    assert found.log_likelihood == pytest.approx(peer.llf, rel=1e-9)
    assert found.parameters["y"]["total_count"] == pytest.approx(1 / peer.params[-1], rel=1e-4)


def test_weighted_least_squares_far_from_zero() -> None:
    y = 1e5 + 50 * (ETA + R.normal(0, 0.3, N))
    peer = sm.WLS(y, DESIGN, weights=COUNTED).fit()
    model = Spec(model=INPUT | {"y": Normal(1, loc=Linear("u"))})
    found = fit(model, {"u": RAW, "y": y[:, None]}, EXACT, weights=COUNTED)
    p = found.parameters["y"]
    np.testing.assert_allclose(in_order(p["loc"]), peer.params, rtol=1e-9)
    assert p["scale"] == pytest.approx(np.sqrt((COUNTED * peer.resid**2).sum() / COUNTED.sum()), rel=1e-9)


def test_a_category_in_a_regression_gives_the_means_of_its_levels() -> None:
    c = R.integers(0, 3, N)
    y = R.poisson(np.array([1.0, 3.0, 2.0])[c]).astype(float)
    model = Spec(model={"c": Input(k=3), "y": Poisson(1, rate=Linear("c"))})
    rate = fit(model, {"c": np.array(["a", "b", "c"])[c], "y": y[:, None]}, EXACT).parameters["y"]["rate"]
    levels = np.log([y[c == k].mean() for k in range(3)])
    np.testing.assert_allclose(rate["bias"], levels[:1], rtol=1e-9)
    np.testing.assert_allclose(rate["weight"][0], levels[1:] - levels[0], rtol=1e-9)


@pytest.mark.parametrize(("node", "key"), [(Poisson, "rate"), (Normal, "loc")])
def test_columns_that_repeat_one_another_change_no_fitted_value(node: type[Node], key: str) -> None:
    y = R.poisson(MU).astype(float)[:, None]
    again = np.column_stack([RAW, 2 * RAW[:, 0] + 3, RAW[:, 1] - RAW[:, 0]])
    fitted = []
    for columns in (RAW, again):
        model = Spec(model={"u": Input(columns.shape[1]), "y": node(1, **{key: Linear("u")})})
        term = fit(model, {"u": columns, "y": y}, EXACT).parameters["y"][key]
        fitted.append(columns @ term["weight"].T + term["bias"])
    np.testing.assert_allclose(fitted[1], fitted[0], rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize("columns", ["one", "both", "a category"])
def test_outcomes_without_error_end_at_the_boundary_and_say_so(columns: str) -> None:
    if columns == "a category":
        u: np.ndarray = (np.arange(N) < 30).astype(int)
        y, entry = np.where(u, 1.0, R.random(N) < 0.5), Input(k=2)
    else:
        y, entry = (U[:, 0] + U[:, 1] * (columns == "both") > 0.1).astype(float), Input(2)
        u = RAW
    found = fit(Spec(model={"u": entry, "y": Bernoulli(1, logits=Linear("u"))}), {"u": u, "y": y[:, None]})
    assert found.status is Status.BOUNDARY
    assert any("the data do not bound" in note for note in found.run.notes)
    assert all(np.isfinite(value).all() for value in found.parameters["y"]["logits"].values())
    free = 0.0 if columns != "a category" else bernoulli.logpmf(y[30:], y[30:].mean()).sum()
    assert found.log_likelihood == pytest.approx(free, abs=1e-6)
    assert found.certificate.ok, found.certificate


# Mixtures: the log-likelihood written out once more, and a general optimiser on it.

X = R.uniform(0, 10, 200)
CLASS = np.arange(200) % 2
NPREG = np.where(CLASS, 5 * X, 40 - (X - 5) ** 2) + R.normal(
    0, 3, 200
)  # Leisch (2004): two classes that cross
RATES = np.exp(np.where(CLASS, 3 - 0.3 * X, 0.3 * X))
ITEMS = expit(np.where(CLASS, 1, -1)[:, None] * (X - 5)[:, None] + np.array([-0.5, 0.0, 0.5, 1.0]))
Terms = Callable[[np.ndarray, np.ndarray], np.ndarray]

MIXTURES: dict[str, tuple[Node, np.ndarray, np.ndarray, int, Terms]] = {
    "normal": (
        Normal(loc=Linear("u", by="z"), scale=By("z")),
        np.column_stack([X, X**2]),
        NPREG[:, None],
        4,
        lambda eta, more: norm.logpdf(NPREG, eta[0], np.exp(more[0])),
    ),
    "poisson": (
        Poisson(rate=Linear("u", by="z")),
        X[:, None],
        R.poisson(RATES)[:, None].astype(float),
        2,
        lambda eta, more: poisson.logpmf(MIXTURES["poisson"][2][:, 0], np.exp(eta[0])),
    ),
    "gamma": (
        Gamma(concentration=By("z"), rate=Linear("u", by="z")),
        X[:, None],
        R.gamma(4, RATES / 4)[:, None],
        3,
        lambda eta, more: gamma.logpdf(MIXTURES["gamma"][2][:, 0], np.exp(more[0]), scale=np.exp(-eta[0])),
    ),
    "coins": (
        Bernoulli(logits=Linear("u", by="z")),
        X[:, None],
        (R.random(ITEMS.shape) < ITEMS).astype(float),
        8,
        lambda eta, more: bernoulli.logpmf(MIXTURES["coins"][2].T, expit(eta)).sum(0),
    ),
}


def packed(parameters: dict[str, dict], name: str) -> np.ndarray:
    """The log-odds of class 1, then a class's intercepts, slopes and logarithms of scales, class by class."""
    node, p, rows = MIXTURES[name][0], parameters["y"], []
    term = next(p[key] for key in p if isinstance(p[key], dict))
    for k in range(2):
        extra = [np.log(p[key][k]) for key in p if not isinstance(p[key], dict)]
        rows.append(np.concatenate([term["bias"][k], term["weight"][k].ravel(), *extra]))
    assert len(rows[0]) == MIXTURES[name][3], node
    probs = parameters["z"]["probs"]
    return np.concatenate([[np.log(probs[1] / probs[0])], *rows])


def negative(theta: np.ndarray, name: str) -> float:
    """−Σ log Σ_k π_k f(y | u, k)."""
    _, u, y, size, terms = MIXTURES[name]
    D = y.shape[1]
    probs = np.log([expit(-theta[0]), expit(theta[0])])
    joint = []
    for k in range(2):
        own = theta[1 + k * size : 1 + (k + 1) * size]
        slopes = own[D : D + D * u.shape[1]].reshape(D, -1)
        joint.append(probs[k] + terms(own[:D, None] + slopes @ u.T, own[D + slopes.size :]))
    return float(-logsumexp(joint, axis=0).sum())


@pytest.mark.parametrize("name", MIXTURES)
def test_a_mixture_of_regressions_is_at_the_maximum_that_a_general_optimiser_finds(name: str) -> None:
    node, u, y, _, _ = MIXTURES[name]
    found = fit(
        Spec(model={"u": Input(), "z": Categorical(2), "y": node}),
        {"u": u, "y": y},
        EM(tol=1e-12, restarts=12),
    )
    theta = packed(found.parameters, name)
    assert -negative(theta, name) == pytest.approx(found.log_likelihood, rel=1e-10)
    assert np.diff(found.history).min() >= -1e-9 * abs(found.log_likelihood)
    scale = np.maximum(np.abs(theta), 1.0)
    slopes = [
        (negative(theta + h, name) - negative(theta - h, name)) / (2e-5 * scale[i])
        for i, h in enumerate(np.diag(1e-5 * scale))
    ]
    curvature = np.array(
        [
            (negative(theta + h, name) + negative(theta - h, name) - 2 * negative(theta, name))
            / (1e-3 * scale[i]) ** 2
            for i, h in enumerate(np.diag(1e-3 * scale))
        ]
    )
    # What a Newton step along each coordinate would still bring, in nats, and that the point is no saddle.
    assert (np.square(slopes) / curvature).max() < 1e-6
    for spread in (0.0, 0.2):  # neither from here nor from around does the optimiser find anything higher
        begun = np.random.default_rng(int(10 * spread)).normal(theta, spread * scale)
        with np.errstate(all="ignore"):
            climbed = minimize(negative, begun, args=(name,), method="BFGS", options={"maxiter": 60})
        assert -climbed.fun <= found.log_likelihood + 1e-6
    assert found.certificate.ok, found.certificate


def test_lines_that_cross_are_found_from_most_starts() -> None:
    x = R.uniform(-3, 3, 200)
    y = np.where(CLASS, 2 * x, -2 * x) + R.normal(0, 0.5, 200)
    model = Spec(
        model={"u": Input(), "z": Categorical(2), "y": Normal(loc=Linear("u", by="z"), scale=By("z"))}
    )
    found = fit(model, {"u": x[:, None], "y": y[:, None]}, EM(restarts=10))
    slopes = np.sort(found.parameters["y"]["loc"]["weight"].ravel())
    np.testing.assert_allclose(slopes, [-2, 2], atol=4 * 0.5 / np.sqrt(100 * 3))  # four standard errors
    assert found.run.modes[0].hits >= 8


@pytest.mark.filterwarnings("ignore:stopped")
def test_a_fit_can_be_taken_up_again_from_its_parameters() -> None:
    x = R.uniform(-3, 3, 200)
    data = {"u": x[:, None], "y": (np.where(CLASS, 2 * x, -2 * x) + R.normal(0, 0.5, 200))[:, None]}
    classes = {"u": Input(), "z": Categorical(2, logits=Linear("u"))}
    for loc in (Linear("u", by="z"), Sum(By("z"), Linear("u")), MLP("u", [2], by="z")):
        spec = Spec(model=classes | {"y": Normal(loc=loc, scale=By("z"))})
        first = fit(spec, data, EM(restarts=1, max_steps=8))
        again = fit(spec, data, EM(init=first, max_steps=2))
        assert again.history[0] == pytest.approx(first.log_likelihood, rel=1e-9), str(loc)
    with pytest.raises(FitError, match=r"init: y.loc is a function: give weights and biases, not 3"):
        fit(spec, data, EM(init={"z": first.parameters["z"], "y": {"loc": 3, "scale": [[1.0], [1.0]]}}))


def test_one_slope_for_all_classes_is_analysis_of_covariance() -> None:
    # With the classes known, By + Linear is least squares on dummies and the column.
    x = R.normal(size=200)
    y = 3.0 * CLASS + 0.8 * x + R.normal(0, 0.4, 200)
    peer = sm.OLS(y, np.column_stack([np.eye(2)[CLASS], x])).fit()
    model = Spec(model={"u": Input(1), "c": Input(k=2), "y": Normal(1, loc=Sum(By("c"), Linear("u")))})
    found = fit(model, {"u": x[:, None], "c": CLASS, "y": y[:, None]}, EXACT)
    table, line = found.parameters["y"]["loc"]
    np.testing.assert_allclose([*table.ravel(), line["weight"].item()], peer.params, rtol=1e-6)
    assert found.log_likelihood == pytest.approx(peer.llf, rel=1e-10)
