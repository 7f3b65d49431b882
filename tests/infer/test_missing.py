"""Missing cells, partly known labels and row weights: the likelihood is that of what was seen, exactly."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from scipy.special import logsumexp
from scipy.stats import bernoulli, kstest, multivariate_normal, multivariate_t, norm, poisson
from scipy.stats import t as student
from sklearn.mixture import GaussianMixture

from ppl_gen.data.reading import read_table
from ppl_gen.declare.continuous import MultivariateStudentT, StudentT
from ppl_gen.declare.nodes import Bernoulli, Categorical, MultivariateNormal, Normal, Poisson
from ppl_gen.declare.spec import Spec
from ppl_gen.declare.terms import By, Free
from ppl_gen.fitting import fit
from ppl_gen.infer.algorithms import EM
from ppl_gen.results.fit import Fit

R = np.random.default_rng(2)
N = 240
CLASS = R.integers(0, 2, N)
MIX = np.array([[1.0, 0.6, 0.0], [0.0, 1.0, -0.5], [0.0, 0.0, 1.0]])
X = np.where(CLASS[:, None], R.normal(0, 1, (N, 3)) @ MIX, R.normal(4, 1, (N, 3))) + 1e3
HOLES = R.random((N, 3)) < 0.25
HOLES[:, 0] &= ~HOLES[:, 1:].all(1)  # every row keeps a cell
T = np.random.default_rng(3).standard_t(4, (N, 1)) * (X - X.mean(0)) + np.where(CLASS[:, None], 0.0, 30.0)
ITEMS = (R.random((N, 4)) < np.where(CLASS, 0.2, 0.8)[:, None]).astype(float)
COUNTS = R.poisson(np.where(CLASS, 2.0, 9.0), (1, N)).T.astype(float)
Z = {"z": Categorical(2)}
FULL = Spec(model=Z | {"x": MultivariateNormal(loc=By("z"), cov=By("z"))})
DIAGONAL = Spec(model=Z | {"x": Normal(loc=By("z"), scale=By("z"))})
QUICK = EM(restarts=3)


def holed(array: np.ndarray, holes: np.ndarray) -> np.ndarray:
    return np.where(holes, np.nan, array)


def normal_of_seen(p: dict[str, np.ndarray], x: np.ndarray) -> np.ndarray:
    """Log p(seen cells | class), (N, K), row by row with SciPy on the submatrix."""
    found = np.zeros((len(x), 2))
    for d, row in enumerate(x):
        o = ~np.isnan(row)
        for k in range(2):
            cov = np.broadcast_to(p["cov"], (2, 3, 3))[k]
            found[d, k] = multivariate_normal.logpdf(row[o], p["loc"][k][o], cov[np.ix_(o, o)])
    return found


def t_of_seen(p: dict[str, np.ndarray], x: np.ndarray) -> np.ndarray:
    """The marginal of a t is a t of the same df, on the submatrix."""
    found = np.zeros((len(x), 2))
    for d, row in enumerate(x):
        o = ~np.isnan(row)
        for k in range(2):
            part = p["cov"][k][np.ix_(o, o)]
            found[d, k] = multivariate_t.logpdf(row[o], p["loc"][k][o], part, df=p["df"][k].item())
    return found


def by_cell(each: np.ndarray) -> np.ndarray:
    return np.nansum(each, -1)


def where_seen(log_p: Callable[..., np.ndarray], x: np.ndarray, parameter: np.ndarray) -> np.ndarray:
    each = log_p(np.nan_to_num(x)[:, None], parameter)
    return by_cell(np.where(np.isnan(x)[:, None], np.nan, each))


SEEN = {
    "full": (FULL, {"x": holed(X, HOLES)}, lambda p, d: normal_of_seen(p["x"], d["x"])),
    "tied": (
        Spec(model=Z | {"x": MultivariateNormal(loc=By("z"), cov=Free())}),
        {"x": holed(X, HOLES)},
        lambda p, d: normal_of_seen(p["x"], d["x"]),
    ),
    "diagonal": (
        DIAGONAL,
        {"x": holed(X, HOLES)},
        lambda p, d: by_cell(norm.logpdf(d["x"][:, None], p["x"]["loc"], p["x"]["scale"])),
    ),
    "t": (
        Spec(model=Z | {"x": MultivariateStudentT(df=By("z"), loc=By("z"), cov=By("z"))}),
        {"x": holed(T, HOLES)},
        lambda p, d: t_of_seen(p["x"], d["x"]),
    ),
    "counts and coins": (
        Spec(model=Z | {"n": Poisson(rate=By("z")), "b": Bernoulli(probs=By("z"))}),
        {"n": holed(COUNTS, HOLES[:, :1]), "b": holed(ITEMS, R.random((N, 4)) < 0.3)},
        lambda p, d: (
            where_seen(poisson.logpmf, d["n"], p["n"]["rate"])
            + where_seen(bernoulli.logpmf, d["b"], p["b"]["probs"])
        ),
    ),
}


@pytest.mark.parametrize("name", SEEN)
def test_the_likelihood_is_that_of_the_seen_cells_and_never_falls(name):
    spec, data, log_p = SEEN[name]
    found = fit(spec, data, QUICK)
    weights = np.log(found.parameters["z"]["probs"])
    formula = logsumexp(weights + log_p(found.parameters, data), axis=1)
    np.testing.assert_allclose(found.score_samples(data), formula, rtol=1e-9)
    assert found.log_likelihood == pytest.approx(formula.sum(), rel=1e-10)
    assert np.diff(found.history).min() >= -1e-9 * abs(found.log_likelihood)
    assert found.certificate.ok, found.certificate


def test_rows_without_holes_are_fitted_as_scikit_learn_does_even_when_others_have_them():
    # Cells that are missing for whole columns of extra rows carry nothing: the optimum stays.
    empty = np.full((30, 3), np.nan)
    with pytest.warns(UserWarning, match="30 rows have no observed value"):
        found = fit(FULL, {"x": np.vstack([X, empty])}, EM(restarts=3, tol=1e-12))
    peer = GaussianMixture(2, reg_covar=0, tol=1e-10, max_iter=1000, n_init=3, random_state=0).fit(X)
    assert found.log_likelihood == pytest.approx(peer.score(X) * N, rel=1e-9)


def test_a_normal_with_holes_in_one_column_has_the_estimate_of_two_regressions():
    # Anderson (1957): with a monotone pattern the likelihood factors, and the estimate is closed.
    x = X[CLASS == 0][:, :2].copy()
    x[: len(x) // 3, 1] = np.nan
    full = ~np.isnan(x[:, 1])
    slope, intercept = np.polyfit(x[full, 0] - 1e3, x[full, 1] - 1e3, 1)
    residual = (x[full, 1] - 1e3 - intercept - slope * (x[full, 0] - 1e3)).var()
    mean, variance = (x[:, 0] - 1e3).mean(), x[:, 0].var()
    loc = [mean, intercept + slope * mean]
    cov = [[variance, slope * variance], [slope * variance, residual + slope**2 * variance]]
    found = fit(Spec(model={"x": MultivariateNormal()}), {"x": x}, EM(tol=1e-14)).parameters["x"]
    np.testing.assert_allclose(found["loc"] - 1e3, loc, rtol=1e-5)
    np.testing.assert_allclose(found["cov"], cov, rtol=1e-5)


@pytest.mark.parametrize("spec", [FULL, DIAGONAL], ids=["full", "diagonal"])
def test_imputed_cells_are_conditional_means_and_seen_ones_stay(spec):
    data = {"x": holed(X, HOLES)}
    found = fit(spec, data, QUICK)
    filled = found.impute(data)["x"]
    np.testing.assert_array_equal(filled[~HOLES], X[~HOLES])
    p, r = found.parameters["x"], found.predict_proba(data)
    for d in range(N):
        o, expected = ~HOLES[d], np.zeros(3)
        for k in range(2):
            cov = p["cov"][k] if "cov" in p else np.diag(p["scale"][k] ** 2)
            slope = np.linalg.solve(cov[np.ix_(o, o)], cov[np.ix_(o, ~o)])
            mean = np.array(X[d])
            mean[~o] = p["loc"][k][~o] + (X[d][o] - p["loc"][k][o]) @ slope
            expected += r[d, k] * mean
        np.testing.assert_allclose(filled[d], expected, rtol=1e-9)


def test_draws_of_missing_cells_have_the_conditional_mean_and_spread():
    x = np.array([[1e3, np.nan, np.nan]])
    found = fit(Spec(model={"x": MultivariateNormal()}), {"x": X})
    p, S = found.parameters["x"], 4_000
    slope = p["cov"][0, 1:] / p["cov"][0, 0]
    cov = p["cov"][1:, 1:] - np.outer(slope, p["cov"][0, 1:])
    drawn = found.impute({"x": x}, draws=S)["x"][:, 0]
    assert (drawn[:, 0] == 1e3).all()
    mean = p["loc"][1:] + slope * (1e3 - p["loc"][0])
    np.testing.assert_allclose(drawn[:, 1:].mean(0), mean, atol=4 * np.sqrt(cov.diagonal().max() / S))
    # The relative standard error of a variance from S normal draws is √(2/S).
    np.testing.assert_allclose(np.cov(drawn[:, 1:].T), cov, atol=4 * cov.max() * np.sqrt(2 / S))


def test_a_missing_cell_of_a_t_is_drawn_from_a_t_with_more_degrees_of_freedom():
    # Kotz and Nadarajah (2004): x₂ | x₁ is t, df + 1, its scale stretched by how far out x₁ lies.
    cov, df, at = np.array([[1.0, 0.6], [0.6, 2.0]]), 3.0, 4.0
    spec = Spec(model={"x": MultivariateStudentT(2, df=df, loc=0, cov=cov.tolist())})
    found = fit(spec, {"x": X[:, :2]})
    left = cov[1, 1] - cov[0, 1] ** 2 / cov[0, 0]
    scale = np.sqrt((df + at**2 / cov[0, 0]) / (df + 1) * left)
    rows = {"x": [[at, np.nan]]}
    assert found.impute(rows)["x"][0, 1] == pytest.approx(cov[0, 1] / cov[0, 0] * at)
    drawn = found.impute(rows, draws=2_000)["x"][:, 0, 1]
    assert kstest(drawn, student(df + 1, cov[0, 1] / cov[0, 0] * at, scale).cdf).pvalue > 1e-3


def test_a_t_without_a_mean_is_imputed_by_its_location():
    x = np.tan(np.linspace(-1.5, 1.5, 81))[:, None] ** 3  # tails far beyond Cauchy's
    found = fit(Spec(model={"x": StudentT()}), {"x": x})
    assert found.parameters["x"]["df"] < 1
    assert found.impute({"x": [[2.0], [np.nan]]})["x"][1] == found.parameters["x"]["loc"]


def test_the_mean_of_a_missing_count_is_no_whole_number():
    found = fit(Spec(model={"n": Poisson()}), {"n": [[2.0], [3.0], [6.0]]})
    rows = {"n": [[4.0], [np.nan]]}
    np.testing.assert_allclose(found.impute(rows)["n"], [[4], [11 / 3]])
    assert found.impute(rows, draws=2)["n"].dtype.kind == "i"


def test_patterns_too_many_to_share_give_the_same_fit(monkeypatch):
    data, exact = {"x": holed(X, HOLES)}, EM(restarts=2, tol=1e-12)
    shared = fit(FULL, data, exact)
    monkeypatch.setattr("ppl_gen.infer.standard.MOST_PATTERNS", 1)
    same_place(shared, fit(FULL, data, exact))


@pytest.mark.filterwarnings("ignore:column 'x.1.':UserWarning")
@pytest.mark.parametrize("family", [MultivariateNormal, MultivariateStudentT])
def test_a_constant_column_with_holes_does_not_make_the_likelihood_fall(family):
    x = holed(X, HOLES)
    x[~np.isnan(x[:, 1]), 1] = 3.0
    found = fit(Spec(model=Z | {"x": family(loc=By("z"), cov=By("z"))}), {"x": x}, QUICK)
    assert np.diff(found.history).min() >= -1e-9 * abs(found.log_likelihood)


def test_a_leaf_the_rows_lack_is_predicted_from_the_others():
    spec = Spec(model=Z | {"x": Normal(loc=By("z"), scale=By("z")), "n": Poisson(rate=By("z"))})
    found = fit(spec, {"x": X, "n": COUNTS}, QUICK)
    p = found.parameters
    rows = np.array([[0.0], [14.0]])
    r = p["z"]["probs"] * poisson.pmf(rows, p["n"]["rate"].T)
    r /= r.sum(1, keepdims=True)
    np.testing.assert_allclose(found.predict_proba({"n": rows}), r, rtol=1e-9)
    np.testing.assert_allclose(found.impute({"n": rows})["x"], r @ p["x"]["loc"], rtol=1e-9)


class TestPartlyKnownLabels:
    LABELS = np.where(R.random(N) < 0.3, np.array(["up", "down"])[CLASS], None)

    def known(self) -> np.ndarray:
        return np.array([{"down": 0, "up": 1, None: -1}[label] for label in self.LABELS])

    def test_the_likelihood_holds_a_labelled_row_to_its_class(self) -> None:
        data = {"x": X, "z": self.LABELS}
        found = fit(DIAGONAL, data, QUICK)
        p, code = found.parameters, self.known()
        joint = np.log(p["z"]["probs"]) + norm.logpdf(X[:, None], p["x"]["loc"], p["x"]["scale"]).sum(-1)
        free = logsumexp(joint, axis=1)
        formula = np.where(code < 0, free, joint[np.arange(N), np.maximum(code, 0)]).sum()
        assert found.log_likelihood == pytest.approx(formula, rel=1e-10)
        assert found.certificate.ok, found.certificate

    def test_classes_carry_their_labels_and_new_rows_are_given_them(self) -> None:
        found = fit(DIAGONAL, {"x": X, "z": self.LABELS}, QUICK)
        assert (
            found.parameters["x"]["loc"][0].mean() < found.parameters["x"]["loc"][1].mean()
        )  # "down" is class 1
        labels = found.predict({"x": X})
        assert (labels == np.array(["up", "down"])[CLASS]).mean() > 0.99

    def test_predictions_repeat_what_is_known(self) -> None:
        found = fit(DIAGONAL, {"x": X, "z": self.LABELS}, QUICK)
        wrong = np.where(np.array(self.LABELS) == "up", "down", self.LABELS)
        seen = self.known() >= 0
        assert (found.predict({"x": X, "z": wrong})[seen] == wrong[seen]).all()

    def test_all_labels_known_is_supervised_and_rows_without_are_predicted(self) -> None:
        found = fit(DIAGONAL, {"x": X, "z": CLASS})
        for k in range(2):
            np.testing.assert_allclose(found.parameters["x"]["loc"][k], X[k == CLASS].mean(0), rtol=1e-12)
            np.testing.assert_allclose(found.parameters["x"]["scale"][k], X[k == CLASS].std(0), rtol=1e-9)
        assert (found.predict({"x": X}) == CLASS).mean() > 0.99


class TestWeights:
    COUNTED = R.integers(0, 4, N)

    @pytest.mark.parametrize("spec", [FULL, DIAGONAL], ids=["full", "diagonal"])
    def test_a_frequency_weight_is_a_row_repeated(self, spec: Spec) -> None:
        exact = EM(restarts=3, tol=1e-12)
        weighted = fit(spec, {"x": X}, exact, weights=self.COUNTED)
        repeated = fit(spec, {"x": np.repeat(X, self.COUNTED, axis=0)}, exact)
        assert weighted.log_likelihood == pytest.approx(repeated.log_likelihood, rel=1e-10)
        assert weighted.bic == pytest.approx(repeated.bic, rel=1e-10)
        same_place(weighted, repeated)
        assert weighted.certificate.ok, weighted.certificate

    def test_weights_meet_missing_cells_and_labels(self) -> None:
        z = np.where(np.arange(N) % 3, None, CLASS.astype(object))
        data = {"x": holed(X, HOLES), "z": z}
        exact = EM(restarts=3, tol=1e-12)
        weighted = fit(FULL, data, exact, weights=self.COUNTED)
        again = {name: np.repeat(array, self.COUNTED, axis=0) for name, array in data.items()}
        same_place(weighted, fit(FULL, again, exact))

    def test_a_row_of_weight_0_is_nobodys_starting_point(self) -> None:
        x = np.vstack([np.geomspace(1e7, 1e9, 20)[:, None] * np.ones(3), X])
        weights = np.r_[np.zeros(20), np.ones(N)]
        weighted = fit(DIAGONAL, {"x": x}, EM(restarts=1, tol=1e-12), weights=weights)
        assert weighted.log_likelihood == pytest.approx(fit(DIAGONAL, {"x": X}).log_likelihood, rel=1e-8)


def same_place(a: Fit, b: Fit) -> None:
    """Equal up to where two runs stopped: 1e-12 nats a row leave about 1e-6 of a parameter."""
    for name, own in a.parameters.items():
        for key, value in own.items():
            np.testing.assert_allclose(value, b.parameters[name][key], rtol=1e-5, atol=1e-5)


def test_starts_tolerate_holes_in_every_row():
    x = X.copy()
    x[np.arange(N), np.arange(N) % 3] = np.nan
    assert read_table({"x": x}, FULL).holes == {"x"}
    found = fit(FULL, {"x": x}, QUICK)
    assert found.converged
    assert (found.predict({"x": x}) == CLASS).mean() in (
        pytest.approx(1, abs=0.05),
        pytest.approx(0, abs=0.05),
    )


def test_one_location_for_all_dimensions_is_the_generalised_mean():
    # Generalised least squares: μ weighs the columns' means by the rows of Σ⁻¹, and Σ is the scatter about μ.
    x, one = X[CLASS == 0] + [0.0, 0.3, -0.2], np.ones(3)
    found = fit(Spec(model={"x": MultivariateNormal(loc=Free(dim=1))}), {"x": x}, EM(tol=1e-14))
    loc, cov = found.parameters["x"]["loc"], found.parameters["x"]["cov"]
    weights = np.linalg.solve(cov, one)
    np.testing.assert_allclose(loc, weights @ x.mean(0) / weights.sum(), rtol=1e-10)
    np.testing.assert_allclose(cov, (x - loc).T @ (x - loc) / len(x), rtol=1e-6)
