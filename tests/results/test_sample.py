"""Draws from a fit: their moments, their shapes, their names, and what they are conditional on."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch

from ppl_gen.declare.nodes import Bernoulli, Categorical, Input, MultivariateNormal, Normal, Poisson
from ppl_gen.declare.spec import Spec
from ppl_gen.declare.terms import By, Linear
from ppl_gen.errors import DataError, FitError
from ppl_gen.results import rows
from ppl_gen.results.draws import given_rows
from ppl_gen.results.fit import Fit

Build = Callable[..., Fit]

N = 40_000


def test_draws_have_the_moments_of_the_mixture(mixture: Fit) -> None:
    drawn, parameters = mixture.sample(N), mixture.parameters
    share, loc, cov = parameters["z"]["probs"], parameters["x"]["loc"], parameters["x"]["cov"]
    assert list(drawn) == ["z", "x"]
    assert drawn["z"].shape == (N,)
    assert drawn["z"].dtype == np.int64
    counts = np.bincount(drawn["z"], minlength=3)
    assert (np.abs(counts - N * share) < 4.5 * np.sqrt(N * share * (1 - share))).all()
    for k in range(3):
        own = drawn["x"][drawn["z"] == k]
        errors = np.sqrt(np.diag(cov[k]) / len(own))
        assert (np.abs(own.mean(0) - loc[k]) < 4.5 * errors).all()
        spread = np.sqrt(
            np.outer(np.diag(cov[k]), np.diag(cov[k])) + cov[k] ** 2
        )  # of a product, for normals
        assert (np.abs(np.cov(own.T) - cov[k]) < 4.5 * spread / np.sqrt(len(own))).all()


def test_draws_of_a_vae_have_latents_that_made_them(affine_vae: Fit) -> None:
    drawn = affine_vae.sample(N)
    weight, bias = affine_vae.parameters["x"]["loc"]["weight"], affine_vae.parameters["x"]["loc"]["bias"]
    residual = drawn["x"] - drawn["z"] @ weight.T - bias
    assert np.abs(np.cov(drawn["z"].T) - np.eye(2)).max() < 4.5 * np.sqrt(2 / N)
    assert np.abs(np.cov(residual.T) - 0.25 * np.eye(3)).max() < 4.5 * 0.25 * np.sqrt(2 / N)


def test_the_same_seed_draws_the_same_rows(mixture: Fit, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    first = mixture.sample(50, seed=3)
    again, other = mixture.sample(50, seed=3), mixture.sample(50, seed=4)
    np.testing.assert_array_equal(first["x"], again["x"])
    assert not np.array_equal(first["x"], other["x"])
    monkeypatch.setattr(rows, "CELLS", 100)
    assert mixture.sample(50)["x"].shape == (50, 2)


def test_categories_come_back_as_the_data_wrote_them(by_path: Build) -> None:
    items = np.array([["yes", "low"], ["no", "high"], ["no", "mid"], ["yes", "low"], ["no", "low"]])
    spec = Spec(
        model={
            "z": Categorical(2),
            "answer": Categorical(probs=By("z")),
            "level": Categorical(2, dim=2, probs=By("z")),
            "n": Poisson(rate=By("z")),
            "b": Bernoulli(probs=By("z")),
        }
    )
    data = {
        "answer": items[:, 0],
        "level": np.array([[0, 1], [1, 0], [1, 1], [0, 0], [1, 1]]),
        "n": [3, 1, 0, 2, 5],
        "b": [[0], [1], [1], [0], [1]],
    }
    drawn = by_path(spec, data, {}).sample(200)
    assert set(drawn["answer"]) == {"yes", "no"}
    assert drawn["answer"].shape == (200,)
    assert drawn["level"].shape == (200, 2)
    assert drawn["n"].shape == drawn["b"].shape == (200, 1)
    assert drawn["n"].dtype == drawn["b"].dtype == np.int64
    refitted = by_path(spec, {name: drawn[name] for name in data}, {})
    assert refitted.program.schema.levels["answer"] == (("no", "yes"),)


def test_a_conditional_model_is_drawn_given_its_inputs(by_path: Build) -> None:
    spec = Spec(
        model={
            "u": Input(1),
            "g": Input(k=2),
            "x": Normal(1, loc=Linear("u", by="g"), scale=0.1),
        }
    )
    data = {"u": [[0.0], [1.0], [2.0]], "g": ["a", "b", "b"], "x": [[0.0], [1.0], [3.0]]}
    state = {
        "generative.layers.x:loc.weight": [[[1.0]], [[-3.0]]],
        "generative.layers.x:loc.bias": [[5.0], [0.0]],
    }
    fit = by_path(spec, data, state)
    given = {"u": np.array([[2.0], [4.0]]), "g": np.array(["b", "a"])}
    drawn = fit.sample(2, given=given)
    assert list(drawn) == ["x"]
    np.testing.assert_allclose(drawn["x"], [[-6.0], [9.0]], atol=0.5)
    with pytest.raises(FitError, match=r"given=\{'u': \.\.\., 'g': \.\.\.\}"):
        fit.sample(2)
    with pytest.raises(FitError, match=r"2 rows of Inputs, and n is 3"):
        fit.sample(3, given=given)
    with pytest.raises(DataError, match="'g'"):
        fit.sample(2, given={"u": given["u"]})


def test_a_model_without_inputs_takes_none(mixture: Fit) -> None:
    with pytest.raises(FitError, match="no Input"):
        mixture.sample(2, given={"u": [1, 2]})
    with pytest.raises(FitError, match="n must be a whole number from 1"):
        mixture.sample(0)


def test_draws_of_latents_given_rows_follow_their_joint_posterior(by_hand: Build) -> None:
    spec = Spec(
        model={
            "a": Categorical(2),
            "b": Categorical(3, probs=By("a")),
            "x": Normal(loc=By(["a", "b"]), scale=1),
        }
    )
    p_a, p_b = np.array([0.4, 0.6]), np.array([[0.2, 0.3, 0.5], [0.6, 0.1, 0.3]])
    loc = np.array([[-1.0, 0.0, 1.0], [2.0, 0.5, -0.5]])
    x = np.array([-1.0, 0.2, 1.5])
    fit = by_hand(spec, {"x": x}, {"a": {"probs": p_a}, "b": {"probs": p_b}, "x": {"loc": loc[..., None]}})
    joint = p_a[:, None] * p_b * np.exp(-0.5 * (x[:, None, None] - loc) ** 2)
    joint /= joint.sum((1, 2), keepdims=True)
    latents, new = given_rows(fit.program, fit.data, draws=N, seed=0)
    assert new["x"].shape == (N, 3, 1)
    for d in range(3):
        counts = np.histogram2d(latents["a"][:, d], latents["b"][:, d], bins=[range(3), range(4)])[0]
        assert (np.abs(counts / N - joint[d]) < 4.5 * np.sqrt(joint[d] / N)).all()
        picked = loc[latents["a"][:, d], latents["b"][:, d]]
        assert abs((new["x"][:, d, 0] - picked).mean()) < 4.5 / np.sqrt(N)


def test_draws_below_a_continuous_latent_know_it(gm_vae: Fit) -> None:
    latents, new = given_rows(gm_vae.program, gm_vae.data, draws=20_000, seed=0)
    z, c, x = latents["z"][..., 0], latents["c"], gm_vae.data.arrays["x"]
    assert z.shape == c.shape == (20_000, len(x))
    mean = x @ [0.6, -0.3]  # the guide's, of scale 1
    assert (np.abs(z.mean(0) - mean) < 4.5 / np.sqrt(20_000)).all()
    log_odds = np.log(0.7 / 0.3) - 0.5 * (z - 1) ** 2 + 0.5 * ((z + 1.5) / 0.5) ** 2 + np.log(0.5)
    expected = 1 / (1 + np.exp(-log_odds))  # P(c = 1 | z): x says nothing more
    assert (np.abs(c.mean(0) - expected.mean(0)) < 4.5 * 0.5 / np.sqrt(20_000)).all()
    assert (np.abs((new["x"][..., 0] - z).mean(0)) < 4.5 * 0.7 / np.sqrt(20_000)).all()


def test_a_covariance_of_latents_reaches_their_draws(by_path: Build) -> None:
    spec = Spec(
        model={
            "z": MultivariateNormal(2, loc=0, cov=[[1.0, 0.8], [0.8, 2.0]]),
            "x": Normal(2, loc=Linear("z"), scale=1),
        }
    )
    drawn = by_path(spec, {"x": np.random.default_rng(0).normal(size=(9, 2))}, {}).sample(N)
    assert np.abs(np.cov(drawn["z"].T) - [[1.0, 0.8], [0.8, 2.0]]).max() < 4.5 * 2 * np.sqrt(2 / N)
