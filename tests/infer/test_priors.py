"""Priors: EM climbs log-likelihood plus log prior, and its estimates are the maxima that brute force finds."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from scipy import stats
from scipy.optimize import minimize
from scipy.special import expit, softmax
from sklearn.linear_model import LogisticRegression, Ridge

from ppl_gen import EM, SVI, Spec, compile_spec, fit, load
from ppl_gen.declare.nodes import (
    Bernoulli,
    Binomial,
    Categorical,
    Exponential,
    Gamma,
    Input,
    MultivariateNormal,
    Normal,
    Poisson,
    StudentT,
)
from ppl_gen.declare.priors import Beta, Dirichlet, HalfCauchy, HalfNormal, InverseGamma, InverseWishart
from ppl_gen.declare.terms import By, Free, Linear
from ppl_gen.infer.ascent_step import gradient_step
from ppl_gen.infer.elbo import TraceableELBO
from ppl_gen.infer.optimisers import Layout

DATA = Path(__file__).parents[2] / "examples" / "data"
RNG = np.random.default_rng(11)
X = RNG.normal(40, 6, (15, 1))
COUNTS = RNG.poisson(3, (12, 1))
YES = (RNG.random((12, 1)) < 0.2).astype(int)
TIMES = RNG.exponential(3, (12, 1))
LEVELS = np.array([0, 0, 0, 1, 1, 2])
PLANE = RNG.normal(size=(12, 2)) @ np.array([[3.0, 1.0], [0.0, 0.5]]) + [10, -4]
PSI = np.array([[2.0, 0.5], [0.5, 1.0]])


def on(scale_prior, x=X, loc_prior=None):
    """A normal whose scale, and perhaps location, has a prior."""
    loc = Free() if loc_prior is None else Free(prior=loc_prior)
    return {"x": Normal(1, loc=loc, scale=Free(prior=scale_prior))}, {"x": x}


def normal(log_prior):
    """Its log-posterior at (loc, log scale)."""
    return lambda t: stats.norm(t[0], np.exp(t[1])).logpdf(X).sum() + log_prior(t[0], np.exp(t[1]))


def two_dimensional(t):
    L = np.array([[np.exp(t[2]), 0], [t[3], np.exp(t[4])]])
    cov = L @ L.T
    value = stats.multivariate_normal(t[:2], cov).logpdf(PLANE).sum()
    return value + stats.norm([8, 0], [1, 2]).logpdf(t[:2]).sum() + stats.invwishart(5, PSI).logpdf(cov)


def over_categories(t):
    p = softmax([0, *t])
    return np.log(p[LEVELS]).sum() + stats.dirichlet([2, 1.5, 4]).logpdf(p)


CASES = {
    # model and data; log-posterior of an unconstrained vector; where to begin
    "normal, normal and inverse gamma of the variance": (
        *on(InverseGamma(concentration=3, rate=20), loc_prior=Normal(loc=30, scale=1)),
        normal(lambda m, s: stats.norm(30, 1).logpdf(m) + stats.invgamma(3, scale=20).logpdf(s**2)),
        [35, 2],
    ),
    "half-normal scale": (
        *on(HalfNormal(scale=2)),
        normal(lambda m, s: stats.halfnorm(scale=2).logpdf(s)),
        [40, 2],
    ),
    "half-Cauchy scale": (
        *on(HalfCauchy(scale=0.5)),
        normal(lambda m, s: stats.halfcauchy(scale=0.5).logpdf(s)),
        [40, 2],
    ),
    "gamma scale, by Newton's method": (
        *on(Gamma(concentration=2, rate=5)),
        normal(lambda m, s: stats.gamma(2, scale=1 / 5).logpdf(s)),
        [40, 1],
    ),
    "Student's t location, by Newton's method": (
        *on(HalfNormal(scale=9), loc_prior=StudentT(df=2, loc=38, scale=0.5)),
        normal(lambda m, s: stats.t(2, 38, 0.5).logpdf(m) + stats.halfnorm(scale=9).logpdf(s)),
        [40, 1],
    ),
    "normal and inverse Wishart": (
        {
            "x": MultivariateNormal(
                2,
                loc=Free(prior=Normal(loc=[8, 0], scale=[1, 2])),
                cov=Free(prior=InverseWishart(df=5, scale=PSI)),
            )
        },
        {"x": PLANE},
        two_dimensional,
        [9, -3, 0, 0, 0],
    ),
    "gamma rate of counts": (
        {"x": Poisson(1, rate=Free(prior=Gamma(concentration=3, rate=4)))},
        {"x": COUNTS},
        lambda t: (
            stats.poisson(np.exp(t[0])).logpmf(COUNTS).sum()
            + stats.gamma(3, scale=1 / 4).logpdf(np.exp(t[0]))
        ),
        [1],
    ),
    "exponential rate of counts": (
        {"x": Poisson(1, rate=Free(prior=Exponential(rate=4)))},
        {"x": COUNTS},
        lambda t: (
            stats.poisson(np.exp(t[0])).logpmf(COUNTS).sum() + stats.expon(scale=1 / 4).logpdf(np.exp(t[0]))
        ),
        [1],
    ),
    "gamma rate of waiting times": (
        {"x": Exponential(1, rate=Free(prior=Gamma(concentration=3, rate=4)))},
        {"x": TIMES},
        lambda t: (
            stats.expon(scale=np.exp(-t[0])).logpdf(TIMES).sum()
            + stats.gamma(3, scale=1 / 4).logpdf(np.exp(t[0]))
        ),
        [0],
    ),
    "beta probability": (
        {"x": Bernoulli(1, probs=Free(prior=Beta(concentration1=4, concentration0=2)))},
        {"x": YES},
        lambda t: stats.bernoulli(expit(t[0])).logpmf(YES).sum() + stats.beta(4, 2).logpdf(expit(t[0])),
        [0],
    ),
    "beta probability of several trials": (
        {"x": Binomial(1, total_count=9, probs=Free(prior=Beta(concentration1=4, concentration0=2)))},
        {"x": COUNTS},
        lambda t: stats.binom(9, expit(t[0])).logpmf(COUNTS).sum() + stats.beta(4, 2).logpdf(expit(t[0])),
        [0],
    ),
    "Dirichlet probabilities": (
        {"x": Categorical(3, probs=Free(prior=Dirichlet(concentration=[2, 1.5, 4])))},
        {"x": LEVELS},
        over_categories,
        [0, 0],
    ),
}


def brute_force(log_posterior, begin):
    """The maximum, and where: simplex search, then gradients, with nothing of ours in it."""
    near = minimize(lambda t: -log_posterior(t), begin, method="Nelder-Mead", options={"maxiter": 300})
    return minimize(lambda t: -log_posterior(t), near.x, method="BFGS", options={"gtol": 1e-7})


@pytest.mark.parametrize("case", CASES)
def test_the_estimate_is_the_maximum_of_the_posterior_that_brute_force_finds(case):
    model, data, log_posterior, begin = CASES[case]
    result = fit(Spec(model=model), data, EM(tol=1e-13, max_steps=2000))
    best = brute_force(log_posterior, begin)
    # BFGS on numerical gradients leaves about 1e-9 nats; what it stops short of must not exceed ours.
    assert result.history[-1] == pytest.approx(-best.fun, abs=1e-7)
    assert result.history[-1] >= -best.fun - 1e-9
    assert result.log_likelihood + result.log_prior == pytest.approx(result.history[-1], rel=1e-12)
    assert result.certificate.ok, str(result.certificate)


def test_the_objective_never_falls_and_a_prior_in_other_units_gives_the_same_fit():
    x = np.concatenate([RNG.normal(0, [1, 3], (50, 2)), RNG.normal(4, [2, 1], (40, 2))])

    def posterior(shift, unit):
        spec = Spec(
            model={
                "z": Categorical(2, probs=Free(prior=Dirichlet(concentration=2))),
                "x": Normal(
                    2,
                    loc=By("z", prior=Normal(loc=shift + unit * np.array([1, 2]), scale=2 * unit)),
                    scale=By("z", prior=InverseGamma(concentration=2, rate=3 * unit**2)),
                ),
            }
        )
        return fit(spec, {"x": shift + unit * x}, EM(tol=1e-12))

    plain, moved = posterior(0.0, 1.0), posterior(5000.0, 0.01)
    assert np.diff(plain.history).min() > -1e-9
    p, q = plain.parameters["x"], moved.parameters["x"]
    np.testing.assert_allclose((q["loc"] - 5000) / 0.01, p["loc"], rtol=1e-5)
    np.testing.assert_allclose(q["scale"] / 0.01, p["scale"], rtol=1e-5)
    # Densities of the rows, of 4 locations and of 4 variances change with the unit.
    jacobian = (x.size + 4 + 2 * 4) * np.log(0.01)
    assert plain.history[-1] - jacobian == pytest.approx(moved.history[-1], rel=1e-9)


def low_dim_gauss_mix(loc):
    data = {"y": pd.read_csv(DATA / "low_dim_gauss_mix.csv")["y"].to_numpy()[:, None]}
    spec = Spec(
        model={
            "z": Categorical(2, probs=Free(prior=Dirichlet(concentration=5))),
            "y": Normal(1, loc=loc, scale=By("z", prior=HalfNormal(scale=2))),
        }
    )
    return data["y"], fit(spec, data, EM(restarts=2, tol=1e-12))


@pytest.mark.parametrize("ordered", [True, False])
def test_the_posterior_mode_of_posteriordbs_mixture_is_where_its_reference_draws_are(ordered):
    y, result = low_dim_gauss_mix(By("z", ordered=ordered, prior=Normal(loc=0, scale=2)))

    def log_posterior(t):
        theta, scale = expit(t[0]), np.exp(t[3:])
        parts = np.log([theta, 1 - theta]) + stats.norm(t[1:3], scale).logpdf(y)
        prior = stats.beta(5, 5).logpdf(theta) + stats.norm(0, 2).logpdf(t[1:3]).sum()
        return np.logaddexp.reduce(parts, axis=1).sum() + prior + stats.halfnorm(scale=2).logpdf(scale).sum()

    best = brute_force(log_posterior, [0.5, -2.7, 2.9, 0, 0])
    assert result.history[-1] == pytest.approx(-best.fun, abs=1e-6)
    order = np.argsort(result.parameters["y"]["loc"][:, 0])
    found = np.concatenate([result.parameters["y"][key][order, 0] for key in ("loc", "scale")])
    found = [*found, result.parameters["z"]["probs"][order[0]]]
    # Posterior means and standard deviations of posteriordb's reference draws.
    means, sds = [-2.7335, 2.8698, 1.0281, 1.0238, 0.62155], [0.042, 0.055, 0.031, 0.040, 0.0155]
    assert np.all(np.abs(np.subtract(found, means)) < sds)


def test_a_normal_prior_on_weights_is_ridge_regression_in_the_datas_own_units():
    u = RNG.normal(500, [20, 0.1], (40, 2))
    y = u @ [[0.5], [30.0]] + RNG.normal(0, 2, (40, 1)) + 1000
    weights = Linear("u", prior=Normal(loc=0, scale=3))
    spec = Spec(model={"u": Input(2), "y": Normal(1, loc=weights, scale=2)})
    result = fit(spec, {"u": u, "y": y}, EM(tol=1e-13))
    ridge = Ridge(alpha=2**2 / 3**2, tol=1e-12).fit(u, y[:, 0])
    np.testing.assert_allclose(result.parameters["y"]["loc"]["weight"][0], ridge.coef_, rtol=1e-6)
    expected = (
        stats.norm(0, 3).logpdf(ridge.coef_).sum() + stats.norm(ridge.predict(u), 2).logpdf(y[:, 0]).sum()
    )
    assert result.history[-1] == pytest.approx(expected, rel=1e-9)


def test_a_normal_prior_on_the_weights_of_a_logit_is_scikit_learns_penalty():
    u = RNG.normal(size=(60, 2))
    y = (RNG.random(60) < expit(u @ [1.0, -2.0])).astype(int)
    spec = Spec(model={"u": Input(2), "y": Bernoulli(1, logits=Linear("u", prior=Normal(loc=0, scale=0.5)))})
    result = fit(spec, {"u": u, "y": y[:, None]}, EM(tol=1e-13))
    stock = LogisticRegression(C=0.5**2, tol=1e-12, max_iter=1000).fit(u, y)
    np.testing.assert_allclose(result.parameters["y"]["logits"]["weight"], stock.coef_, rtol=1e-5)


def test_a_prior_of_the_variance_keeps_a_class_from_shrinking_onto_one_row():
    x = np.concatenate([RNG.normal(size=(30, 1)), np.full((6, 1), 7.0)])
    scale = By("z", prior=InverseGamma(concentration=2, rate=0.1))
    result = fit(Spec(model={"z": Categorical(2), "x": Normal(1, loc=By("z"), scale=scale)}), {"x": x})
    assert result.run.collapsed == 0
    # Six rows at one place: the mode of the prior's 2·0.1 over its 2·2 + 2 and the six.
    assert result.parameters["x"]["scale"].min() == pytest.approx(np.sqrt(0.2 / 12), rel=1e-4)


def test_classes_that_their_priors_tell_apart_keep_their_order():
    x = np.concatenate([RNG.normal(-4, 1, (20, 1)), RNG.normal(4, 1, (60, 1))])
    loc = By("z", prior=Normal(loc=[[-4], [4]], scale=1))
    result = fit(Spec(model={"z": Categorical(2), "x": Normal(1, loc=loc, scale=1)}), {"x": x})
    np.testing.assert_allclose(result.parameters["z"]["probs"], [0.25, 0.75], atol=0.01)


def test_svi_climbs_the_bound_plus_its_share_of_the_log_prior():
    spec = Spec(
        model={"x": Normal(1, loc=Free(prior=Normal(loc=0, scale=1)), scale=Free(prior=HalfNormal(scale=1)))}
    )
    program = compile_spec(spec, {"x": X})
    rows = {"x": torch.tensor(X[:5])}
    parameters, buffers = dict(program.named_parameters()), dict(program.named_buffers())
    layout = Layout({path: value.detach() for path, value in parameters.items()})
    flat = layout.flatten({path: value.detach() for path, value in parameters.items()})
    (gradient,), bound = gradient_step(program, layout, SVI(), len(X))([flat], buffers, rows, {})
    objective = TraceableELBO().per_row(program.model, program.guide, rows).sum()
    objective = objective + program.log_prior() * 5 / len(X)
    assert float(bound) == pytest.approx(float(objective.detach()), rel=1e-12)
    expected = torch.autograd.grad(-objective / 5, list(parameters.values()))
    torch.testing.assert_close(gradient, torch.cat([g.reshape(-1) for g in expected]), rtol=1e-12, atol=0)
    # Over many steps that is the maximum of the posterior, up to the noise of minibatches.
    exact = fit(spec, {"x": X / 10})
    stochastic = fit(
        spec, {"x": X / 10}, SVI(epochs=300, batch_size=15, learning_rate=0.03, lowering="eager")
    )
    assert stochastic.log_likelihood + stochastic.log_prior == pytest.approx(exact.history[-1], abs=1e-3)


def test_a_saved_fit_keeps_its_priors(tmp_path):
    model, data, *_ = CASES["normal and inverse Wishart"]
    result = fit(Spec(model=model), data)
    result.save(tmp_path / "fit")
    again = load(tmp_path / "fit")
    assert again.log_prior == result.log_prior
    assert again.spec == result.spec
