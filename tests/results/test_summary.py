"""The table of a fit's parameters: names a person knows, intervals inside the space, and what is said of each."""

from __future__ import annotations

import warnings

import numpy as np
import pandas as pd
import pytest
from scipy.special import expit, logit
from scipy.stats import norm

from ppl_gen import (
    EM,
    SVI,
    Bernoulli,
    Binomial,
    By,
    Categorical,
    Free,
    Input,
    Linear,
    MultivariateNormal,
    Normal,
    Poisson,
    Spec,
    StudentT,
    fit,
    load,
)
from ppl_gen.errors import FitError

Z = float(norm.ppf(0.975))


def test_parameters_are_called_by_column_class_and_level():
    rng = np.random.default_rng(0)
    z = rng.integers(0, 2, 200)
    frame = pd.DataFrame(
        {
            "height": rng.normal(170 + 20 * z, 3),
            "weight": rng.normal(60 + 30 * z, 4),
            "colour": np.where(rng.random(200) < 0.3 + 0.4 * z, "red", "blue"),
            "dose": rng.normal(size=200),
            "out": rng.normal(3.0 * z, 1),
        }
    )
    model = {
        "dose": Input(1),
        "z": Categorical(2),
        "body": MultivariateNormal(loc=By("z"), cov=Free()),
        "colour": Categorical(probs=By("z")),
        "out": Normal(1, loc=Linear("dose", by="z"), scale=Free()),
    }
    columns = {"body": ["height", "weight"], "colour": "colour", "dose": "dose", "out": "out"}
    table = fit(Spec(model=model, columns=columns), frame, EM(restarts=2)).summary()
    assert list(table.columns) == ["estimate", "standard error", "lower", "upper", "note"]
    assert {
        "z.probs[0]",
        "body.loc[z=1, weight]",
        "body.cov[weight, height]",
        "colour.probs[z=0, blue]",
        "out.loc.weight[z=1, dose]",
        "out.loc.bias[z=0]",
        "out.scale",
    } <= set(table.index)
    assert "body.cov[height, weight]" not in table.index  # the same number again
    assert table.index.is_unique
    assert (table["lower"] < table["estimate"]).all()
    assert (table["estimate"] < table["upper"]).all()


def test_intervals_are_made_where_the_parameter_is_not_bounded():
    rng = np.random.default_rng(1)
    b, k, x = rng.random((60, 1)) < 0.9, rng.poisson(0.3, (60, 1)), rng.normal(0, 2, (60, 1))
    table = fit(
        Spec(model={"b": Bernoulli(1), "k": Poisson(1), "x": Normal(1)}), {"b": b * 1.0, "k": k, "x": x}
    ).summary()
    p, rate, sd = b.mean(), k.mean(), x.std()
    reach = Z / np.sqrt(60 * p * (1 - p))
    found = table.loc["b.probs", ["lower", "upper"]].to_list()
    np.testing.assert_allclose(found, expit(logit(p) + reach * np.array([-1, 1])), rtol=1e-8)
    found = table.loc["k.rate", ["lower", "upper"]].to_list()
    np.testing.assert_allclose(found, rate * np.exp(Z / np.sqrt(60 * rate) * np.array([-1, 1])), rtol=1e-8)
    found = table.loc["x.scale", ["lower", "upper"]].to_list()
    np.testing.assert_allclose(found, sd * np.exp(Z / np.sqrt(120) * np.array([-1, 1])), rtol=1e-8)
    found = table.loc["x.loc", ["lower", "upper"]].to_list()
    np.testing.assert_allclose(found, x.mean() + Z * sd / np.sqrt(60) * np.array([-1, 1]), rtol=1e-8)


def test_a_wider_level_gives_a_wider_interval_and_nonsense_is_refused():
    one = fit(Spec(model={"x": Normal(1)}), {"x": np.random.default_rng(2).normal(size=(30, 1))})
    wide, narrow = one.summary(level=0.99), one.summary(level=0.5)
    assert (wide["lower"] < narrow["lower"]).all()
    for bad in (0, 1, 95, "0.95"):
        with pytest.raises(FitError, match="level must lie"):
            one.summary(level=bad)
    with pytest.raises(FitError, match="kind must be one of observed, sandwich"):
        one.summary(kind="robust")


def test_what_has_no_error_of_its_own_says_why():
    rng = np.random.default_rng(3)
    g = np.repeat([0, 1], 30)
    c = np.where(g == 1, 1, rng.integers(0, 2, 60))
    x = rng.normal(size=(60, 2))
    model = {
        "g": Categorical(2),
        "c": Categorical(2, probs=By("g")),
        "x": Normal(2, loc=[0, Free()], scale=1),
    }
    table = fit(Spec(model=model), {"g": g, "c": c, "x": x}).summary()
    note = table["note"]
    assert note["x.loc[0]"] == note["x.scale[1]"] == "fixed"
    assert table.loc["x.loc[0]", "standard error"] == 0
    assert note["c.probs[g=1, 0]"] == "boundary"
    assert note["c.probs[g=1, 1]"] == "boundary: c.probs[g=1, 0] at 0"
    assert table.loc["c.probs[g=1, 0]":"c.probs[g=1, 1]", "standard error"].isna().all()
    assert note["c.probs[g=0, 0]"] == note["x.loc[1]"] == ""


def test_a_parameter_at_its_bound_has_no_error_that_looks_like_certainty():
    """Normal rows under a Student-t, and as many successes as trials: df and probability have run to their ends."""
    rng = np.random.default_rng(0)
    x = norm.ppf((np.arange(200) + 0.5) / 200)[:, None]  # tails lighter than any Student-t's
    model = {"x": StudentT(1), "n": Binomial(2, total_count=5)}
    n = np.c_[np.full(200, 5), rng.binomial(5, 0.3, 200)]
    table = fit(Spec(model=model), {"x": x, "n": n}).summary()
    at_end = table.loc[["x.df", "n.probs[0]"]]
    assert (at_end["note"] == "boundary").all()
    assert at_end["standard error"].isna().all()
    others = table.loc[["x.loc", "x.scale", "n.probs[1]"]]
    p = n[:, 1].mean() / 5
    expected = [x.std() / np.sqrt(200), x.std() / np.sqrt(400), np.sqrt(p * (1 - p) / 1000)]
    np.testing.assert_allclose(others["standard error"], expected, rtol=1e-4)


def test_a_weight_that_quasi_separated_rows_send_to_infinity_is_named_and_has_no_error():
    """In one class u tells y apart but for rows at u = 0: there the intercept is the log-odds of 3 in 8."""
    rng = np.random.default_rng(1)
    u = np.r_[rng.normal(size=60), np.zeros(8), rng.normal(size=80)]
    x = np.r_[rng.normal(0, 1, 68), rng.normal(40, 1, 80)]  # far apart: the classes are as good as known
    y = np.r_[u[:60] > 0, np.arange(8) < 3, rng.random(80) < expit(u[68:])]
    model = {
        "u": Input(1),
        "z": Categorical(2),
        "x": Normal(1, loc=By("z"), scale=1),
        "y": Bernoulli(1, probs=Linear("u", by="z")),
    }
    data = {"u": u[:, None], "x": x[:, None], "y": y[:, None].astype(int)}
    found = fit(Spec(model=model), data)
    assert any("the data do not bound" in note and "of 4 parameters of y" in note for note in found.run.notes)
    table = found.summary()
    run_off = int(found.parameters["x"]["loc"][:, 0].argmin())
    weight, bias = f"y.probs.weight[z={run_off}, u]", f"y.probs.bias[z={run_off}]"
    assert table.loc[weight, "note"].startswith("not ")
    assert np.isnan(table.loc[weight, "standard error"])
    np.testing.assert_allclose(table.loc[bias, "estimate"], logit(3 / 8), atol=1e-4)
    np.testing.assert_allclose(table.loc[bias, "standard error"], 1 / np.sqrt(8 * 3 / 8 * 5 / 8), rtol=1e-4)
    others = table.loc[[f"y.probs.weight[z={1 - run_off}, u]", f"y.probs.bias[z={1 - run_off}]"]]
    assert (others["note"] == "").all()
    assert others["standard error"].between(0.1, 0.6).all()


def test_a_bias_far_from_its_column_s_values_keeps_its_large_error():
    """In years the intercept is that of the year 0: its error of hundreds is no sign of a weight run off."""
    rng = np.random.default_rng(2)
    year = rng.normal(2000, 3, (100, 1))
    y = (rng.random((100, 1)) < expit((year - 2000) / 2)).astype(int)
    found = fit(Spec(model={"t": Input(1), "y": Bernoulli(1, probs=Linear("t"))}), {"t": year, "y": y})
    table = found.summary()
    assert (table["note"] == "").all()
    assert table.loc["y.probs.bias", "standard error"] > 100
    assert not any("do not bound" in note for note in found.run.notes)


def test_shares_of_classes_behind_covariates_are_derived_with_their_error():
    """Without covariates' influence, a share and its error are those of the plain mixture's."""
    rng = np.random.default_rng(4)
    x = np.concatenate([rng.normal(0, 1, (90, 1)), rng.normal(20, 1, (60, 1))])
    u = np.zeros((150, 1))
    u[::2] = 1.0
    order = rng.permutation(150)
    x = x[order]
    plain = fit(Spec(model={"z": Categorical(2), "x": Normal(1, loc=By("z"), scale=1)}), {"x": x}).summary()
    gated = Spec(
        model={"u": Input(1), "z": Categorical(2, logits=Linear("u")), "x": Normal(1, loc=By("z"), scale=1)}
    )
    found = fit(gated, {"u": u, "x": x}).summary()
    shares = found.filter(like="share", axis=0).sort_values("estimate")
    assert (shares["note"] == "derived").all()
    expected = plain.filter(like="z.probs", axis=0).sort_values("estimate")
    np.testing.assert_allclose(shares["estimate"], expected["estimate"], rtol=1e-4)
    # the variance given u leaves out what u's two groups differ by: less than a part in a hundred here
    np.testing.assert_allclose(shares["standard error"], expected["standard error"], rtol=0.02)
    assert not plain.index.str.startswith("share").any()


def test_the_sandwich_is_wider_where_the_model_is_wrong():
    x = np.random.default_rng(5).standard_t(4, (500, 1))
    wrong = fit(Spec(model={"x": Normal(1)}), {"x": x})
    scale = wrong.summary().loc["x.scale", "standard error"]
    robust = wrong.summary(kind="sandwich").loc["x.scale", "standard error"]
    centred = x - x.mean()
    variance = x.var()
    expected = np.sqrt(((centred**4).mean() - variance**2) / 500) / (2 * np.sqrt(variance))
    np.testing.assert_allclose(robust, expected, rtol=1e-8)
    assert robust > scale


def test_errors_come_in_the_shape_of_the_parameters(mixture):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # written parameters are no maximum
        found = mixture.standard_errors()
    for node, own in mixture.parameters.items():
        for key, value in own.items():
            assert found[node][key].shape == value.shape


def test_where_it_is_no_maximum_errors_are_left_out_with_a_warning(mixture):
    with pytest.warns(UserWarning, match="not positive definite"):
        table = mixture.summary()
    assert table["standard error"].isna().all()
    assert table["estimate"].notna().all()


def test_a_continuous_latent_leaves_estimates_alone_and_says_so():
    x = np.random.default_rng(6).normal(size=(20, 3))
    factors = Spec(model={"z": Normal(1, loc=0, scale=1), "x": Normal(3, loc=Linear("z"), scale=Free())})
    sampled = fit(factors, {"x": x}, SVI(epochs=1))
    with pytest.warns(UserWarning, match="continuous latent"):
        table = sampled.summary()
    assert table["standard error"].isna().all()
    np.testing.assert_allclose(
        table.loc["x.scale[0]":"x.scale[2]", "estimate"], sampled.parameters["x"]["scale"], rtol=1e-6
    )
    with pytest.raises(FitError, match="continuous latent"):
        sampled.standard_errors()


def test_a_loaded_fit_asks_for_its_rows(tmp_path):
    x = np.random.default_rng(7).normal(size=(30, 1))
    own = fit(Spec(model={"x": Normal(1)}), {"x": x})
    own.save(tmp_path / "fit")
    loaded = load(tmp_path / "fit")
    with pytest.warns(UserWarning, match="data="):
        assert loaded.summary()["standard error"].isna().all()
    pd.testing.assert_frame_equal(loaded.summary({"x": x}), own.summary())
