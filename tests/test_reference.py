"""The reference against truths that do not share its code.

SciPy's distributions and quadrature, Bayes' rule, complete enumeration, complex-step derivatives, and
autograd through two hand-written Pyro pairs. Everything is float64. `ROUNDING` is for quantities computed
twice by short sums of O(100) terms of O(100): 1e-11 is some 10³ units in the last place above their loss.
"""

from __future__ import annotations

import importlib.util
import itertools
from pathlib import Path

import numpy as np
import pyro
import pytest
import torch
from scipy import integrate, stats

from ppl_gen import reference as ref

ROUNDING = {"rtol": 1e-11, "atol": 1e-11}
MODELS = Path(__file__).parents[1] / "models"


def close(a, b):
    np.testing.assert_allclose(a, b, **ROUNDING)


@pytest.fixture
def rng():
    return np.random.default_rng(0)


def random_covariances(rng, *shape_and_n):
    a = rng.normal(size=(*shape_and_n, shape_and_n[-1]))
    return a @ np.swapaxes(a, -1, -2) + 0.1 * np.eye(shape_and_n[-1])


# Densities


def test_normal_density_integrates_to_one_and_is_scipys(rng):
    total, _ = integrate.quad(lambda x: np.exp(ref.log_normal(x, 1.5, 0.3)), -3, 6, points=[1.5])
    assert total == pytest.approx(1, abs=1e-8)  # the tolerance quad itself works to
    x, loc, scale = rng.normal(size=(4, 1, 3)), rng.normal(size=(5, 1)), rng.gamma(2, size=3)
    close(ref.log_normal(x, loc, scale), stats.norm.logpdf(x, loc, scale))


def test_multivariate_normal_scores_every_row_under_every_class(rng):
    x, locs, covs = rng.normal(size=(7, 3)), rng.normal(size=(2, 3)), random_covariances(rng, 2, 3)
    table = ref.log_multivariate_normal(x[:, None], locs, covs)
    for k in range(2):
        close(table[:, k], stats.multivariate_normal.logpdf(x, locs[k], covs[k]))


def test_bernoulli_score_is_scipys_and_survives_logits_of_800():
    logits = np.linspace(-5, 5, 11)
    for x in (0.0, 1.0):
        close(ref.log_bernoulli(x, logits), stats.bernoulli.logpmf(int(x), 1 / (1 + np.exp(-logits))))
    close(ref.log_bernoulli(np.array([0.0, 1.0, 1.0]), np.array([800.0, 800.0, -800.0])), [-800, 0, -800])


def test_categorical_score_reads_the_right_entry_and_gives_minus_infinity_at_zero():
    probs = np.array([[0.2, 0.8, 0.0], [0.5, 0.25, 0.25]])
    table = ref.log_categorical(np.array([0, 1, 2, 1])[:, None], probs)  # (D, K)
    close(np.exp(table), [[0.2, 0.5], [0.8, 0.25], [0.0, 0.25], [0.8, 0.25]])
    assert table[2, 0] == -np.inf


def test_poisson_score_is_scipys_also_at_rate_zero(rng):
    x, rate = rng.poisson(4, size=(6, 1)).astype(float), np.array([0.3, 4.0, 250.0])
    close(ref.log_poisson(x, rate), stats.poisson.logpmf(x, rate))
    assert ref.log_poisson(np.array(0.0), 0.0) == 0
    assert ref.log_poisson(np.array(1.0), 0.0) == -np.inf


# F1 to F4


@pytest.fixture
def tables(rng):
    log_joint = rng.normal(size=(8, 4)) * 3
    q = rng.dirichlet(np.ones(4), size=8)
    q[0] = [0, 1, 0, 0]
    q[1] = [0.5, 0, 0.5, 0]
    return log_joint, q


def test_marginal_of_a_far_outlier_does_not_underflow(tables):
    log_joint, _ = tables
    close(ref.log_marginal(log_joint), np.log(np.exp(log_joint).sum(-1)))
    close(ref.log_marginal(log_joint - 5000), np.log(np.exp(log_joint).sum(-1)) - 5000)
    assert ref.log_likelihood(log_joint) == pytest.approx(np.log(np.exp(log_joint).sum(-1)).sum(), rel=1e-12)


def test_continuous_marginal_by_nodes_is_the_integral():
    z, log_weight = ref.standard_normal_grid(100, 1)
    by_nodes = ref.log_marginal(ref.log_normal(np.array(0.7), np.sin(z[:, 0]), 0.8) + log_weight)
    integral, error = integrate.quad(
        lambda z: stats.norm.pdf(z) * stats.norm.pdf(0.7, np.sin(z), 0.8),
        -12,
        12,
        epsabs=1e-12,
        limit=200,
    )
    assert np.exp(by_nodes) == pytest.approx(integral, abs=error)


def test_node_grid_has_the_moments_of_the_normal_in_two_dimensions():
    z, log_weight = ref.standard_normal_grid(12, 2)
    w = np.exp(log_weight)
    close(
        [w.sum(), w @ z[:, 0] ** 2, w @ z[:, 1] ** 4, w @ (z[:, 0] ** 2 * z[:, 1] ** 2), w @ z[:, 0]],
        [1, 1, 3, 1, 0],
    )


def test_identity_of_f2_holds_for_any_q_with_zeros_too(tables):
    log_joint, q = tables
    close(
        ref.lower_bound(log_joint, q) + ref.kl(q, ref.responsibilities(log_joint)),
        np.log(np.exp(log_joint).sum(-1)),
    )


def test_bound_is_tight_at_the_posterior_and_below_elsewhere(tables):
    log_joint, q = tables
    posterior = ref.responsibilities(log_joint)
    close(posterior.sum(-1), 1)
    close(ref.lower_bound(log_joint, posterior), ref.log_marginal(log_joint))
    assert (ref.lower_bound(log_joint, q) < ref.log_marginal(log_joint)).all()


def test_bound_ignores_impossible_classes_that_q_does_not_use():
    log_joint = np.array([[np.log(0.3), -np.inf]])
    assert ref.lower_bound(log_joint, np.array([[1.0, 0.0]])) == pytest.approx(np.log(0.3), abs=1e-15)
    assert ref.lower_bound(log_joint, np.array([[0.5, 0.5]])) == -np.inf
    assert ref.kl(np.array([0.5, 0.5]), np.array([1.0, 0.0])) == np.inf


def test_kl_and_entropy_are_scipys(tables):
    _, q = tables
    p = ref.responsibilities(tables[0])
    close(ref.kl(q, p), stats.entropy(q, p, axis=-1))
    close(ref.entropy(q), stats.entropy(q, axis=-1))


def test_both_decompositions_of_f3_are_the_bound(tables, rng):
    log_density, q = tables
    prior = rng.dirichlet(np.ones(4))
    log_joint = ref.mixture_log_joint(prior, log_density)
    close(ref.lower_bound_via_entropy(log_joint, q), ref.lower_bound(log_joint, q))
    close(ref.lower_bound_via_kl(log_density, prior, q), ref.lower_bound(log_joint, q))


# F5 to F7


def test_two_forms_of_em_differ_by_an_entropy_that_theta_does_not_move(tables, rng):
    old, _ = tables
    q = ref.responsibilities(old)
    for _ in range(5):
        new = rng.normal(size=old.shape)
        difference = ref.em_form_1_objective(new, q) - ref.q_function(old, new)
        assert difference == pytest.approx(stats.entropy(q, axis=-1).sum(), rel=1e-11)


def test_mixture_bound_touches_the_likelihood_at_theta_and_is_never_above_it(rng):
    x = rng.normal(size=(20, 2))

    def densities():
        return ref.log_multivariate_normal(x[:, None], rng.normal(size=(3, 2)), random_covariances(rng, 3, 2))

    weights, log_density = rng.dirichlet(np.ones(3)), densities()
    r = ref.responsibilities(ref.mixture_log_joint(weights, log_density))
    close(ref.lower_bound_mixture(weights, log_density, r), np.log(np.exp(log_density) @ weights))
    for _ in range(20):
        other, elsewhere = rng.dirichlet(np.ones(3)), densities()
        bound = ref.lower_bound_mixture(other, elsewhere, r)
        close(bound, ref.lower_bound(ref.mixture_log_joint(other, elsewhere), r))
        assert (bound <= np.log(np.exp(elsewhere) @ other)).all()


def test_an_empty_class_costs_nothing_when_nobody_is_in_it():
    log_density = np.array([[-1.0, -2.0]])
    bound = ref.lower_bound_mixture(np.array([1.0, 0.0]), log_density, np.array([[1.0, 0.0]]))
    assert bound == -1.0


def test_mixture_weights_are_shares_of_the_rows():
    hard = np.eye(3)[[0, 0, 0, 1]]
    close(ref.m_step_weights(hard), [0.75, 0.25, 0])
    close(ref.m_step_weights(np.full((5, 2), 0.5)), [0.5, 0.5])


@pytest.fixture
def counts_as_weights(rng):
    """Integer weights, so that a weighted estimate is the plain estimate of repeated rows."""
    return rng.integers(0, 5, size=(30, 2)).astype(float)


def test_weighted_normal_estimates_are_those_of_repeated_rows(rng, counts_as_weights):
    x, r = rng.normal(size=(30, 3)) @ rng.normal(size=(3, 3)), counts_as_weights
    pooled = 0
    for k in range(2):
        repeated = np.repeat(x, r[:, k].astype(int), axis=0)
        close(ref.m_step_mean(x, r)[k], repeated.mean(0))
        close(ref.m_step_variance(x, r)[k], [stats.norm.fit(column)[1] ** 2 for column in repeated.T])
        close(ref.m_step_covariance(x, r)[k], np.cov(repeated.T, bias=True))
        pooled = pooled + np.cov(repeated.T, bias=True) * len(repeated)
    close(ref.m_step_tied_covariance(x, r), pooled / r.sum())


def test_weighted_discrete_estimates_are_frequencies_of_repeated_rows(rng, counts_as_weights):
    r = counts_as_weights
    bits, counts = rng.integers(0, 2, size=(30, 3)).astype(float), rng.poisson(3, size=(30, 3)).astype(float)
    levels = rng.integers(0, 4, size=30)
    for k in range(2):
        times = r[:, k].astype(int)
        close(ref.m_step_bernoulli(bits, r)[k], np.repeat(bits, times, axis=0).mean(0))
        close(ref.m_step_poisson(counts, r)[k], np.repeat(counts, times, axis=0).mean(0))
        close(
            ref.m_step_categorical(levels, r, 4)[k],
            np.bincount(np.repeat(levels, times), minlength=4) / times.sum(),
        )


FAMILIES = {
    "normal_diagonal": lambda x, r: (
        lambda mean, var: stats.norm.logpdf(x[:, None], mean, np.sqrt(var)).sum(-1)
    )(ref.m_step_mean(x, r), ref.m_step_variance(x, r)),
    "normal_full": lambda x, r: ref.log_multivariate_normal(
        x[:, None], ref.m_step_mean(x, r), ref.m_step_covariance(x, r)
    ),
    "normal_tied": lambda x, r: ref.log_multivariate_normal(
        x[:, None], ref.m_step_mean(x, r), ref.m_step_tied_covariance(x, r)
    ),
    "bernoulli": lambda x, r: (
        lambda p: ref.log_bernoulli((x > 1)[:, None], np.log(p) - np.log1p(-p)).sum(-1)
    )(ref.m_step_bernoulli((x > 1).astype(float), r)),
    "poisson": lambda x, r: ref.log_poisson(
        np.floor(x**2)[:, None], ref.m_step_poisson(np.floor(x**2), r)
    ).sum(-1),
    "categorical": lambda x, r: ref.log_categorical(
        np.digitize(x[:, 0], [0, 2])[:, None], ref.m_step_categorical(np.digitize(x[:, 0], [0, 2]), r, 3)
    ),
}


@pytest.mark.parametrize("family", FAMILIES)
def test_em_never_lowers_the_likelihood(family, rng):
    x = np.concatenate([rng.normal(size=(40, 2)), 3 + rng.normal(size=(20, 2)) * [0.5, 2]])
    r, history = rng.dirichlet(np.ones(2), size=60), []
    for _ in range(30):
        log_joint = ref.mixture_log_joint(ref.m_step_weights(r), FAMILIES[family](x, r))
        history.append(ref.log_likelihood(log_joint))
        r = ref.responsibilities(log_joint)
    assert history[-1] >= history[0]
    assert np.diff(history).min() > -1e-10  # rounding of a sum of 60 terms of O(10)


@pytest.mark.parametrize("family", FAMILIES)
def test_no_other_responsibilities_give_a_better_weighted_likelihood(family, rng):
    """The M-step is an argmax: estimates made from other weights score no better under r."""
    x, r = rng.normal(size=(50, 2)) + 1, rng.dirichlet(np.ones(2), size=50)

    def score(made_from):
        return (r * (np.log(ref.m_step_weights(made_from)) + FAMILIES[family](x, made_from))).sum()

    for size in (1e-3, 0.1, 1.0):
        assert score(r) > score((1 - size) * r + size * rng.dirichlet(np.ones(2), size=50))


# F8, F9


@pytest.fixture
def vae(rng):
    """D=5 rows, n=3, k=2, hidden 4, C=6 draws."""
    layer = lambda out, into: (rng.normal(size=(out, into)), rng.normal(size=out))  # noqa: E731
    return {
        "x": rng.normal(size=(5, 3)),
        "eps": rng.normal(size=(6, 5, 2)),
        "encoder": {"affine": [layer(2, 3)], "hidden": [layer(4, 3), layer(2, 4)]},
        "log_scale": {"affine": [layer(2, 3)], "hidden": [layer(4, 3), layer(2, 4)]},
        "decoder": {"affine": [layer(3, 2)], "hidden": [layer(4, 2), layer(3, 4)]},
    }


def test_kl_to_the_prior_is_its_integral():
    mu, sigma = 0.8, 0.6
    q = stats.norm(mu, sigma)
    integral, _ = integrate.quad(lambda z: q.pdf(z) * (q.logpdf(z) - stats.norm.logpdf(z)), -8, 8)
    assert ref.kl_diagonal(np.array([mu]), np.array([sigma])) == pytest.approx(integral, abs=1e-8)
    integral, _ = integrate.quad(
        lambda z: stats.norm.pdf(z, mu) * (stats.norm.logpdf(z, mu) - stats.norm.logpdf(z)), -8, 8
    )
    assert ref.kl_unit(np.array([mu])) == pytest.approx(integral, abs=1e-8)
    close(
        ref.kl_multivariate_normal(np.array([mu]), np.array([[sigma**2]]), np.zeros(1), np.eye(1)),
        ref.kl_diagonal(np.array([mu]), np.array([sigma])),
    )


def test_kl_between_full_normals_is_the_mean_log_ratio(rng):
    mean_q, mean_p = rng.normal(size=(2, 2))
    cov_q, cov_p = random_covariances(rng, 2, 2)
    nodes, log_weight = ref.standard_normal_grid(5, 2)  # exact for the quadratic log ratio
    z = mean_q + nodes @ np.linalg.cholesky(cov_q).T
    ratio = stats.multivariate_normal.logpdf(z, mean_q, cov_q) - stats.multivariate_normal.logpdf(
        z, mean_p, cov_p
    )
    close(ref.kl_multivariate_normal(mean_q, cov_q, mean_p, cov_p), np.exp(log_weight) @ ratio)


def test_unit_bound_is_mean_log_density_minus_kl(vae):
    x, mu_E = vae["x"], ref.network(vae["encoder"]["hidden"], vae["x"])
    mu_D = ref.network(vae["decoder"]["hidden"], ref.reparameterise(mu_E, vae["eps"]))
    density = stats.norm.logpdf(x, mu_D, 1).sum(-1).mean(0)
    close(ref.lower_bound_unit(x, mu_E, mu_D), density - 0.5 * np.square(mu_E).sum(-1))


def test_learned_variances_of_one_reduce_to_the_unit_bound(vae):
    x, mu_E = vae["x"], ref.network(vae["encoder"]["hidden"], vae["x"])
    mu_D = ref.network(vae["decoder"]["hidden"], mu_E + vae["eps"])
    ones = np.ones_like(mu_E)
    close(ref.lower_bound_diagonal(x, mu_E, ones, mu_D, 1.0), ref.lower_bound_unit(x, mu_E, mu_D))
    close(ref.kl_diagonal(mu_E, ones), ref.kl_unit(mu_E))
    close(
        ref.sampled_lower_bound_unit(x, mu_E, mu_D, vae["eps"]) - ref.lower_bound_unit(x, mu_E, mu_D),
        ref.sampled_difference_diagonal(mu_E, 1.0, vae["eps"]),
    )


@pytest.mark.parametrize("shape", [(), (3,), (5, 3), (6, 5, 3)])
def test_reconstruction_accepts_noise_per_column_row_or_draw(shape, rng):
    x, mu_D, sigma = rng.normal(size=(5, 3)), rng.normal(size=(6, 5, 3)), rng.gamma(3, size=shape)
    close(ref.reconstruction_diagonal(x, mu_D, sigma), stats.norm.logpdf(x, mu_D, sigma).sum(-1).mean(0))


def test_bernoulli_reconstruction_is_scipys(rng):
    x, logits = rng.integers(0, 2, size=(5, 3)), rng.normal(size=(6, 5, 3)) * 2
    truth = stats.bernoulli.logpmf(x, 1 / (1 + np.exp(-logits))).sum(-1).mean(0)
    close(ref.reconstruction_bernoulli(x, logits), truth)


def test_sampled_bound_differs_from_the_closed_form_by_minus_mu_epsilon(vae):
    """F9.7, from SciPy's three densities: a KL part misread here would be blamed on Trace_ELBO later."""
    x, eps, mu_E = vae["x"], vae["eps"], ref.network(vae["encoder"]["hidden"], vae["x"])
    z = ref.reparameterise(mu_E, eps)
    mu_D = ref.network(vae["decoder"]["hidden"], z)
    general = ref.sampled_lower_bound(
        *(stats.norm.logpdf(a, b).sum(-1) for a, b in ((x, mu_D), (z, 0), (z, mu_E)))
    )
    close(ref.sampled_lower_bound_unit(x, mu_E, mu_D, eps), general)
    close(general - ref.lower_bound_unit(x, mu_E, mu_D), -(mu_E * eps.mean(0)).sum(-1))


def test_sampled_difference_with_learned_variances_is_that_of_the_densities(vae, rng):
    x, eps, mu_E = vae["x"], vae["eps"], rng.normal(size=(5, 2))
    sigma_E, sigma_D = rng.gamma(3, size=(5, 2)), rng.gamma(3, size=3)
    z = ref.reparameterise(mu_E, eps, sigma_E)
    mu_D = ref.network(vae["decoder"]["hidden"], z)
    general = ref.sampled_lower_bound(
        *(
            stats.norm.logpdf(a, b, s).sum(-1)
            for a, b, s in ((x, mu_D, sigma_D), (z, 0, 1), (z, mu_E, sigma_E))
        )
    )
    closed = ref.lower_bound_diagonal(x, mu_E, sigma_E, mu_D, sigma_D)
    close(general - closed, ref.sampled_difference_diagonal(mu_E, sigma_E, eps))


def test_sampled_difference_has_mean_zero(rng):
    nodes, log_weight = ref.standard_normal_grid(4, 2)  # exact for the quadratic difference
    mu_E, sigma_E = rng.normal(size=(1, 2)), rng.gamma(3, size=(1, 2))
    per_draw = [ref.sampled_difference_diagonal(mu_E, sigma_E, eps[None, None])[0] for eps in nodes]
    close(np.exp(log_weight) @ per_draw, 0)


# F10, F11


def complex_step(bound, parameters):
    """d bound_d / d parameter to rounding: Im f(θ + ih) / h has no cancellation, so h may be 1e-30."""
    gradients = {}
    for name, value in parameters.items():
        cells = []
        for index in np.ndindex(value.shape):
            moved = value.astype(complex)
            moved[index] += 1e-30j
            cells.append(bound(parameters | {name: moved}).imag / 1e-30)
        gradients[name] = np.stack(cells, -1).reshape(-1, *value.shape)
    return gradients


def flat(**networks):
    return {
        f"{prefix}.{i}.{part}": value
        for prefix, layers in networks.items()
        for i, layer in enumerate(layers)
        for part, value in zip(("weight", "bias"), layer, strict=True)
    }


def layers_of(parameters, prefix):
    count = sum(name.startswith(f"{prefix}.") for name in parameters) // 2
    return [(parameters[f"{prefix}.{i}.weight"], parameters[f"{prefix}.{i}.bias"]) for i in range(count)]


def assert_same_gradients(ours, truth):
    assert ours.keys() == truth.keys()
    for name in truth:
        np.testing.assert_allclose(ours[name], truth[name], err_msg=name, **ROUNDING)


@pytest.mark.parametrize("sampled", [False, True])
@pytest.mark.parametrize("activation", ["relu", "tanh"])
@pytest.mark.parametrize("kind", ["affine", "hidden"])
def test_written_gradients_of_the_unit_autoencoder_are_the_derivatives(vae, kind, activation, sampled):
    x, eps = vae["x"], vae["eps"]

    def bound(parameters):
        mu_E = ref.network(layers_of(parameters, "encoder"), x, activation)
        mu_D = ref.network(layers_of(parameters, "decoder"), mu_E + eps, activation)
        closed = ref.lower_bound_unit(x, mu_E, mu_D)
        return closed - (mu_E * eps).sum(-1).mean(0) if sampled else closed

    encoder, decoder = vae["encoder"][kind], vae["decoder"][kind]
    ours = ref.gradients_unit(x, encoder, decoder, eps, activation=activation, sampled=sampled)
    assert_same_gradients(ours, complex_step(bound, flat(decoder=decoder, encoder=encoder)))


@pytest.mark.parametrize("sampled", [False, True])
@pytest.mark.parametrize("activation", ["relu", "tanh"])
@pytest.mark.parametrize("kind", ["affine", "hidden"])
def test_written_gradients_with_learned_variances_are_the_derivatives(vae, kind, activation, sampled, rng):
    x, eps = vae["x"], vae["eps"]

    def bound(parameters):
        mu_E = ref.network(layers_of(parameters, "encoder_loc"), x, activation)
        sigma_E = np.exp(ref.network(layers_of(parameters, "encoder_log_scale"), x, activation))
        mu_D = ref.network(layers_of(parameters, "decoder"), mu_E + sigma_E * eps, activation)
        closed = ref.lower_bound_diagonal(x, mu_E, sigma_E, mu_D, np.exp(parameters["log_sigma_D"]))
        return closed + ref.sampled_difference_diagonal(mu_E, sigma_E, eps) if sampled else closed

    encoder, decoder = (vae["encoder"][kind], vae["log_scale"][kind]), vae["decoder"][kind]
    log_sigma_D = rng.normal(size=3)
    ours = ref.gradients_diagonal(
        x, encoder, decoder, log_sigma_D, eps, activation=activation, sampled=sampled
    )
    parameters = flat(decoder=decoder, encoder_loc=encoder[0], encoder_log_scale=encoder[1])
    truth = complex_step(bound, parameters | {"log_sigma_D": log_sigma_D})
    assert ours.keys() == truth.keys()
    for name in truth:  # exp of the encoder's head makes gradients of O(1e4): relative to the largest cell
        scale = np.abs(truth[name]).max()
        np.testing.assert_allclose(ours[name] / scale, truth[name] / scale, err_msg=name, **ROUNDING)


def test_relu_network_is_torchs(vae):
    layers, z = vae["decoder"]["hidden"], vae["eps"]
    (w1, b1), (w2, b2) = (tuple(map(torch.as_tensor, layer)) for layer in layers)
    linear = torch.nn.functional.linear
    close(ref.network(layers, z), linear(linear(torch.as_tensor(z), w1, b1).relu(), w2, b2).numpy())


def test_sampled_gradient_is_the_closed_one_when_the_draws_average_to_zero(vae):
    eps = np.concatenate([vae["eps"], -vae["eps"]])
    networks = vae["x"], vae["encoder"]["hidden"], vae["decoder"]["hidden"], eps
    assert_same_gradients(ref.gradients_unit(*networks, sampled=True), ref.gradients_unit(*networks))


def test_gradient_steps_climb_the_bound_and_average_over_rows(vae):
    x, eps = vae["x"], vae["eps"]
    theta = flat(decoder=vae["decoder"]["affine"], encoder=vae["encoder"]["affine"])
    bounds = []
    for _ in range(20):
        encoder, decoder = layers_of(theta, "encoder"), layers_of(theta, "decoder")
        mu_E = ref.network(encoder, x)
        bounds.append(ref.lower_bound_unit(x, mu_E, ref.network(decoder, mu_E + eps)).mean())
        gradients = ref.gradients_unit(x, encoder, decoder, eps)
        moved = ref.sgd_step(theta, gradients, 1e-3)
        for name in theta:
            close(moved[name] - theta[name], 1e-3 * sum(gradients[name]) / len(x))
        theta = moved
    assert (np.diff(bounds) > 0).all()


# E1, E3


@pytest.fixture
def affine(rng):
    return rng.normal(size=(6, 3)), rng.normal(size=(3, 2)), rng.normal(size=3), rng.gamma(3, size=3)


def test_affine_marginal_is_bayes_rule_at_any_z(affine, rng):
    """E1: log p(x|z) + log p(z) − log p(z|x) is log p(x) whatever z; all three densities are SciPy's."""
    x, W, b, psi = affine
    mean, cov = ref.factor_analysis_posterior(x, W, b, psi)
    for row, posterior_mean in enumerate(mean):
        z = rng.normal(size=2)
        by_bayes = (
            stats.norm.logpdf(x[row], W @ z + b, np.sqrt(psi)).sum()
            + stats.norm.logpdf(z).sum()
            - stats.multivariate_normal.logpdf(z, posterior_mean, cov)
        )
        close(ref.log_marginal_affine(x, W, b, psi)[row], by_bayes)
    marginal = stats.multivariate_normal(*ref.factor_analysis_marginal(W, b, psi))
    close(ref.log_marginal_affine(x, W, b, psi), marginal.logpdf(x))


def test_equal_noise_makes_factor_analysis_the_probabilistic_pca(affine):
    x, W, b, _ = affine
    equal = np.full(3, 0.4)
    for ours, other in (
        (ref.ppca_marginal(W, b, 0.4), ref.factor_analysis_marginal(W, b, equal)),
        (ref.ppca_posterior(x, W, b, 0.4), ref.factor_analysis_posterior(x, W, b, equal)),
    ):
        close(ours[0], other[0])
        close(ours[1], other[1])
    close(
        ref.log_marginal_affine(x, W, b, 0.4),
        stats.multivariate_normal(*ref.ppca_marginal(W, b, 0.4)).logpdf(x),
    )


def test_affine_gap_is_exact_for_any_normal_q(affine, rng):
    x, W, b, psi = affine
    posterior = ref.factor_analysis_posterior(x, W, b, psi)
    for mean, cov in (
        (rng.normal(size=(6, 2)), random_covariances(rng, 2)),
        (rng.normal(size=(6, 2)), random_covariances(rng, 6, 2)),
        posterior,
    ):
        bound = ref.lower_bound_affine(x, mean, cov, W, b, psi)
        gap = ref.kl_multivariate_normal(mean, cov, *posterior)
        close(bound + gap, stats.multivariate_normal(*ref.factor_analysis_marginal(W, b, psi)).logpdf(x))
    close(gap, np.zeros(6))


def test_affine_bound_is_the_mean_of_the_sampled_bound(affine, rng):
    x, W, b, psi = affine
    mu_E, sigma_E = rng.normal(size=(6, 2)), rng.gamma(3, size=(6, 2))
    nodes, log_weight = ref.standard_normal_grid(4, 2)  # exact for the quadratic residual
    z = mu_E + sigma_E * nodes[:, None]
    densities = stats.norm.logpdf(x, z @ W.T + b, np.sqrt(psi)).sum(-1)
    expected = np.exp(log_weight) @ densities - ref.kl_diagonal(mu_E, sigma_E)
    close(ref.lower_bound_affine(x, mu_E, sigma_E[:, None] ** 2 * np.eye(2), W, b, psi), expected)


def test_importance_weighted_bound_rises_with_draws_and_stays_below_the_marginal(rng):
    """E3 with its expectation complete: z has three values, so all 3^C tuples of draws are listed."""
    log_joint, q = rng.normal(size=3), rng.dirichlet(np.ones(3))
    log_w = log_joint - np.log(q)
    means = []
    for draws in range(1, 7):
        tuples = np.array(list(itertools.product(range(3), repeat=draws))).T  # (C, 3^C)
        means.append(q[tuples].prod(0) @ ref.importance_weighted_bound(log_w[tuples]))
    close(means[0], ref.lower_bound(log_joint, q))
    assert (np.diff(means) > 0).all()
    assert means[-1] < ref.log_marginal(log_joint)


def test_importance_weighted_error_is_the_spread_of_repeated_estimates(rng):
    """A thousand estimates: their spread is known to 1/√2000 = 2.2 %, so 8 % is over three of them."""
    log_w = -3000 + 0.5 * rng.normal(size=(400, 1000))
    spread = ref.importance_weighted_bound(log_w).std(ddof=1)
    assert ref.importance_weighted_error(log_w).mean() == pytest.approx(spread, rel=0.08)


# The hand-written Pyro pairs in models/


def load(name):
    spec = importlib.util.spec_from_file_location(name, MODELS / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def mixture(rng):
    weights, locs, covs = np.array([0.2, 0.5, 0.3]), rng.normal(size=(3, 2)), random_covariances(rng, 3, 2)
    x = rng.normal(size=(9, 2)) * 2
    log_joint = ref.mixture_log_joint(weights, ref.log_multivariate_normal(x[:, None], locs, covs))
    arguments = (x, weights, locs, np.linalg.cholesky(covs))
    return log_joint, [torch.tensor(a, requires_grad=i > 0) for i, a in enumerate(arguments)]


@pytest.mark.parametrize("exact_guide", [True, False])
def test_pyros_mixture_bound_is_the_log_likelihood(mixture, exact_guide):
    log_joint, arguments = mixture
    pair = load("gaussian_mixture")
    objective = pyro.infer.TraceEnum_ELBO(max_plate_nesting=1)
    loss = objective.differentiable_loss(
        pair.model, pair.guide if exact_guide else lambda *_: None, *arguments
    )
    assert -loss.item() == pytest.approx(ref.log_likelihood(log_joint), rel=1e-11)
    loss.backward()
    r, (x, weights, locs, tril) = ref.responsibilities(log_joint), [a.detach().numpy() for a in arguments]
    precision = np.linalg.inv(tril @ np.swapaxes(tril, -1, -2))
    by_hand = np.einsum("dk,kij,dkj->ki", r, precision, x[:, None] - locs)  # Σ_d r_dk Σ_k⁻¹ (x_d − μ_k)
    close(-arguments[2].grad.numpy(), by_hand)
    close(-arguments[1].grad.numpy(), r.sum(0) / weights - len(x))  # Pyro divides π by its sum


@pytest.mark.parametrize(
    ("objective", "sampled"), [(pyro.infer.Trace_ELBO, True), (pyro.infer.TraceMeanField_ELBO, False)]
)
def test_pyros_autoencoder_bound_and_gradients_are_the_written_ones(vae, objective, sampled):
    pair = load("vae")
    torch.manual_seed(0)
    encoder, decoder = pair.Encoder(3, 4, 2).double(), pair.Decoder(2, 4, 3).double()
    data = torch.tensor(vae["x"])
    model, guide = (lambda x: pair.model(x, decoder)), (lambda x: pair.guide(x, encoder))
    pyro.set_rng_seed(1)
    z = pyro.poutine.trace(guide).get_trace(data).nodes["z"]["value"].detach().numpy()
    pyro.set_rng_seed(1)
    loss = objective().differentiable_loss(model, guide, data)
    loss.backward()

    linear = {
        name: [m for m in net if isinstance(m, torch.nn.Linear)]
        for name, net in (("encoder", encoder), ("decoder", decoder))
    }
    layers = {
        name: [(m.weight.detach().numpy(), m.bias.detach().numpy()) for m in net]
        for name, net in linear.items()
    }
    mu_E = ref.network(layers["encoder"], vae["x"])
    eps = (z - mu_E)[None]
    mu_D = ref.network(layers["decoder"], z[None])
    closed = ref.lower_bound_unit(vae["x"], mu_E, mu_D)
    truth = ref.sampled_lower_bound_unit(vae["x"], mu_E, mu_D, eps) if sampled else closed
    assert -loss.item() == pytest.approx(truth.sum(), rel=1e-11)
    gradients = ref.gradients_unit(vae["x"], layers["encoder"], layers["decoder"], eps, sampled=sampled)
    for name, net in linear.items():
        for i, module in enumerate(net):
            close(-module.weight.grad.numpy(), gradients[f"{name}.{i}.weight"].sum(0))
            close(-module.bias.grad.numpy(), gradients[f"{name}.{i}.bias"].sum(0))
    assert not pyro.get_param_store().keys()
