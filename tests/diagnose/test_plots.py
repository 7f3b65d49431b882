"""What a picture says of a fit is what the fit says."""

from __future__ import annotations

from dataclasses import replace

import matplotlib.colors
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest

from ppl_gen import (
    EM,
    SVI,
    By,
    Categorical,
    FitError,
    Input,
    Linear,
    MultivariateNormal,
    Normal,
    Spec,
    fit,
    gaussian_mixture,
    latent_class,
    load,
    vae,
)
from ppl_gen.diagnose import plot_classes, plot_history, plot_reconstructions


def clumps(k: int = 2, columns: int = 2, rows: int = 30) -> pd.DataFrame:
    """K clumps along the diagonal, far apart."""
    rng = np.random.default_rng(0)
    centres = np.repeat(20.0 * np.arange(k), rows)[:, None]
    noise = rng.normal(size=(k * rows, columns)) @ np.triu(np.ones((columns, columns)))
    return pd.DataFrame(centres + noise, columns=["short", "wide", "deep"][:columns])


@pytest.fixture(scope="module")
def three_columns():
    return fit(gaussian_mixture(2), clumps(columns=3), EM(restarts=2))


@pytest.fixture(scope="module")
def autoencoder():
    return fit(vae(2, (4,)), np.random.default_rng(0).random((20, 6)), SVI(epochs=2))


def ellipses(figure):
    """The drawn curves of each class, 1 sd and 2 sd: (K, 2, points, 2)."""
    curves = [np.array(line.get_xydata()) for line in figure.axes[0].lines]
    curves = np.array([curve for curve in curves if len(curve) > 1])
    return curves.reshape(-1, 2, *curves.shape[1:])


def offsets(figure):
    return [np.asarray(own.get_offsets()) for own in figure.axes[0].collections]


@pytest.mark.parametrize("covariance", ["full", "tied", "diagonal", "spherical"])
def test_ellipses_are_one_and_two_standard_deviations_of_their_class(covariance):
    result = fit(gaussian_mixture(2, covariance), clumps(), EM(restarts=2))
    estimates = result.parameters["x"]
    covariances = np.broadcast_to(
        estimates["cov"] if "cov" in estimates else estimates["scale"][..., None] ** 2 * np.eye(2), (2, 2, 2)
    )
    drawn = ellipses(plot_classes(result))
    for curves, mean, own in zip(drawn, estimates["loc"], covariances, strict=True):
        for radius, curve in zip((1, 2), curves, strict=True):
            apart = curve - mean
            distance = np.sqrt((apart @ np.linalg.inv(own) * apart).sum(1))
            np.testing.assert_allclose(distance, radius, rtol=1e-9)  # rounding of a 2×2 inverse


def test_every_row_is_shown_once_in_the_colour_of_its_class(three_columns):
    data, shown = clumps(columns=3), offsets(plot_classes(three_columns))
    for k, own in enumerate(shown):
        np.testing.assert_array_equal(own, data[three_columns.predict(data) == k][["short", "wide"]])
    assert sum(map(len, shown)) == len(data)


def test_the_legend_has_the_class_shares(three_columns):
    texts = [text.get_text() for text in plot_classes(three_columns).legends[0].get_texts()]
    shares = 100 * three_columns.predict_proba(clumps(columns=3)).mean(0)
    assert texts[:2] == [f"class {k}, {share:.0f} %" for k, share in enumerate(shares)]


@pytest.mark.parametrize("columns", [(2, 0), ("deep", "short")])
def test_other_columns_are_chosen_by_position_or_name(three_columns, columns):
    figure = plot_classes(three_columns, columns=columns)
    axes = figure.axes[0]
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("deep", "short")
    estimates = three_columns.parameters["x"]
    reach = ellipses(figure)[:, 0].max(axis=1) - estimates["loc"][:, [2, 0]]
    sd = np.sqrt(np.diagonal(estimates["cov"], axis1=1, axis2=2)[:, [2, 0]])
    np.testing.assert_allclose(reach, sd, rtol=1e-3)  # 181 points: the outermost may miss by 1 − cos(π/180)


def test_rows_given_by_hand_are_shown_in_place_of_the_training_rows(three_columns, tmp_path):
    assert sum(map(len, offsets(plot_classes(three_columns, clumps(columns=3)[:7])))) == 7
    three_columns.save(tmp_path / "fit")
    loaded = load(tmp_path / "fit")
    with pytest.raises(FitError, match=r"loaded fit has no rows.*plot_classes\(fit, data\)"):
        plot_classes(loaded)
    assert len(offsets(plot_classes(loaded, clumps(columns=3)))) == 2


@pytest.mark.parametrize("k", [2, 7, 12])
def test_no_two_classes_share_a_colour(k):
    figure = plot_classes(fit(gaussian_mixture(k, "spherical"), clumps(k, rows=10), EM(restarts=2)))
    colours = {matplotlib.colors.to_hex(own.get_facecolor()[0]) for own in figure.axes[0].collections}
    assert len(colours) == k


def test_a_plane_beside_other_observed_nodes_is_found():
    spec = Spec(
        model={"z": Categorical(2), "n": Normal(1, loc=By("z")), "x": MultivariateNormal(loc=By("z"))}
    )
    data = {"n": clumps(columns=1), "x": clumps()}
    axes = plot_classes(fit(spec, data, EM(restarts=2))).axes[0]
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("short", "wide")


@pytest.mark.parametrize(
    ("spec", "data", "message"),
    [
        (gaussian_mixture(2), clumps(columns=1), "two or more columns"),
        (latent_class(2), (clumps() > 10).astype(int), "normal node .* observed nodes are x"),
        (Spec(model={"x": MultivariateNormal(2)}), clumps(), "one discrete latent; this model has: none"),
        (
            Spec(model={"u": Input(1), "z": Categorical(2), "x": Normal(2, loc=Linear("u", by="z"))}),
            {"u": clumps(columns=1), "x": clumps()},
            "'x' depends on u, z",
        ),
    ],
)
def test_a_model_without_classes_in_a_plane_is_told_why(spec, data, message):
    small = SVI(epochs=1) if spec.inputs else EM(restarts=1)
    with pytest.raises(FitError, match=message):
        plot_classes(fit(spec, data, small))


@pytest.mark.parametrize("columns", [(0, 3), (0, -1), ("short", "tall"), (1, 1), (0,), (0, "short")])
def test_columns_that_are_not_two_of_the_data_are_refused(three_columns, columns):
    with pytest.raises(FitError, match=r"column.*short, wide, deep"):
        plot_classes(three_columns, columns=columns)


def images(figure):
    """The pictures by row of the figure: (3, n, height, width)."""
    shown = [axes.images[0].get_array() for axes in figure.axes]
    return np.array(shown).reshape(3, -1, *shown[0].shape)


def test_reconstructions_and_prior_images_of_a_mixture_are_its_class_means():
    kinds = np.array([[0.0, 0, 9, 9], [9, 0, 9, 0]])
    rows = np.repeat(kinds, 20, axis=0) + np.random.default_rng(0).normal(size=(40, 4))
    data, again, prior = images(plot_reconstructions(fit(gaussian_mixture(2, "tied"), rows), rows[15:], n=10))
    np.testing.assert_array_equal(data, rows[15:25].reshape(10, 2, 2))
    # Classes 9 sd apart: every row belongs to its own group, whose mean is the estimate, up to e^−40.
    means = np.array([rows[:20].mean(0), rows[20:].mean(0)]).reshape(2, 2, 2)
    np.testing.assert_allclose(again, np.repeat(means, 5, axis=0), rtol=1e-6)
    nearest = np.abs(prior[:, None] - means).max((2, 3)).min(1)
    np.testing.assert_allclose(nearest, 0, atol=1e-6)


def test_all_images_are_on_the_grey_scale_of_the_data(autoencoder):
    rows = np.random.default_rng(1).random((5, 6))
    figure = plot_reconstructions(autoencoder, rows, shape=(2, 3))
    assert len(figure.axes) == 15
    assert {axes.images[0].get_clim() for axes in figure.axes} == {
        (np.float32(rows.min()), np.float32(rows.max()))
    }


def test_an_image_shaped_node_needs_no_shape():
    declared = Spec(model={"z": Categorical(2), "x": Normal([1, 2, 3], loc=By("z"))})
    rows = np.random.default_rng(0).random((20, 1, 2, 3))
    assert images(plot_reconstructions(fit(declared, {"x": rows}), {"x": rows}, n=2)).shape == (3, 2, 2, 3)


def test_a_model_with_inputs_is_given_those_of_the_rows():
    spec = Spec(
        model={
            "u": Input(1),
            "z": Normal(1, loc=0, scale=1),
            "x": Normal(4, loc=Linear(["z", "u"]), scale=1),
        }
    )
    rng = np.random.default_rng(0)
    u = np.repeat([[0.0], [50.0]], 20, axis=0)
    data = {"u": u, "x": u + rng.normal(size=(40, 4))}
    result = fit(spec, data, SVI(epochs=300, batch_size=40, learning_rate=0.05))
    _, again, prior = images(plot_reconstructions(result, data, n=40))
    for made in (again, prior):
        assert np.abs(made[:20]).max() < 25 < made[20:].min()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "6 cells, which are no image of shape"),
        ({"shape": (2, 2)}, r"no image of shape \(2, 2\): pass shape=\(height, width\)"),
        ({"shape": (6,)}, "no image of shape"),
        ({"shape": (2, 3), "n": 0}, "n must be a whole number from 1"),
    ],
)
def test_a_shape_that_is_no_image_is_refused(autoencoder, options, message):
    with pytest.raises(FitError, match=message):
        plot_reconstructions(autoencoder, np.ones((3, 6)), **options)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        (Spec(model={"x": Normal(2)}), "no latent"),
        (latent_class(2), "observed nodes are x"),
        (Spec(model={"z": Categorical(2), "x": Normal(1, loc=By("z")), "y": Normal(1, loc=By("z"))}), "x, y"),
    ],
)
def test_a_model_without_images_is_told_why(spec, message):
    data = clumps() if spec.nodes["x"].support == "real" else (clumps() > 10).astype(int)
    data.columns = ["x", "y"] if "y" in spec.nodes else ["x[0]", "x[1]"]
    with pytest.raises(FitError, match=message):
        plot_reconstructions(fit(spec, data, EM(restarts=1)), data)


def test_the_history_of_em_starts_at_step_0_and_that_of_svi_at_epoch_1(three_columns, autoencoder):
    for result, first in ((three_columns, 0), (autoencoder, 1)):
        steps, objective = plot_history(result).axes[0].lines[0].get_data()
        assert steps[0] == first
        np.testing.assert_array_equal(objective, result.history)


def test_an_empty_history_is_told_of(three_columns):
    with pytest.raises(FitError, match="no history"):
        plot_history(replace(three_columns, run=replace(three_columns.run, history=())))


def test_pictures_save_without_a_window_and_leave_pyplot_alone(three_columns, autoencoder, tmp_path):
    figures = {
        "classes": plot_classes(three_columns),
        "images": plot_reconstructions(autoencoder, np.ones((3, 6)), shape=(3, 2)),
        "history": plot_history(three_columns),
    }
    for name, figure in figures.items():
        figure.savefig(tmp_path / f"{name}.png")
        assert (tmp_path / f"{name}.png").stat().st_size > 5_000
    assert plt.get_fignums() == []
