"""evaluate: log p(x), bounds and KLs against SciPy and closed forms; verdicts on data that settle them."""

import json

import numpy as np
import pytest
import torch
from scipy.stats import multivariate_normal

from ppl_gen import (
    EM,
    SVI,
    DataError,
    FitError,
    Linear,
    Normal,
    Rows,
    Spec,
    evaluate,
    factor_analysis,
    fit,
    gaussian_mixture,
    load,
    reference,
)

RNG = np.random.default_rng(0)
LOADINGS = RNG.normal(size=(5, 2)) * 1.5
X = RNG.normal(size=(300, 2)) @ LOADINGS.T + RNG.normal(size=(300, 5)) + 3.0

FACTORS = {
    "z": Normal(2, loc=0, scale=1),
    "x": Normal(loc=Linear("z"), scale=1),
}
GUIDE = {"z": Normal(loc=Linear("x"), scale=Linear("x"))}


def marginal(found):
    """Log p(x) of x = Wz + b + noise by SciPy, at a fit's parameters (E1)."""
    own = found.parameters["x"]
    weight, bias = own["loc"]["weight"], own["loc"]["bias"]
    noise = np.broadcast_to(np.asarray(own["scale"], dtype=float), 5) ** 2
    return multivariate_normal(bias, weight @ weight.T + np.diag(noise)).logpdf(X), weight, bias, noise


@pytest.fixture(scope="module")
def amortised():
    """A linear-Gaussian model under a written guide, stopped long before its encoder is good."""
    return fit(Spec(model=FACTORS, guide=GUIDE), {"x": X}, SVI(epochs=40, batch_size=100, learning_rate=0.02))


def test_importance_weights_give_the_log_likelihood_that_is_known(amortised):
    found = evaluate(amortised, draws=2_000, refitted_rows=0)
    known, *_ = marginal(amortised)
    own, error = found.per_row["log_likelihood"], found.per_row["log_likelihood_error"]
    trusted = found.per_row["pareto_k"] < 0.5  # where weights have a variance, and errors mean something
    assert trusted.mean() > 0.5
    apart = (own - known)[trusted] / error[trusted]
    assert np.abs(apart).max() < 6
    assert 0.7 < apart.std() < 1.3  # of 150 standard normals: 1 ± 0.06, four of those, and float32's part
    assert abs(found.log_likelihood.value - known.mean()) < 4 * found.log_likelihood.over_draws + found.bias
    assert found.exact == ""
    assert found.elbo.value < found.log_likelihood.value


def test_the_parts_of_a_bound_are_those_of_the_formulas(amortised):
    found = evaluate(amortised, draws=500, refitted_rows=0)
    q = amortised.program.recognition
    with torch.no_grad():
        rows = amortised.program.tensors({"x": X})
        site = q_site(amortised, rows)
    mean, sd = (own.double().numpy() for own in site)
    kl = reference.kl_diagonal(mean, sd)
    np.testing.assert_allclose(found.per_row["kl"], kl, rtol=1e-4)
    cells = np.mean(0.5 * (sd**2 + mean**2 - 1) - np.log(sd), axis=0)
    np.testing.assert_allclose(found.latents["kl"], cells, rtol=1e-4)
    np.testing.assert_allclose(found.latents["mean_variance"], mean.var(axis=0), rtol=1e-4)
    np.testing.assert_allclose(found.latents["posterior_variance"], (sd**2).mean(axis=0), rtol=1e-4)
    _, weight, bias, noise = marginal(amortised)
    left = X - mean @ weight.T - bias  # E_q[log N(x | Wz + b, σ²)] in closed form
    spread = (weight**2 @ (sd**2).T).T
    reconstruction = -0.5 * (np.log(2 * np.pi * noise) + (left**2 + spread) / noise).sum(1)
    apart = found.per_row["reconstruction"] - reconstruction
    assert np.abs(apart / found.per_row["elbo_error"]).max() < 6
    assert abs(found.reconstruction.value - reconstruction.mean()) < 4 * found.reconstruction.over_draws
    assert q is amortised.program.recognition


def q_site(found, rows):
    """The guide's location and scale of z."""
    from pyro import poutine

    trace = poutine.trace(found.program.guide).get_trace(rows)
    law = trace.nodes["z"]["fn"]
    law = getattr(law, "base_dist", law)
    return law.loc, law.scale


def test_refitted_rows_reach_the_posterior_where_their_family_holds_it():
    spec = Spec(
        model={"z": Normal(1, loc=0, scale=1), "x": Normal(loc=Linear("z"), scale=1)},
        guide={"z": Normal(loc=Linear("x"), scale=Linear("x"))},
    )
    poor = fit(spec, {"x": X}, SVI(epochs=3, learning_rate=0.02))
    found = evaluate(poor, draws=200, refitted_rows=40)
    known, *_ = marginal(poor)
    own = found.amortisation
    # With one latent a normal of its own for each row is the posterior: the bound is log p(x).
    assert np.abs(own.fitted - known[own.rows]).max() < 0.02
    assert own.gap.value > 10 * 0.02
    assert own.gap.value == pytest.approx((own.fitted - own.encoder).mean())
    again = evaluate(poor, draws=200, refitted_rows=40)
    assert np.array_equal(again.amortisation.fitted, own.fitted)
    assert again.log_likelihood == found.log_likelihood


def test_exact_posteriors_have_no_gap_and_the_kl_of_principal_components():
    found = fit(factor_analysis(2), {"x": X}, EM())
    told = evaluate(found)
    known, weight, bias, noise = marginal(found)
    np.testing.assert_allclose(told.per_row["log_likelihood"], known, rtol=1e-9)
    assert told.gap.value == 0
    assert told.log_likelihood.over_draws == 0
    assert told.draws == 0
    precision = np.eye(2) + weight.T @ (weight / noise[:, None])  # E1
    covariance = np.linalg.inv(precision)
    mean = (X - bias) / noise @ weight @ covariance
    kl = 0.5 * (np.trace(covariance) + (mean**2).sum(1) - 2 - np.linalg.slogdet(covariance)[1])
    np.testing.assert_allclose(told.per_row["kl"], kl, rtol=1e-8)
    np.testing.assert_allclose(told.latents["mean_variance"], mean.var(axis=0), rtol=1e-8)
    assert "closed form (E1)" in told.summary()


def test_classes_cost_the_kl_of_their_responsibilities():
    found = fit(gaussian_mixture(3), {"x": X})
    told = evaluate(found)
    own = found.parameters
    table = np.column_stack(
        [
            np.log(share) + multivariate_normal(loc, cov).logpdf(X)
            for share, loc, cov in zip(own["z"]["probs"], own["x"]["loc"], own["x"]["cov"], strict=True)
        ]
    )
    r = reference.responsibilities(table)
    kl = np.sum(r * (np.log(np.maximum(r, 1e-300)) - np.log(own["z"]["probs"])), axis=1)
    np.testing.assert_allclose(told.per_row["kl"], kl, atol=1e-9)
    assert told.log_likelihood.value == pytest.approx(found.log_likelihood / 300)
    assert told.elbo.value == told.log_likelihood.value
    assert told.verdicts == ("z is active",)
    doubled = evaluate(found, {"x": X[:50]}, weights=np.full(50, 2.0))
    twice = evaluate(found, {"x": np.repeat(X[:50], 2, axis=0)})
    assert doubled.log_likelihood.value == pytest.approx(twice.log_likelihood.value)
    assert doubled.log_likelihood.over_rows == pytest.approx(twice.log_likelihood.over_rows)
    assert doubled.latents["kl"][0] == pytest.approx(twice.latents["kl"][0])


def test_a_latent_that_cannot_be_used_has_collapsed_and_one_that_must_be_is_active():
    """With noise of variance 1 by declaration, columns of variance 0.01 leave nothing for a latent to say."""
    spec = Spec(model=FACTORS, guide=GUIDE)
    dull = fit(spec, {"x": 0.1 * RNG.normal(size=(400, 5))}, SVI(epochs=150, learning_rate=0.02))
    told = evaluate(dull, draws=200, refitted_rows=0)
    assert told.collapsed == ("z",)
    assert "has collapsed" in told.verdicts[0]
    used = fit(spec, {"x": X}, SVI(epochs=150, learning_rate=0.02))
    told = evaluate(used, draws=200, refitted_rows=0)
    assert told.collapsed == ()
    assert told.latents["active"].all()
    assert told.verdicts == ("z: all 2 dimensions active",)


def test_files_in_parts_are_evaluated_as_one_table(tmp_path):
    found = fit(gaussian_mixture(2), {"x": X})
    np.save(tmp_path / "x.npy", X)
    whole, parts = evaluate(found), evaluate(found, Rows(tmp_path / "x.npy"))
    np.testing.assert_allclose(parts.per_row["log_likelihood"], whole.per_row["log_likelihood"])
    with pytest.raises(DataError, match="count once each"):
        evaluate(found, Rows(tmp_path / "x.npy"), weights=np.ones(300))


def test_figures_are_plain_values_and_an_evaluation_needs_rows(tmp_path, amortised):
    told = evaluate(amortised, draws=50, refitted_rows=5)
    figures = json.loads(json.dumps(told.to_dict(), allow_nan=False))
    assert figures["log_likelihood"]["value"] == told.log_likelihood.value
    assert len(figures["latents"]) == 2
    assert figures["amortisation"]["rows"] == 5
    amortised.save(tmp_path / "fit")
    loaded = load(tmp_path / "fit")
    with pytest.raises(FitError, match="give evaluate the data"):
        evaluate(loaded)
    with pytest.raises(FitError, match="weights go with data"):
        evaluate(amortised, weights=np.ones(300))
    for wrong in ({"draws": 0}, {"refitted_rows": -1}, {"active": -1.0}, {"active": "few"}):
        with pytest.raises(FitError, match=next(iter(wrong))):
            evaluate(amortised, **wrong)
    assert evaluate(loaded, {"x": X}, draws=50, refitted_rows=0).elbo.value == told.elbo.value
