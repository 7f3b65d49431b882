"""A fit in ArviZ: groups, names and numbers, and ArviZ's own functions on them."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
import pandas as pd
import pytest
import xarray as xr

with warnings.catch_warnings():
    warnings.simplefilter("ignore", FutureWarning)  # announced once a day on import
    import arviz as az

from ppl_gen.declare.nodes import Bernoulli, Categorical, Input, Normal, Poisson
from ppl_gen.declare.spec import Spec
from ppl_gen.declare.terms import By, Linear
from ppl_gen.errors import FitError
from ppl_gen.results.arviz_bridge import as_container, groups_of
from ppl_gen.results.fit import Fit
from ppl_gen.results.storage import load

# ArviZ 0.23 calls a matplotlib function in a way that matplotlib 3.11 deprecates; nothing of ours does.
pytestmark = pytest.mark.filterwarnings("ignore:Passing a dict or None as alias_mapping")

Build = Callable[..., Fit]

GROUPS = {"posterior", "posterior_predictive", "log_likelihood", "sample_stats", "observed_data"}


@pytest.fixture
def em_fit(by_em: Build) -> Fit:
    """Two named columns, two classes far enough apart to be found and near enough to overlap."""
    random = np.random.default_rng(0)
    frame = pd.DataFrame(
        {"eruptions": random.normal(np.repeat([2.0, 4.3], 30), 0.6), "waiting": random.normal(70, 9, 60)}
    )
    return by_em(Spec(model={"z": Categorical(2), "x": Normal(loc=By("z"), scale=By("z"))}), frame)


@pytest.fixture
def axes() -> Iterator[None]:
    """Figures that nobody has to look at, closed at the end."""
    with mpl.rc_context():
        mpl.use("Agg")
        yield
        mpl.pyplot.close("all")


def groups(data: Any) -> set[str]:
    return set(data.groups())


def test_an_em_fit_has_the_groups_arviz_knows_with_columns_by_name(em_fit: Fit) -> None:
    data = em_fit.to_arviz(draws=20)
    assert groups(data) == GROUPS
    assert data.posterior["z"].dims == ("chain", "draw", "unit", "z_class")
    assert data.posterior.sizes == {"chain": 1, "draw": 20, "unit": 60, "z_class": 2}
    assert data.posterior_predictive["x"].dims == ("chain", "draw", "unit", "x_column")
    assert data.posterior_predictive.sizes["draw"] == 20
    assert data.observed_data["x_column"].values.tolist() == ["eruptions", "waiting"]
    np.testing.assert_array_equal(data.observed_data["x"], em_fit.data.arrays["x"])
    np.testing.assert_array_equal(data.log_likelihood["x"][0, 0], em_fit.score_samples(em_fit.data.arrays))
    assert data.log_likelihood["x"].dims == ("chain", "draw", "unit")
    np.testing.assert_array_equal(data.sample_stats["objective"][0], em_fit.history)


def test_the_posterior_is_that_of_latents_and_says_so(em_fit: Fit, affine_vae: Fit) -> None:
    for fit in (em_fit, affine_vae):
        posterior = fit.to_arviz(draws=3).posterior
        assert set(posterior.data_vars) == {"z"}
        assert "parameters are a point estimate and are not here" in posterior.attrs["note"]
    assert "guide" in posterior.attrs["drawn_from"]


def test_class_indicators_average_to_the_class_probabilities(em_fit: Fit) -> None:
    draws = 4000
    z = em_fit.to_arviz(draws=draws).posterior["z"]
    expected = em_fit.predict_proba(em_fit.data.arrays)
    errors = np.sqrt(expected * (1 - expected) / draws)
    assert (np.abs(z.mean(["chain", "draw"]).values - expected) < 4.5 * errors + 1 / draws).all()
    assert (z.sum("z_class") == 1).all()


def test_predicted_columns_spread_as_the_observed_ones(em_fit: Fit) -> None:
    data = em_fit.to_arviz(draws=500)
    new, old = data.posterior_predictive["x"], data.observed_data["x"]
    # EM's moments are those of the data; 30 000 draws of a mean over 60 rows
    apart = new.mean(["chain", "draw", "unit"]) - old.mean("unit")
    assert (np.abs(apart) < 4.5 * old.std("unit") / np.sqrt(500 * 60)).all()


def test_arviz_summarises_and_checks_an_em_fit(em_fit: Fit, axes: None) -> None:
    data = em_fit.to_arviz(draws=30)
    summary = az.summary(data, kind="stats")
    assert len(summary) == 60 * 2
    assert summary.loc["z[0, 0]", "mean"] + summary.loc["z[0, 1]", "mean"] == pytest.approx(1, abs=0.002)
    az.plot_ppc(data)
    az.plot_bpv(data)
    az.plot_bpv(data, kind="p_value")


def test_arviz_summarises_and_checks_an_svi_fit(affine_vae: Fit, axes: None) -> None:
    data = affine_vae.to_arviz(draws=30)
    assert groups(data) == GROUPS
    assert data.posterior["z"].dims == ("chain", "draw", "unit", "z_dim")
    assert len(az.summary(data, kind="stats")) == 30 * 2
    az.plot_ppc(data)
    az.plot_bpv(data)
    az.plot_bpv(data, kind="p_value")
    values = affine_vae.score_samples(affine_vae.data.arrays, draws=30)
    np.testing.assert_array_equal(data.log_likelihood["x"][0, 0], values)
    assert "30 draws" in data.log_likelihood.attrs["estimate"]


@pytest.mark.parametrize("name", ["em_fit", "affine_vae"])
def test_netcdf_brings_back_what_was_written(
    name: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    data = request.getfixturevalue(name).to_arviz(draws=5)
    data.to_netcdf(str(tmp_path / "fit.nc"))
    again = az.from_netcdf(str(tmp_path / "fit.nc"))
    for group in GROUPS:
        xr.testing.assert_identical(again[group].load(), data[group])


def test_mixed_rows_with_inputs_keep_levels_and_columns(by_path: Build, tmp_path: Path, axes: None) -> None:
    spec = Spec(
        model={
            "u": Input(1),
            "g": Input(k=2),
            "z": Categorical(2, logits=Linear("u")),
            "s": Bernoulli(2),
            "answer": Categorical(probs=By("z")),
            "items": Categorical(2, dim=2, probs=By("z")),
            "n": Poisson(rate=By(["z", "g", "s"])),
        }
    )
    data = {
        "u": [0.0, 1.0, 2.0, 3.0],
        "g": ["a", "b", "a", "b"],
        "answer": ["no", "yes", "no", "yes"],
        "items": [["l", "x"], ["h", "y"], ["l", "y"], ["h", "x"]],
        "n": [1, 4, 2, 0],
    }
    found = by_path(spec, data, {}).to_arviz(draws=6)
    assert groups(found) == GROUPS | {"constant_data"}
    assert found.constant_data["u"].dims == ("unit", "u_column")
    np.testing.assert_array_equal(found.constant_data["g"], [0, 1, 0, 1])
    assert json.loads(found.constant_data["g"].attrs["levels"]) == [["a", "b"]]
    assert json.loads(found.observed_data["items"].attrs["levels"]) == [["h", "l"], ["x", "y"]]
    assert found.posterior_predictive["items"].dims == ("chain", "draw", "unit", "items_column")
    assert found.posterior_predictive["answer"].dims == ("chain", "draw", "unit")
    assert found.posterior["s"].dims == ("chain", "draw", "unit", "s_dim")
    assert set(found.log_likelihood.data_vars) == {"row"}
    az.plot_ppc(found, var_names=["n"])
    found.to_netcdf(str(tmp_path / "fit.nc"))
    xr.testing.assert_identical(
        az.from_netcdf(str(tmp_path / "fit.nc"))["constant_data"].load(), found["constant_data"]
    )


def test_a_loaded_fit_asks_for_its_rows(em_fit: Fit, tmp_path: Path) -> None:
    em_fit.save(tmp_path / "fit")
    again = load(tmp_path / "fit")
    with pytest.raises(FitError, match=r"to_arviz\(data=\.\.\.\)"):
        again.to_arviz()
    given = again.to_arviz(em_fit.data.arrays, draws=4)
    xr.testing.assert_identical(given.posterior_predictive, em_fit.to_arviz(draws=4).posterior_predictive)
    few = again.to_arviz({"x": em_fit.data.arrays["x"][:7]}, draws=4)
    assert few.observed_data.sizes["unit"] == 7


def test_a_model_without_latents_has_no_posterior(by_em: Build) -> None:
    found = by_em(Spec(model={"x": Normal()}), {"x": [[0.0], [1.0], [3.0]]}).to_arviz(draws=4)
    assert groups(found) == GROUPS - {"posterior"}


def test_the_first_arviz_with_trees_gets_a_tree_of_the_same_groups(em_fit: Fit) -> None:
    parts = groups_of(em_fit, em_fit.data, 5, 0)
    tree = as_container(None, parts, 1)
    assert isinstance(tree, xr.DataTree)
    assert set(tree.children) == GROUPS
    for name, part in parts.items():
        xr.testing.assert_identical(tree[name].to_dataset(), part)
    assert groups(as_container(az, parts, 0)) == GROUPS


def test_a_partly_labelled_latent_is_among_the_latents_and_keeps_its_labels(by_em: Build) -> None:
    x = np.array([[0.0], [0.4], [1.5], [2.6], [3.0], [np.nan]])
    data = {"x": x, "z": ["lo", None, None, None, "hi", None]}
    fit = by_em(Spec(model={"z": Categorical(2), "x": Normal(loc=By("z"), scale=1.0)}), data)
    found = fit.to_arviz(draws=400)
    share = found.posterior["z"].mean(("chain", "draw")).to_numpy()  # (unit, class)
    np.testing.assert_allclose(share, fit.predict_proba(data), atol=4 * np.sqrt(0.25 / 400))
    assert share[0].tolist() == [0, 1]  # levels are sorted: "hi", "lo"
    assert share[4].tolist() == [1, 0]
    assert found.observed_data["z"].to_numpy().tolist() == [1, -1, -1, -1, 0, -1]
    assert found.observed_data["z"].attrs["missing"] == -1
    assert np.isnan(found.observed_data["x"].to_numpy()[5, 0])
    assert set(found.posterior_predictive.data_vars) == {"x"}


def test_new_rows_without_the_labels_of_a_supervised_fit_have_them_drawn(by_em: Build) -> None:
    x, z = np.array([[0.0], [1.0], [7.0], [8.0]]), np.array([0, 0, 1, 1])
    fit = by_em(Spec(model={"z": Categorical(2), "x": Normal(loc=By("z"), scale=1.0)}), {"x": x, "z": z})
    found = fit.to_arviz({"x": x}, draws=5)
    assert set(found.observed_data.data_vars) == {"x"}
    assert found.posterior["z"].argmax("z_class").to_numpy()[0].tolist() == [[0, 0, 1, 1]] * 5
