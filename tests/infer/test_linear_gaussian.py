"""Factor analysis, probabilistic PCA and relatives by exact EM, against scikit-learn, SciPy and closed forms."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
import torch
from scipy.optimize import approx_fprime
from scipy.stats import multivariate_normal
from sklearn.datasets import load_breast_cancer, load_iris, load_wine
from sklearn.decomposition import PCA, FactorAnalysis

from ppl_gen.certify.certify import certify
from ppl_gen.data.sources import Rows
from ppl_gen.declare.nodes import Input, MultivariateNormal, Normal
from ppl_gen.declare.phrasebook import factor_analysis, probabilistic_pca
from ppl_gen.declare.spec import Spec
from ppl_gen.declare.terms import Free, Linear
from ppl_gen.errors import FitError
from ppl_gen.fitting import fit
from ppl_gen.infer import linear_gaussian_run
from ppl_gen.infer.algorithms import EM, SVI
from ppl_gen.infer.linear_gaussian_posterior import completed, log_densities
from ppl_gen.infer.status import Status
from ppl_gen.results.storage import load

Z = {"z": Normal(2, loc=0, scale=1)}
WINE, CANCER, IRIS = load_wine().data, load_breast_cancer().data, load_iris().data


def drawn(n: int = 400, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Rows of a factor model that is well determined, its loadings and its noise variances."""
    random = np.random.default_rng(seed)
    loadings = np.array([[1.0, 0.2], [0.8, -0.9], [-0.5, 1.1], [0.3, 0.9], [1.2, 0.1], [-0.7, 0.6]])
    variances = np.array([0.5, 0.3, 0.8, 0.4, 0.6, 1.0])
    noise = random.normal(size=(n, 6)) * np.sqrt(variances)
    return random.normal(size=(n, 2)) @ loadings.T + noise, loadings, variances


def by_scikit_learn(x: np.ndarray, q: int) -> tuple[FactorAnalysis, float]:
    """Its fit of the standardised columns, and the log-likelihood in the columns' own units."""
    spread = x.std(0)
    found = FactorAnalysis(q, svd_method="lapack", tol=1e-12, max_iter=20_000).fit((x - x.mean(0)) / spread)
    return found, len(x) * (found.score((x - x.mean(0)) / spread) - np.log(spread).sum())


def implied(result) -> tuple[np.ndarray, np.ndarray]:
    """Mean and covariance of a row of x."""
    own = result.parameters["x"]
    W = own["loc"]["weight"]
    return own["loc"]["bias"], W @ W.T + np.diag(np.broadcast_to(own["scale"] ** 2, len(W)))


@pytest.mark.parametrize("declared", [factor_analysis, probabilistic_pca])
@pytest.mark.parametrize("unit", [1e200, 1e-200], ids=str)
def test_units_of_1e200_scale_the_parameters_and_shift_the_densities(declared, unit):
    x, _, _ = drawn()
    home, away = fit(declared(2), {"x": x}), fit(declared(2), {"x": x * unit})
    own, other = home.parameters["x"], away.parameters["x"]
    np.testing.assert_allclose(other["scale"] / unit, own["scale"], rtol=1e-6)
    for key in ("weight", "bias"):
        np.testing.assert_allclose(other["loc"][key] / unit, own["loc"][key], rtol=1e-6, atol=1e-8)
    np.testing.assert_allclose(
        away.score_samples({"x": x * unit}) + 6 * np.log(unit), home.score_samples({"x": x}), atol=1e-6
    )


@pytest.mark.parametrize(("x", "q"), [(WINE, 2), (CANCER, 3)], ids=["wine", "breast cancer"])
def test_factor_analysis_reaches_scikit_learns_maximum_and_gives_its_scores(x, q):
    result = fit(factor_analysis(q), {"x": x})
    peer, log_likelihood = by_scikit_learn(x, q)
    assert result.status is Status.CONVERGED
    assert result.log_likelihood == pytest.approx(log_likelihood, rel=1e-6)
    assert np.diff(result.history).min() >= -1e-10 * (abs(log_likelihood) + len(x))
    mean, covariance = implied(result)
    spread = x.std(0)
    standard = multivariate_normal(np.zeros(len(mean)), covariance / np.outer(spread, spread))
    exact = standard.logpdf((x - mean) / spread) - np.log(spread).sum()
    values, errors = result.score_samples({"x": x}, return_std_error=True)
    np.testing.assert_allclose(values, exact, rtol=1e-8)
    assert not errors.any()
    assert exact.sum() == pytest.approx(result.log_likelihood, rel=1e-10)
    # scikit-learn's loadings stand in the same rotation, WᵀΨ⁻¹W diagonal; signs are free.
    theirs, ours = peer.transform((x - x.mean(0)) / x.std(0)), result.transform({"x": x})
    signs = np.sign((theirs * ours).sum(0))
    np.testing.assert_allclose(ours * signs, theirs, atol=2e-3)  # where its tolerance leaves it
    assert result.certificate.ok
    assert abs(result.certificate["gap"].value) < 1e-9  # the guide it leaves is the posterior


def test_probabilistic_pca_is_tipping_and_bishops_closed_form_and_scikit_learns_score():
    x, q = WINE / WINE.std(0), 3
    result = fit(probabilistic_pca(q), {"x": x})
    values, vectors = np.linalg.eigh(np.cov(x.T, bias=True))
    values, vectors = values[::-1], vectors[:, ::-1]
    noise = values[q:].mean()
    loadings = vectors[:, :q] * np.sqrt(values[:q] - noise)
    found = result.parameters["x"]
    np.testing.assert_allclose(found["scale"], np.sqrt(noise), rtol=1e-9)
    np.testing.assert_allclose(np.abs(found["loc"]["weight"]), np.abs(loadings), atol=1e-7)
    # scikit-learn divides by n − 1: with all of its covariance so much larger the density is its own.
    grown = np.sqrt(len(x) / (len(x) - 1))
    state = dict(result.program.state_dict())
    state["generative.layers.x:loc.weight"] = state["generative.layers.x:loc.weight"] * grown
    state["generative.layers.x:scale.table"] = state["generative.layers.x:scale.table"] + np.log(grown)
    scores = log_densities(result.program, state, result.program.tensors({"x": x}))
    np.testing.assert_allclose(scores.numpy(), PCA(q).fit(x).score_samples(x), rtol=1e-9)


def test_missing_cells_are_integrated_out_as_a_marginal_normal_says():
    x, *_ = drawn()
    holes = x.copy()
    holes[np.random.default_rng(1).random(x.shape) < 0.25] = np.nan
    holes[0] = [np.nan, x[0, 1], *[np.nan] * 4]
    result = fit(Spec(model=Z | {"x": Normal(loc=Linear("z"))}), {"x": holes})
    assert result.converged

    def log_density(mean: np.ndarray, covariance: np.ndarray) -> np.ndarray:
        rows = []
        for row in holes:
            seen = ~np.isnan(row)
            own = multivariate_normal(mean[seen], covariance[np.ix_(seen, seen)])
            rows.append(own.logpdf(row[seen]) if seen.any() else 0.0)
        return np.array(rows)

    def objective(flat: np.ndarray) -> float:
        W, b, psi = flat[:12].reshape(6, 2), flat[12:18], np.exp(flat[18:])
        return float(log_density(b, W @ W.T + np.diag(psi)).mean())

    mean, covariance = implied(result)
    rows = result.program.tensors({"x": holes})
    state = result.program.state_dict()
    np.testing.assert_allclose(log_densities(result.program, state, rows), log_density(mean, covariance))
    assert log_density(mean, covariance).sum() == pytest.approx(result.log_likelihood, rel=1e-10)
    own = result.parameters["x"]
    at = np.concatenate([own["loc"]["weight"].ravel(), own["loc"]["bias"], 2 * np.log(own["scale"])])
    assert np.abs(approx_fprime(at, objective, 1e-6)).max() < 1e-4  # no way up, as differences see it
    filled = completed(result.program, state, rows)["x"].numpy()
    drawings = completed(result.program, state, rows, draws=4000)["x"].numpy()
    for i, row in enumerate(holes[:20]):
        seen = ~np.isnan(row)
        gain = covariance[~seen][:, seen] @ np.linalg.inv(covariance[np.ix_(seen, seen)])
        np.testing.assert_allclose(filled[i][~seen], mean[~seen] + gain @ (row - mean)[seen], atol=1e-9)
        np.testing.assert_array_equal(filled[i][seen], row[seen])
        left = covariance[np.ix_(~seen, ~seen)] - gain @ covariance[np.ix_(seen, ~seen)]
        spread = drawings[:, i][:, ~seen].std(0)
        np.testing.assert_allclose(spread, np.sqrt(np.diag(left)), rtol=0.06)  # 5 errors of a deviation


def test_what_it_was_drawn_from_is_found_again():
    x, loadings, variances = drawn(20_000, seed=3)
    result = fit(factor_analysis(2), {"x": x})
    truth = loadings @ loadings.T + np.diag(variances)
    assert result.log_likelihood > multivariate_normal(np.zeros(6), truth).logpdf(x).sum()
    _, covariance = implied(result)
    # An entry of a sample covariance has the error √((s_ii s_jj + s_ij²)/N), and the model's is no worse.
    error = np.sqrt((np.outer(np.diag(truth), np.diag(truth)) + truth**2) / len(x))
    assert np.abs((covariance - truth) / error).max() < 4.5
    again = fit(factor_analysis(2), result.sample(5_000), EM(init=result))
    assert again.status is Status.CONVERGED


@pytest.mark.parametrize("shipped", [factor_analysis, probabilistic_pca])
def test_an_offset_of_1e8_and_other_units_change_nothing_but_the_units(shipped):
    x, *_ = drawn()
    unit = np.array([1e-3, 1.0, 1e4, 10.0, 0.1, 1e6]) if shipped is factor_analysis else np.full(6, 1e-2)
    plain = fit(shipped(2), {"x": x})
    moved = x * unit + 1e8 * unit
    there = fit(shipped(2), {"x": moved})
    assert there.log_likelihood == pytest.approx(plain.log_likelihood - len(x) * np.log(unit).sum(), rel=1e-6)
    weight = there.parameters["x"]["loc"]["weight"] / unit[:, None]
    np.testing.assert_allclose(weight, plain.parameters["x"]["loc"]["weight"], atol=1e-4)
    np.testing.assert_allclose(there.transform({"x": moved}), plain.transform({"x": x}), atol=1e-4)


def test_weights_count_rows_and_rows_in_a_file_are_read_once(tmp_path):
    x, *_ = drawn(120)
    times = np.random.default_rng(2).integers(0, 4, len(x))
    weighted = fit(factor_analysis(2), {"x": x}, weights=times.astype(float))
    repeated = fit(factor_analysis(2), {"x": np.repeat(x, times, axis=0)})
    assert weighted.log_likelihood == pytest.approx(repeated.log_likelihood, rel=1e-9)
    np.testing.assert_allclose(implied(weighted)[1], implied(repeated)[1], atol=1e-5)
    np.save(tmp_path / "x.npy", x)
    held = fit(factor_analysis(2), {"x": x})
    streamed = fit(factor_analysis(2), Rows(tmp_path / "x.npy"))
    assert streamed.log_likelihood == pytest.approx(held.log_likelihood, rel=1e-12)


def test_columns_given_with_every_row_are_regressed_out():
    x, *_ = drawn()
    u = np.random.default_rng(4).normal(3, 2, size=(len(x), 2))
    x = x + u @ np.random.default_rng(5).normal(size=(2, 6))
    design = np.column_stack([u, np.ones(len(u))])
    rest = x - design @ np.linalg.lstsq(design, x, rcond=None)[0]
    expected = fit(factor_analysis(2), {"x": rest}).log_likelihood
    assert expected == pytest.approx(by_scikit_learn(rest, 2)[1], rel=1e-6)
    for loc in (Linear(["z", "u"]), Linear("z") + Linear("u")):
        found = fit(Spec(model={"u": Input()} | Z | {"x": Normal(loc=loc)}), {"x": x, "u": u})
        assert found.log_likelihood == pytest.approx(expected, rel=1e-9)


RELATIVES = {
    "two latents side by side": {
        "a": Normal(1, loc=0, scale=1),
        "b": Normal(1, loc=0, scale=1),
        "x": Normal(loc=Linear(["a", "b"])),
    },
    "a latent as one vector": {"z": MultivariateNormal(2, loc=0, cov=1), "x": Normal(loc=Linear("z"))},
    "another scale of the latent": {"z": Normal(2, loc=0, scale=3), "x": Normal(loc=Linear("z"))},
    "one latent above another": {
        "a": Normal(1, loc=0, scale=1),
        "b": Normal(2, loc=Linear("a"), scale=1),
        "x": Normal(loc=Linear("b")),
    },
}


@pytest.mark.parametrize("name", RELATIVES)
def test_other_ways_to_write_the_same_law_reach_the_same_maximum(name):
    x, *_ = drawn(150)
    expected = fit(factor_analysis(2), {"x": x})
    found = fit(Spec(model=RELATIVES[name]), {"x": x})
    assert found.algorithm["name"] == "EM"
    assert found.log_likelihood == pytest.approx(expected.log_likelihood, abs=1e-4)
    np.testing.assert_allclose(found.score_samples({"x": x}), expected.score_samples({"x": x}), atol=1e-3)
    assert abs(found.elbo - found.log_likelihood) < 1e-9
    assert found.certificate["objective"].ok
    if (
        name != "one latent above another"
    ):  # whose dimensions hang together given x; the derived guide's do not
        assert abs(found.certificate["gap"].value) < 1e-9


def test_two_blocks_of_columns_with_free_covariances_are_canonical_correlation():
    """Bach and Jordan (2005): at the maximum log p falls short of independence by −½ N log(1 − ρ²)."""
    x, *_ = drawn()
    left, right = x[:, :3], x[:, 3:]
    model = {
        "z": Normal(1, loc=0, scale=1),
        "x": MultivariateNormal(loc=Linear("z"), cov=Free()),
        "y": MultivariateNormal(loc=Linear("z"), cov=Free()),
    }
    found = fit(Spec(model=model), {"x": left, "y": right})
    S = np.cov(x.T, bias=True)
    across = np.linalg.solve(S[:3, :3], S[:3, 3:]) @ np.linalg.solve(S[3:, 3:], S[3:, :3])
    largest = np.linalg.eigvals(across).real.max()
    apart = sum(
        multivariate_normal(part.mean(0), np.cov(part.T, bias=True)).logpdf(part).sum()
        for part in (left, right)
    )
    assert found.log_likelihood == pytest.approx(apart - len(x) / 2 * np.log(1 - largest), rel=1e-8)


def test_a_column_that_the_factors_explain_wholly_is_named_not_crept_up_on():
    result = fit(factor_analysis(1), {"x": IRIS})
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # scikit-learn does not get there in 20 000 iterations
        _, log_likelihood = by_scikit_learn(IRIS, 1)
    assert result.log_likelihood >= log_likelihood
    assert result.status is Status.BOUNDARY
    assert result.run.floored == ("x[2]",)
    assert result.run.evaluations < 200
    assert any("Heywood case" in note and "x[2]" in note for note in result.run.notes)
    constant = np.column_stack([drawn(60)[0], np.full(60, 7.0)])
    with pytest.warns(UserWarning, match="the same value in every row"):
        flat = fit(factor_analysis(1), {"x": constant})
    assert flat.run.floored == ("x[6]",)
    assert "constant in the data" in " ".join(flat.run.notes)


def test_more_factors_than_columns_and_fewer_rows_than_columns_still_end():
    x, *_ = drawn(60)
    for spec, rows in ((probabilistic_pca(7), x), (factor_analysis(7), x), (factor_analysis(2), x[:4])):
        result = fit(spec, {"x": rows})
        assert np.isfinite(result.log_likelihood)
        assert all(np.isfinite(part).all() for part in result.parameters["x"]["loc"].values())


def test_svi_asked_for_by_hand_climbs_to_the_exact_log_likelihood():
    x, *_ = drawn(200)
    exact = fit(factor_analysis(1), {"x": x})
    sampled = fit(
        factor_analysis(1),
        {"x": x},
        SVI(epochs=400, batch_size=40, learning_rate=2e-2, schedule="exponential", lowering="traced"),
        dtype=torch.float64,
    )
    assert "SVI: as asked" in sampled.run.notes
    assert sampled.log_likelihood <= exact.log_likelihood + 1e-6  # exact, as the model's is known
    # Adam's last steps and one draw a row: a fiftieth of a nat a row.
    assert sampled.elbo > exact.log_likelihood - 0.02 * len(x)
    assert sampled.score({"x": x}) * len(x) == pytest.approx(sampled.log_likelihood)


def test_what_exact_em_cannot_take_is_said_in_words():
    x, *_ = drawn(50)
    loadings = Spec(model=Z | {"x": Normal(loc=Linear("z", prior=Normal(loc=0, scale=1)))})
    with pytest.raises(FitError, match="'z' is a continuous latent, and parameters have priors"):
        fit(loadings, {"x": x}, EM())
    guided = Spec(model=Z | {"x": Normal(loc=Linear("z"))}, guide={"z": Normal(2, loc=Linear("x"), scale=1)})
    with pytest.raises(FitError, match="a guide is written"):
        fit(guided, {"x": x}, EM())


def test_rotations_are_named_and_a_fit_given_to_begin_at_is_where_it_ends():
    x, *_ = drawn()
    first = fit(factor_analysis(2), {"x": x})
    assert any("up to a rotation of z" in note for note in first.run.notes)
    W, scale = first.parameters["x"]["loc"]["weight"], first.parameters["x"]["scale"]
    products = W.T @ (W / scale[:, None] ** 2)
    assert abs(products[0, 1]) < 1e-8 * products[1, 1]
    again = fit(factor_analysis(2), {"x": x}, EM(init=first))
    assert again.run.evaluations <= 3
    assert again.log_likelihood == pytest.approx(first.log_likelihood, abs=1e-8)
    assert fit(factor_analysis(2), {"x": x}, EM(max_steps=3)).status is Status.MAX_STEPS


def test_it_is_saved_and_loaded_with_its_posterior(tmp_path):
    x, *_ = drawn(60)
    result = fit(factor_analysis(2), {"x": x})
    result.save(tmp_path / "fit")
    again = load(tmp_path / "fit")
    np.testing.assert_array_equal(again.transform({"x": x}), result.transform({"x": x}))
    np.testing.assert_array_equal(again.score_samples({"x": x}), result.score_samples({"x": x}))


def test_a_wrong_posterior_shows_in_the_certificates_gap(monkeypatch):
    x, *_ = drawn(80)

    def shrunk(program, system, state, joint, units):
        found = right(program, system, state, joint, units)
        return found | {"recognition.layers.z:loc.weight": 0.8 * found["recognition.layers.z:loc.weight"]}

    right = linear_gaussian_run.with_guide
    monkeypatch.setattr(linear_gaussian_run, "with_guide", shrunk)
    wrong = fit(factor_analysis(2), {"x": x})
    assert certify(wrong.program, wrong.run, wrong.data)["gap"].value > 1e-3
    monkeypatch.undo()
    assert abs(fit(factor_analysis(2), {"x": x}).certificate["gap"].value) < 1e-9
