"""What a Fit says of rows, against scikit-learn, SciPy and enumeration by hand."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pandas as pd
import pyro
import pytest
import torch
from scipy.special import expit, logsumexp, softmax
from scipy.stats import bernoulli, multivariate_normal, norm
from sklearn.mixture import GaussianMixture

from ppl_gen.certify.certificate import Certificate, Line
from ppl_gen.data.sources import Rows
from ppl_gen.declare.nodes import Bernoulli, Categorical, Input, Normal
from ppl_gen.declare.spec import Spec
from ppl_gen.declare.terms import By, Linear
from ppl_gen.errors import DataError, FitError
from ppl_gen.fitting import fit
from ppl_gen.infer.algorithms import EM
from ppl_gen.results import rows
from ppl_gen.results.fit import Fit

Build = Callable[..., Fit]

WEIGHT = np.array([[1.0, 0.5], [-0.4, 1.2], [0.3, 0.8]])
BIAS = np.array([0.5, -1.0, 2.0])
ROWS = {"x": np.random.default_rng(9).normal(1, 2, (25, 2))}


def sklearn_like(fit: Fit) -> GaussianMixture:
    parameters = fit.parameters
    peer = GaussianMixture(3)
    peer.weights_, peer.means_ = parameters["z"]["probs"], parameters["x"]["loc"]
    peer.covariances_ = parameters["x"]["cov"]
    peer.precisions_cholesky_ = np.linalg.cholesky(np.linalg.inv(peer.covariances_))
    return peer


def test_a_mixture_scores_and_classifies_as_scikit_learn_does(mixture: Fit) -> None:
    peer = sklearn_like(mixture)
    np.testing.assert_allclose(mixture.score_samples(ROWS), peer.score_samples(ROWS["x"]), rtol=1e-12)
    np.testing.assert_allclose(mixture.predict_proba(ROWS), peer.predict_proba(ROWS["x"]), atol=1e-13)
    np.testing.assert_array_equal(mixture.predict(ROWS), peer.predict(ROWS["x"]))
    assert mixture.score(ROWS) == pytest.approx(peer.score(ROWS["x"]), rel=1e-12)


def test_an_exact_score_has_no_error_and_takes_no_draws(mixture: Fit) -> None:
    values, errors = mixture.score_samples(ROWS, draws=1, seed=5, return_std_error=True)
    np.testing.assert_array_equal(values, mixture.score_samples(ROWS))
    assert not errors.any()


def test_many_rows_give_what_few_rows_at_a_time_give(
    mixture: Fit, gm_vae: Fit, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = mixture.predict_proba(ROWS), mixture.score_samples(ROWS)
    monkeypatch.setattr(rows, "CELLS", 100)
    assert rows.block_size(mixture.program) < 8
    np.testing.assert_allclose(mixture.predict_proba(ROWS), whole[0], rtol=1e-12)
    np.testing.assert_allclose(mixture.score_samples(ROWS), whole[1], rtol=1e-12)
    assert gm_vae.predict_proba(gm_vae.data.arrays).shape == (8, 2)


def test_several_discrete_latents_come_by_name_and_agree_with_enumeration(by_hand: Build) -> None:
    spec = Spec(
        model={
            "a": Categorical(2),
            "b": Categorical(3, probs=By("a")),
            "x": Normal(loc=By(["a", "b"]), scale=1),
        }
    )
    p_a, p_b = np.array([0.4, 0.6]), np.array([[0.2, 0.3, 0.5], [0.6, 0.1, 0.3]])
    loc = np.array([[-2.0, 0.0, 2.0], [4.0, 1.0, -1.0]])
    x = np.linspace(-3, 5, 20)
    parameters = {"a": {"probs": p_a}, "b": {"probs": p_b}, "x": {"loc": loc[..., None]}}
    fit = by_hand(spec, {"x": x}, parameters)
    joint = np.log(p_a)[:, None] + np.log(p_b) + norm.logpdf(x[:, None, None], loc)  # (N, 2, 3)
    posterior = np.exp(joint - logsumexp(joint, axis=(1, 2), keepdims=True))
    found = fit.predict_proba({"x": x})
    np.testing.assert_allclose(found["a"], posterior.sum(2), atol=1e-13)
    np.testing.assert_allclose(found["b"], posterior.sum(1), atol=1e-13)
    np.testing.assert_array_equal(fit.predict({"x": x})["b"], posterior.sum(1).argmax(1))
    np.testing.assert_allclose(fit.score_samples({"x": x}), logsumexp(joint, axis=(1, 2)), rtol=1e-12)


def test_a_vector_of_latents_has_a_column_for_each_of_its_values(by_hand: Build) -> None:
    spec = Spec(model={"s": Bernoulli(2), "x": Normal(loc=By("s"), scale=1)})
    p, loc = np.array([0.3, 0.8]), np.array([[0.0, 1.0], [3.0, -2.0]])
    x = np.array([-1.9, 0.1, 1.2, 2.9])
    fit = by_hand(spec, {"x": x}, {"s": {"probs": p}, "x": {"loc": loc[..., None]}})
    values = np.array([[0, 0], [0, 1], [1, 0], [1, 1]])
    log_prior = bernoulli.logpmf(values, p).sum(1)
    expected = softmax(log_prior + norm.logpdf(x[:, None], loc.reshape(-1)), axis=1)
    np.testing.assert_allclose(fit.predict_proba({"x": x}), expected, atol=1e-7)  # 0.3 is stored as a logit
    np.testing.assert_array_equal(fit.predict({"x": x}), values[expected.argmax(1)])


def test_a_guide_that_names_the_only_latent_does_not_make_its_answers_inexact(by_path: Build) -> None:
    model = {"z": Categorical(2), "x": Normal(1, loc=By("z"), scale=1)}
    spec = Spec(model=model, guide={"z": Categorical(2, logits=Linear("x"))})
    x, probs, loc = np.linspace(-2, 4, 9)[:, None], np.array([0.25, 0.75]), np.array([-1.0, 2.0])
    state = {
        "generative.layers.z:probs.table": np.log(probs),
        "generative.layers.x:loc.table": loc[:, None],
        "recognition.layers.z:logits.weight": [[-5.0]],
    }
    fit = by_path(spec, {"x": x}, state, dtype=torch.float64)
    joint = np.log(probs) + norm.logpdf(x, loc)
    np.testing.assert_allclose(fit.predict_proba({"x": x}), softmax(joint, axis=1), atol=1e-13)
    np.testing.assert_allclose(fit.score_samples({"x": x}), logsumexp(joint, axis=1), rtol=1e-12)


def test_the_importance_weighted_score_is_the_exact_one_within_its_standard_error(affine_vae: Fit) -> None:
    x = affine_vae.data.arrays["x"]
    exact = multivariate_normal(BIAS, WEIGHT @ WEIGHT.T + 0.25 * np.eye(3)).logpdf(x)  # E1
    values, errors = affine_vae.score_samples({"x": x}, draws=4000, seed=1, return_std_error=True)
    assert (errors > 0).all()
    assert errors.max() < 0.05
    apart = (values - exact) / errors
    assert np.abs(apart).max() < 4.5  # 30 standard normals exceed it once in 5000 runs
    assert 0.6 < apart.std() < 1.5  # neither far too large nor far too small an error is reported
    np.testing.assert_array_equal(values, affine_vae.score_samples({"x": x}, draws=4000, seed=1))


def test_with_the_exact_posterior_as_guide_every_draw_gives_the_exact_score(by_path: Build) -> None:
    w, b = np.array([[1.0], [-0.5], [2.0]]), np.array([0.1, 0.2, 0.3])
    x = np.random.default_rng(0).normal(0, 2, (12, 3))
    precision = 1 + (w**2).sum() / 0.25
    gain = w.T / 0.25 / precision
    state = {
        "generative.layers.x:loc.weight": w,
        "generative.layers.x:loc.bias": b,
        "recognition.layers.z:loc.weight": gain,
        "recognition.layers.z:loc.bias": -gain @ b,
        "recognition.layers.z:scale.weight": np.zeros((1, 3)),
        "recognition.layers.z:scale.bias": [-0.5 * math.log(precision)],
    }
    spec = Spec(model={"z": Normal(1, loc=0, scale=1), "x": Normal(3, loc=Linear("z"), scale=0.5)})
    fit = by_path(spec, {"x": x}, state, dtype=torch.float64)
    values, errors = fit.score_samples({"x": x}, draws=7, return_std_error=True)
    exact = multivariate_normal(b, w @ w.T + 0.25 * np.eye(3)).logpdf(x)
    np.testing.assert_allclose(values, exact, rtol=1e-10)
    assert errors.max() < 1e-10
    np.testing.assert_allclose(fit.transform({"x": x}), (x - b) @ gain.T, rtol=1e-10)


def gm_posterior(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """log p(x, c) of the classes above a continuous latent, which is integrated out by hand: (N, 2)."""
    probs, loc, scale, load = [0.3, 0.7], [-1.5, 1.0], [0.5, 1.0], np.array([1.0, -0.5])
    joint = np.stack(
        [
            math.log(p)
            + multivariate_normal(load * m, s**2 * np.outer(load, load) + 0.49 * np.eye(2)).logpdf(x)
            for p, m, s in zip(probs, loc, scale, strict=True)
        ],
        axis=1,
    )
    return logsumexp(joint, axis=1), softmax(joint, axis=1)


def test_classes_above_a_continuous_latent_are_weighted_over_draws(gm_vae: Fit) -> None:
    data = {"x": gm_vae.data.arrays["x"]}
    log_p, exact = gm_posterior(data["x"])
    found = gm_vae.predict_proba(data, draws=20_000)
    np.testing.assert_allclose(found.sum(1), 1, atol=1e-12)
    np.testing.assert_allclose(found, exact, atol=0.02)  # 1/√S of a ratio of weights whose spread is about 1
    np.testing.assert_array_equal(gm_vae.predict(data, draws=20_000), exact.argmax(1))
    values, errors = gm_vae.score_samples(data, draws=20_000, return_std_error=True)
    assert (np.abs(values - log_p) < 4.5 * errors).all()
    assert not np.array_equal(found, gm_vae.predict_proba(data, draws=20_000, seed=1))


def test_classes_that_the_guide_names_come_from_the_guide(gm_vae_named: Fit) -> None:
    data = {"x": gm_vae_named.data.arrays["x"]}
    second = expit(data["x"] @ [0.8, 0.1] + 0.4)  # the first category is the reference
    np.testing.assert_allclose(gm_vae_named.predict_proba(data), np.stack([1 - second, second], 1), rtol=1e-9)
    values, errors = gm_vae_named.score_samples(data, draws=4000, return_std_error=True)
    assert (np.abs(values - gm_posterior(data["x"])[0]) < 4.5 * errors).all()
    by_class = np.stack([data["x"] @ [0.5, -0.2] - 0.2, data["x"] @ [0.7, -0.3] + 0.1], 1)
    mean = (1 - second) * by_class[:, 0] + second * by_class[:, 1]
    np.testing.assert_allclose(gm_vae_named.transform(data)[:, 0], mean, rtol=1e-9)


def test_a_latent_sampled_given_another_has_its_mean_over_draws(by_path: Build) -> None:
    model = {
        "a": Normal(1, loc=0, scale=1),
        "b": Normal(1, loc=Linear("a"), scale=1),
        "x": Normal(1, loc=Linear("b"), scale=1),
    }
    guide = {"b": Normal(1, loc=Linear("x"), scale=1), "a": Normal(1, loc=Linear("b"), scale=1)}
    state = {
        "recognition.layers.b:loc.weight": [[0.5]],
        "recognition.layers.b:loc.bias": [1.0],
        "recognition.layers.a:loc.weight": [[2.0]],
        "recognition.layers.a:loc.bias": [-1.0],
    }
    x = np.array([[-1.0], [0.0], [3.0]])
    fit = by_path(Spec(model=model, guide=guide), {"x": x}, state, dtype=torch.float64)
    found = fit.transform({"x": x}, draws=10_000)
    assert found.shape == (3, 2)
    np.testing.assert_allclose(found[:, 1], 0.5 * x[:, 0] + 1, rtol=1e-12)  # in model order: a, then b
    np.testing.assert_allclose(found[:, 0], 2 * (0.5 * x[:, 0] + 1) - 1, atol=4.5 * 2 / 100)


def test_a_query_that_has_no_answer_points_to_the_one_that_has(
    mixture: Fit, affine_vae: Fit, by_em: Build
) -> None:
    x = {"x": affine_vae.data.arrays["x"]}
    for query in (affine_vae.predict, affine_vae.predict_proba):
        with pytest.raises(FitError, match=r"no discrete latent.*transform"):
            query(x)
    with pytest.raises(FitError, match=r"no continuous latent.*predict_proba"):
        mixture.transform(ROWS)
    bare = by_em(Spec(model={"x": Normal()}), ROWS)
    with pytest.raises(FitError, match="no latent"):
        bare.predict(ROWS)
    with pytest.raises(FitError, match="no latent"):
        bare.transform(ROWS)
    np.testing.assert_allclose(
        bare.score_samples(ROWS),
        norm.logpdf(ROWS["x"], ROWS["x"].mean(0), ROWS["x"].std(0)).sum(1),
        rtol=1e-9,
    )


@pytest.mark.parametrize("draws", [0, -3, 2.5, True, "many"])
def test_a_number_of_draws_that_is_none_is_refused(affine_vae: Fit, draws: object) -> None:
    data = {"x": affine_vae.data.arrays["x"]}
    for query in (affine_vae.score_samples, affine_vae.transform):
        with pytest.raises(FitError, match="draws must be a whole number from 1"):
            query(data, draws=draws)


def test_rows_that_do_not_fit_the_training_data_are_refused(mixture: Fit) -> None:
    with pytest.raises(DataError, match="fitted on 2 columns"):
        mixture.predict({"x": np.zeros((3, 5))})
    with pytest.raises(DataError, match="infinite value"):
        mixture.score_samples({"x": [[0.0, math.inf]]})
    with pytest.warns(UserWarning, match="'z' is not read"):
        mixture.predict({"x": ROWS["x"], "z": np.zeros(25)})


def test_a_guide_does_not_take_missing_cells_for_zeros(affine_vae: Fit) -> None:
    assert affine_vae.data is not None
    rows = affine_vae.data.arrays["x"].copy()
    rows[1, 0] = np.nan
    for ask in (affine_vae.transform, affine_vae.score_samples):
        with pytest.raises(DataError, match="'x' has missing values, and the guide reads it"):
            ask({"x": rows})


def test_inputs_are_needed_to_predict(by_path: Build) -> None:
    spec = Spec(
        model={"u": Input(1), "z": Categorical(2, logits=Linear("u")), "x": Normal(1, loc=By("z"), scale=1)}
    )
    u, x = np.linspace(-1, 1, 7)[:, None], np.linspace(-2, 2, 7)[:, None]
    state = {
        "generative.layers.z:logits.weight": [[1.5]],
        "generative.layers.z:logits.bias": [0.5],
        "generative.layers.x:loc.table": [[-1.0], [1.0]],
    }
    fit = by_path(spec, {"u": u, "x": x}, state)
    second = expit(1.5 * u + 0.5 + norm.logpdf(x, 1) - norm.logpdf(x, -1))
    np.testing.assert_allclose(fit.predict_proba({"u": u, "x": x})[:, 1:], second, rtol=1e-12)
    with pytest.raises(DataError, match="'u'"):
        fit.predict({"x": x})


def test_queries_leave_pyro_and_the_random_state_as_they_were(affine_vae: Fit, gm_vae: Fit) -> None:
    pyro.clear_param_store()
    pyro.param("mine", torch.tensor(1.0))
    torch.manual_seed(4)
    expected = torch.rand(3)
    torch.manual_seed(4)
    data = {"x": affine_vae.data.arrays["x"]}
    affine_vae.score_samples(data, draws=5)
    affine_vae.transform(data)
    affine_vae.sample(4)
    gm_vae.predict({"x": gm_vae.data.arrays["x"]}, draws=5)
    assert torch.equal(torch.rand(3), expected)
    assert list(pyro.get_param_store().keys()) == ["mine"]
    pyro.clear_param_store()


def test_a_single_precision_fit_answers_in_single_precision(mixture: Fit, by_path: Build) -> None:
    state = mixture.program.state_dict()
    narrow = by_path(mixture.spec, {"x": mixture.data.arrays["x"]}, state, dtype=torch.float32)
    assert narrow.score_samples(ROWS).dtype == np.float32
    np.testing.assert_allclose(narrow.predict_proba(ROWS), mixture.predict_proba(ROWS), atol=1e-5)


def test_information_criteria_count_identified_numbers_and_rows(mixture: Fit) -> None:
    fit = replace(mixture, log_likelihood=-100.0)
    assert fit.n_parameters == 2 + 3 * (2 + 3)
    assert fit.aic == 200 + 2 * 17
    assert fit.bic == pytest.approx(200 + 17 * math.log(40))


def test_a_fit_prints_in_a_line_what_it_is_and_how_it_ended(mixture: Fit) -> None:
    shown = "x: MultivariateNormal(loc=By(z), cov=By(z))"
    assert repr(mixture) == f"Fit(z: Categorical(3); {shown}; n=40, log-likelihood=-40.25, epochs done)"
    failed = replace(mixture, certificate=Certificate((Line("gap", False, -1.0, 0.0, "below zero"),)))
    assert "certificate FAILED" in repr(failed)
    assert not mixture.converged


def test_files_that_are_streamed_are_imputed_as_in_memory(tmp_path, monkeypatch) -> None:
    random = np.random.default_rng(0)
    z = random.integers(0, 2, 90)
    frame = pd.DataFrame(random.normal(9.0 * z[:, None], 1, (90, 2)), columns=["a", "b"])
    frame["c"] = np.where(z == 1, "far", "near")
    frame.loc[::7, "b"], frame.loc[3::11, "c"] = np.nan, None
    spec = Spec(
        model={"z": Categorical(2), "x": Normal(loc=By("z"), scale=By("z")), "c": Categorical(probs=By("z"))},
        columns={"x": ("a", "b"), "c": ("c",)},
    )
    found = fit(spec, frame, EM(restarts=2))
    frame.to_csv(tmp_path / "rows.csv", index=False)
    whole = found.impute(frame)
    by_parts = found.impute(Rows(tmp_path / "rows.csv", chunk_rows=20))
    np.testing.assert_allclose(by_parts["x"], whole["x"], rtol=1e-12)
    assert by_parts["c"].tolist() == whole["c"].tolist()
    drawn = found.impute(Rows(tmp_path / "rows.csv", chunk_rows=20), draws=3)["x"]
    assert drawn.shape == (3, 90, 2)
    np.testing.assert_array_equal(drawn[:, 1], np.broadcast_to(frame[["a", "b"]].to_numpy()[1], (3, 2)))


def test_classes_that_no_label_names_are_told_apart() -> None:
    random = np.random.default_rng(0)
    x = random.normal(np.repeat([0.0, 10.0, 20.0, 30.0], 30))[:, None]
    labels = np.full(120, None, dtype=object)
    labels[:3], labels[30:33] = "a", "b"
    spec = Spec(model={"z": Categorical(4), "x": Normal(1, loc=By("z"))})
    said = fit(spec, {"x": x, "z": labels}, EM(restarts=5)).predict({"x": x})
    assert [len({*said[i : i + 30]}) for i in range(0, 120, 30)] == [1, 1, 1, 1]
    assert {*said} == {"a", "b", 2, 3}
