"""Bootstrap draws against closed forms, refits one by one, and permuted classes."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from ppl_gen import EM, Bernoulli, By, Categorical, Free, Input, Linear, Normal, Poisson, Spec, bootstrap, fit
from ppl_gen.errors import FitError
from ppl_gen.infer.replicates import aligned, bayesian_weights, resampled_weights
from ppl_gen.results.fit import Fit

DRAWS = 400
# A standard deviation from S normal draws is off by a share of 1/√(2S); three and a half of those.
CLOSE = 3.5 / np.sqrt(2 * DRAWS)


@pytest.fixture(scope="module")
def apart() -> Fit:
    """Two classes of 400 and 200 rows, ten standard deviations apart."""
    rng = np.random.default_rng(0)
    x = np.concatenate([rng.normal(0, 1, (400, 1)), rng.normal(10, 1, (200, 1))])
    return fit(Spec(model={"z": Categorical(2), "x": Normal(1, loc=By("z"), scale=By("z"))}), {"x": x})


@pytest.mark.parametrize("kind", ["weighted", "resampled", "parametric"])
def test_bootstrap_errors_are_those_of_the_information_where_rows_are_many(apart, kind):
    found, expected = bootstrap(apart, DRAWS, kind=kind, seed=1).standard_errors, apart.standard_errors()
    # Parametric draws know the model only; the others also see the rows' own fourth moments.
    if kind != "parametric":
        expected = apart.standard_errors(kind="sandwich")
    for node, key in (("z", "probs"), ("x", "loc"), ("x", "scale")):
        np.testing.assert_allclose(found[node][key], expected[node][key], rtol=CLOSE)


def test_each_weighted_refit_is_the_fit_of_those_weights(apart):
    drawn = bootstrap(apart, 3, seed=5)
    for s, weights in enumerate(bayesian_weights(apart.data, 3, 5)):
        alone = fit(apart.spec, apart.data.arrays, EM(init=apart.parameters, tol=0.0), weights=weights)
        for key in ("loc", "scale"):
            np.testing.assert_allclose(drawn.draws["x"][key][s], alone.parameters["x"][key], rtol=1e-5)


def test_one_normal_s_refits_are_weighted_moments():
    x = np.random.default_rng(2).normal(1e6, 5, (50, 1))
    one = fit(Spec(model={"x": Normal(1)}), {"x": x})
    for kind, draw in (("weighted", bayesian_weights), ("resampled", resampled_weights)):
        found, w = bootstrap(one, 20, kind=kind, seed=3), draw(one.data, 20, 3)
        mean = w @ x[:, 0] / 50
        np.testing.assert_allclose(found.draws["x"]["loc"][:, 0], mean, rtol=1e-12)
        variance = (w * (x[:, 0] - mean[:, None]) ** 2).sum(1) / 50
        np.testing.assert_allclose(found.draws["x"]["scale"][:, 0], np.sqrt(variance), rtol=1e-8)


def test_a_row_of_weight_three_is_drawn_as_three_rows():
    x = np.array([[0.0], [1.0], [4.0]])
    one = fit(Spec(model={"x": Normal(1)}), {"x": x}, weights=[30, 20, 50])
    for kind in ("weighted", "resampled", "parametric"):
        found = bootstrap(one, DRAWS, kind=kind).standard_errors["x"]["loc"][0]
        np.testing.assert_allclose(found, one.parameters["x"]["scale"][0] / 10, rtol=CLOSE)


def test_classes_are_matched_whatever_order_the_refits_come_in(apart):
    state = dict(apart.program.state_dict())
    swapped = {path: v.flip(0) if path.endswith("table") else v for path, v in state.items()}
    assert not torch.equal(swapped["generative.layers.x:loc.table"], state["generative.layers.x:loc.table"])
    for own in aligned(apart.program, state, apart.data, [swapped, state, swapped]):
        assert all(torch.equal(own[path], state[path]) for path in state)


def test_two_latents_are_matched_each_on_its_own():
    rng = np.random.default_rng(4)
    a, b = rng.integers(0, 3, 300), rng.integers(0, 2, 300)
    x = np.stack([10.0 * a, 20.0 * b], 1) + rng.normal(size=(300, 2))
    model = {
        "a": Categorical(3),
        "b": Categorical(2),
        "x": Normal(1, loc=By("a"), scale=1),
        "y": Normal(1, loc=By("b"), scale=1),
    }
    both = fit(Spec(model=model), {"x": x[:, :1], "y": x[:, 1:]})
    state = dict(both.program.state_dict())
    order = {"a": [2, 0, 1], "b": [1, 0]}
    path = "generative.layers.{}.table".format
    mixed = dict(state)
    for key, latent in (("a:probs", "a"), ("x:loc", "a"), ("b:probs", "b"), ("y:loc", "b")):
        mixed[path(key)] = state[path(key)][order[latent]]
    (found,) = aligned(both.program, state, both.data, [mixed])
    assert all(torch.equal(found[p], state[p]) for p in state)


def test_gating_without_a_closed_form_is_refitted_too():
    rng = np.random.default_rng(5)
    u = rng.normal(size=(400, 1))
    y = (rng.random((400, 1)) < 1 / (1 + np.exp(-u))).astype(float)
    logistic = fit(Spec(model={"u": Input(1), "y": Bernoulli(1, logits=Linear("u"))}), {"u": u, "y": y})
    expected = logistic.standard_errors()["y"]["logits"]
    for kind in ("weighted", "parametric"):
        found = bootstrap(logistic, DRAWS, kind=kind).standard_errors["y"]["logits"]
        # asymptotic errors on 400 rows: a tenth may be the sample's own
        np.testing.assert_allclose(found["weight"], expected["weight"], rtol=CLOSE + 0.1)


def test_missing_cells_stay_missing_in_the_model_s_own_rows():
    x = np.random.default_rng(6).normal(size=(200, 2))
    x[:150, 1] = np.nan
    part = fit(Spec(model={"x": Normal(2, scale=1)}), {"x": x})
    found = bootstrap(part, DRAWS, kind="parametric").standard_errors["x"]["loc"]
    np.testing.assert_allclose(found, [200**-0.5, 50**-0.5], rtol=CLOSE)


def test_intervals_and_summary_are_percentiles_and_arviz_is_told_what_they_are(apart):
    drawn = bootstrap(apart, 50, seed=7)
    low, high = drawn.intervals(0.8)
    expected = np.quantile(drawn.draws["x"]["loc"], 0.1, axis=0)
    np.testing.assert_allclose(low["x"]["loc"], expected, rtol=1e-14)
    table = drawn.summary(level=0.8)
    assert list(table.index) == list(apart.summary().index)
    assert table.loc["x.loc[z=1]", "upper"] == high["x"]["loc"][1, 0]
    posterior = drawn.to_arviz().posterior
    assert posterior["x.loc"].dims[:2] == ("chain", "draw")
    assert posterior["x.loc"].shape == (1, 50, 2, 1)
    assert "bootstrap" in posterior.attrs["note"]


def test_the_same_seed_is_the_same_draws(apart):
    for kind in ("weighted", "parametric"):
        first, again, other = (bootstrap(apart, 5, kind=kind, seed=s).flat for s in (1, 1, 2))
        np.testing.assert_array_equal(first, again)
        assert not np.array_equal(first, other)


def test_what_cannot_be_refitted_says_why(apart, tmp_path):
    x = np.random.default_rng(8).normal(size=(20, 3))
    factors = Spec(model={"z": Normal(1, loc=0, scale=1), "x": Normal(3, loc=Linear("z"), scale=Free())})
    from ppl_gen import SVI, load

    with pytest.raises(FitError, match="continuous latent"):
        bootstrap(fit(factors, {"x": x}, SVI(epochs=1)), 5)
    with pytest.raises(FitError, match="kind must be one of"):
        bootstrap(apart, 5, kind="jackknife")
    with pytest.raises(FitError, match="draws must be"):
        bootstrap(apart, 0)
    apart.save(tmp_path / "fit")
    with pytest.raises(FitError, match="data="):
        bootstrap(load(tmp_path / "fit"), 5)
    assert len(bootstrap(load(tmp_path / "fit"), 5, data=apart.data.arrays).flat) == 5


def test_a_class_of_one_value_collapses_and_is_counted():
    x = np.array([0.0, 0.1, 0.2, 0.05, 0.15, 9.0, 9.1])[:, None]
    small = fit(Spec(model={"z": Categorical(2), "x": Normal(1, loc=By("z"), scale=By("z"))}), {"x": x})
    with pytest.warns(UserWarning, match="became singular and are left out"):
        found = bootstrap(small, 60, kind="resampled")
    assert found.collapsed + len(found.flat) == 60
    assert found.collapsed > 0
    assert np.isfinite(found.flat).all()


def test_counts_are_drawn_as_counts():
    k = np.random.default_rng(9).poisson(4, (300, 1))
    counts = fit(Spec(model={"k": Poisson(1)}), {"k": k})
    found = bootstrap(counts, DRAWS, kind="parametric").standard_errors["k"]["rate"]
    np.testing.assert_allclose(found, np.sqrt(k.mean(0) / 300), rtol=CLOSE)
