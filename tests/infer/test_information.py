"""Standard errors against closed forms, NumPy's own second differences, and Louis' identity by hand."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.special import expit
from scipy.stats import norm, poisson

from ppl_gen.data.reading import read_table
from ppl_gen.declare.nodes import Bernoulli, Categorical, Input, MultivariateNormal, Normal, Poisson
from ppl_gen.declare.spec import Spec
from ppl_gen.declare.terms import By, Free, Linear
from ppl_gen.infer.algorithms import EM
from ppl_gen.infer.em import run_em
from ppl_gen.infer.given import given_state
from ppl_gen.infer.information import observed_information, scores, uncertainty
from ppl_gen.program.program import compile_spec

DIFFERENCES = 1e-5  # relative: what central differences of a log-likelihood leave of their sixteen digits


def compiled(model, data, weights=None):
    spec = Spec(model=model)
    table = read_table(data, spec, weights=weights)
    return compile_spec(spec, table.schema), table


def fitted(model, data, weights=None, **options):
    program, table = compiled(model, data, weights)
    run = run_em(program, table, EM(**{"tol": 0.0, "restarts": 3, **options}))
    program.load_state_dict(run.state)
    return program, run.state, table


def errors(model, data, kind="observed", weights=None, **options):
    return uncertainty(*fitted(model, data, weights, **options), kind)


def second_differences(function, at, steps):
    """The Hessian by central differences, improved once by Richardson's extrapolation."""

    def plain(shrink):
        h, P = steps * shrink, len(at)
        found = np.empty((P, P))
        for i in range(P):
            for j in range(P):
                e, d = np.eye(P)[i] * h[i], np.eye(P)[j] * h[j]
                corners = [function(at + a * e + b * d) * a * b for a in (1, -1) for b in (1, -1)]
                found[i, j] = sum(corners) / (4 * h[i] * h[j])
        return found

    return (4 * plain(1.0) - plain(2.0)) / 3


def first_differences(function, at, steps):
    """Derivatives of a vector-valued function, (…, P), of fourth order."""
    columns = []
    for e in np.diag(steps):
        near, far = function(at + e) - function(at - e), function(at + 2 * e) - function(at - 2 * e)
        columns.append((8 * near - far) / (12 * e.sum()))
    return np.stack(columns, -1)


@pytest.fixture(scope="module")
def two_normals():
    rng = np.random.default_rng(4)
    x = np.concatenate([rng.normal(0, 1, 140), rng.normal(4, 1.5, 60)])[:, None]
    model = {"z": Categorical(2), "x": Normal(1, loc=By("z"), scale=By("z"))}
    program, state, table = fitted(model, {"x": x}, restarts=1)
    natural = program.natural()
    at = np.concatenate([natural["z"]["probs"][:1], natural["x"]["loc"][:, 0], natural["x"]["scale"][:, 0]])
    return program, state, table, at, x[:, 0]


def log_density(x, at):
    p, first, second, narrow, wide = at
    return np.log(p * norm.pdf(x, first, narrow) + (1 - p) * norm.pdf(x, second, wide))


STEPS = np.array([2e-3, 4e-3, 8e-3, 4e-3, 8e-3])


def in_order(found):
    """Errors in the order of `at`."""
    return np.concatenate([found["z"]["probs"][:1], found["x"]["loc"][:, 0], found["x"]["scale"][:, 0]])


def test_errors_of_one_normal_are_the_textbook_ones():
    rng = np.random.default_rng(0)
    x = rng.normal(50, 3, (80, 1))
    found = errors({"x": Normal(1)}, {"x": x}).errors["x"]
    sd, n = x.std(), len(x)
    np.testing.assert_allclose(found["loc"], [sd / np.sqrt(n)], rtol=1e-10)
    np.testing.assert_allclose(found["scale"], [sd / np.sqrt(2 * n)], rtol=1e-10)


def test_errors_of_a_covariance_are_wishart_s():
    rng = np.random.default_rng(1)
    x = rng.normal(size=(90, 3)) @ rng.normal(size=(3, 3))
    found = errors({"x": MultivariateNormal()}, {"x": x})
    S, n = np.cov(x.T, bias=True), len(x)
    d = np.diag(S)
    np.testing.assert_allclose(found.errors["x"]["cov"], np.sqrt((np.outer(d, d) + S**2) / n), rtol=1e-8)
    np.testing.assert_allclose(found.covariance[:3, :3], S / n, rtol=1e-8, atol=1e-12)


def test_errors_of_probabilities_and_rates_are_the_textbook_ones():
    rng = np.random.default_rng(2)
    c, b, k = rng.integers(0, 3, 70), rng.random((70, 2)) < 0.3, rng.poisson(2.5, (70, 1))
    found = errors(
        {"c": Categorical(), "b": Bernoulli(), "k": Poisson()}, {"c": c, "b": b * 1.0, "k": k}
    ).errors
    p, q = np.bincount(c) / 70, b.mean(0)
    np.testing.assert_allclose(found["c"]["probs"], np.sqrt(p * (1 - p) / 70), rtol=1e-10)
    np.testing.assert_allclose(found["b"]["probs"], np.sqrt(q * (1 - q) / 70), rtol=1e-10)
    np.testing.assert_allclose(found["k"]["rate"], np.sqrt(k.mean(0) / 70), rtol=1e-10)


def test_errors_of_a_mixture_are_those_of_numpy_s_log_likelihood(two_normals):
    program, state, table, at, x = two_normals
    information = -second_differences(lambda at: log_density(x, at).sum(), at, STEPS)
    expected = np.sqrt(np.diag(np.linalg.inv(information)))
    found = uncertainty(program, state, table)
    np.testing.assert_allclose(in_order(found.errors), expected, rtol=DIFFERENCES)
    assert found.problem is None


def test_the_sandwich_is_bread_meat_bread(two_normals):
    program, state, table, at, x = two_normals
    bread = np.linalg.inv(second_differences(lambda at: log_density(x, at).sum(), at, STEPS))
    s = first_differences(lambda at: log_density(x, at), at, STEPS / 4)
    expected = np.sqrt(np.diag(bread @ (s.T @ s) @ bread))
    found = uncertainty(program, state, table, "sandwich")
    np.testing.assert_allclose(in_order(found.errors), expected, rtol=DIFFERENCES)


def test_the_information_is_louis_s_anywhere_not_only_at_a_maximum():
    x = np.random.default_rng(3).poisson(np.repeat([1.0, 6.0], 40))[:, None]
    program, table = compiled({"z": Categorical(2), "x": Poisson(1, rate=By("z"))}, {"x": x})
    p, rates = 0.3, np.array([5.0, 1.5])
    state = given_state(program, {"z": {"probs": [p, 1 - p]}, "x": {"rate": rates[:, None]}})
    joint = np.array([p, 1 - p]) * poisson.pmf(x, rates)
    r = joint / joint.sum(1, keepdims=True)
    # complete data, in (log-odds of the first class, log λ₁, log λ₂)
    score = np.zeros((len(x), 2, 3))
    score[:, 0, 0], score[:, 1, 0] = 1 - p, -p
    score[:, 0, 1], score[:, 1, 2] = x[:, 0] - rates[0], x[:, 0] - rates[1]
    complete = np.diag([len(x) * p * (1 - p), *(r.sum(0) * rates)])
    mean = (r[..., None] * score).sum(1)
    missing = np.einsum("nk,nki,nkj->ij", r, score, score) - mean.T @ mean
    phi, found = observed_information(program, state, table)
    assert [name.split("[")[0] for name in phi.names()] == ["z.probs", "x.rate", "x.rate"]
    # the larger probability is the reference, so that the one that moves is the first class's
    np.testing.assert_allclose(found, complete - missing, rtol=1e-10, atol=1e-10)
    np.testing.assert_allclose(scores(phi, table), mean, rtol=1e-10, atol=1e-12)


def test_errors_of_logistic_weights_are_those_of_logistic_regression():
    rng = np.random.default_rng(5)
    u = rng.normal(30, 2, (120, 1))
    y = (rng.random(120) < expit(u[:, 0] - 30)).astype(int)
    program, table = compiled({"u": Input(1), "y": Categorical(2, logits=Linear("u"))}, {"u": u, "y": y})
    X, beta = np.column_stack([np.ones(120), u[:, 0]]), np.zeros(2)
    for _ in range(40):  # Newton
        mu = expit(X @ beta)
        beta = beta + np.linalg.solve(X.T @ (X * (mu * (1 - mu))[:, None]), X.T @ (y - mu))
    state = dict(program.state_dict())
    state["generative.layers.y:logits.weight"] = torch.tensor([[beta[1]]])
    state["generative.layers.y:logits.bias"] = torch.tensor([beta[0]])
    found = uncertainty(program, state, table).errors["y"]["logits"]
    covariance = np.linalg.inv(X.T @ (X * (mu * (1 - mu))[:, None]))
    expected = np.sqrt(np.diag(covariance))
    np.testing.assert_allclose([found["bias"][0], found["weight"][0, 0]], expected, rtol=1e-7)


def test_a_weight_of_two_is_the_row_twice():
    rng = np.random.default_rng(6)
    x = np.concatenate([rng.normal(0, 1, (30, 2)), rng.normal(3, 1, (20, 2))])
    times = rng.integers(1, 4, len(x))
    model = {"z": Categorical(2), "x": Normal(2, loc=By("z"), scale=By("z", dim=1))}
    for kind in ("observed", "sandwich"):
        weighted = errors(model, {"x": x}, kind, weights=times.astype(float), restarts=1, tol=1e-13)
        start = weighted.phi.program.natural()
        repeated = errors(model, {"x": np.repeat(x, times, 0)}, kind, init=start, tol=1e-13)
        np.testing.assert_allclose(
            np.sort(weighted.flat_errors), np.sort(repeated.flat_errors), rtol=1e-5, atol=1e-12
        )


def test_errors_follow_the_units_of_the_columns():
    rng = np.random.default_rng(7)
    x = np.concatenate([rng.normal(0, 1, (60, 2)), rng.normal(5, 1, (40, 2))])
    model = {"z": Categorical(2), "x": MultivariateNormal(2, loc=By("z"), cov=By("z"))}
    plain, far = errors(model, {"x": x}).errors, errors(model, {"x": x * [1e3, 1e-3] + [1e6, 5]}).errors
    np.testing.assert_allclose(far["x"]["loc"], plain["x"]["loc"] * [1e3, 1e-3], rtol=1e-6)
    np.testing.assert_allclose(far["z"]["probs"], plain["z"]["probs"], rtol=1e-6)


def test_a_probability_at_zero_is_left_out_and_named_and_the_others_keep_their_errors():
    rng = np.random.default_rng(8)
    c = np.where(np.arange(60) < 35, 0, rng.integers(0, 2, 60))
    g = (np.arange(60) < 35).astype(int)
    found = errors({"g": Categorical(2), "c": Categorical(2, probs=By("g"))}, {"g": g, "c": c})
    p = c[g == 0].mean()
    own = found.errors["c"]["probs"]
    np.testing.assert_allclose(own[0], [np.sqrt(p * (1 - p) / 25)] * 2, rtol=1e-10)
    status = found.status[-4:].reshape(2, 2)
    assert status.tolist() == [["", ""], ["boundary", "boundary"]]
    assert np.isnan(own[1]).all()  # what is 1 because the other is 0 is no more certain than that


def test_written_numbers_have_no_error_and_are_named():
    x = np.random.default_rng(9).normal(size=(40, 2))
    found = errors({"x": Normal(2, loc=[0, Free()], scale=1)}, {"x": x})
    assert found.status.tolist() == ["fixed", "", "fixed", "fixed"]
    np.testing.assert_allclose(found.flat_errors, [0, 1 / np.sqrt(40), 0, 0], rtol=1e-10)


def test_away_from_a_maximum_no_error_is_invented(two_normals):
    program, _, table, _, _ = two_normals
    state = given_state(
        program, {"z": {"probs": [0.5, 0.5]}, "x": {"loc": [[-9.0], [12.0]], "scale": [[1.0], [1.0]]}}
    )
    found = uncertainty(program, state, table)
    assert "not positive definite" in str(found.problem)
    assert np.isnan(found.flat_errors[found.jacobian.any(1)]).all()


def test_what_the_rows_cannot_tell_has_no_error_and_what_they_can_has():
    """Two classes alike in everything: their shares could be any, their common mean could not."""
    x = np.random.default_rng(10).normal(3, 1, (50, 1))
    program, table = compiled({"z": Categorical(2), "x": Normal(1, loc=By("z"), scale=1)}, {"x": x})
    mean = float(x.mean())
    state = given_state(program, {"z": {"probs": [0.6, 0.4]}, "x": {"loc": [[mean], [mean]]}})
    found = uncertainty(program, state, table)
    if found.problem is None:  # a ridge; with more spread than the model's it is a saddle, and says so
        assert (found.status[:2] == "not identified").all()
        assert np.isnan(found.flat_errors[:2]).all()


def test_a_prior_adds_its_precision():
    from ppl_gen.declare import priors

    x = np.random.default_rng(11).normal(1, 2, (25, 1))
    model = {"x": Normal(1, loc=Free(prior=priors.Normal(loc=0, scale=0.5)), scale=2.0)}
    program, table = compiled(model, {"x": x})
    posterior = (x.sum() / 4) / (25 / 4 + 1 / 0.25)
    state = dict(program.state_dict()) | {
        "generative.layers.x:loc.table": torch.tensor([posterior], dtype=torch.float64)
    }
    found = uncertainty(program, state, table).errors["x"]["loc"]
    np.testing.assert_allclose(found, [(25 / 4 + 1 / 0.25) ** -0.5], rtol=1e-10)


def test_a_float32_program_has_the_same_errors(two_normals):
    program, state, table, _, _ = two_normals
    single = compile_spec(program.spec, program.schema, dtype=torch.float32)
    rounded = {path: value.to(single.state_dict()[path].dtype) for path, value in state.items()}
    np.testing.assert_allclose(
        uncertainty(single, rounded, table).flat_errors,
        uncertainty(program, state, table).flat_errors,
        rtol=1e-4,  # the state itself is rounded to seven digits
    )


def test_an_empty_class_has_no_error_and_the_others_keep_theirs():
    x = np.random.default_rng(12).normal(0, 1, (40, 1))
    program, table = compiled({"z": Categorical(2), "x": Normal(1, loc=By("z"), scale=1)}, {"x": x})
    state = given_state(program, {"z": {"probs": [1 - 1e-9, 1e-9]}, "x": {"loc": [[x.mean()], [50.0]]}})
    found = uncertainty(program, state, table)
    assert found.status.tolist() == ["boundary", "boundary", "", "not identified", "fixed"]
    assert np.isnan(found.flat_errors[0])
    np.testing.assert_allclose(found.flat_errors[2], 1 / np.sqrt(40), rtol=1e-6)
