"""Degenerate data: a right answer or a clear word, never a NaN."""

from __future__ import annotations

import warnings

import numpy as np
import pytest

from ppl_gen.declare.phrasebook import gaussian_mixture, latent_class, poisson_mixture
from ppl_gen.errors import DataError
from ppl_gen.fitting import fit
from ppl_gen.infer.algorithms import EM
from ppl_gen.infer.run import Run
from ppl_gen.infer.status import Status

COVARIANCES = ("full", "tied", "diagonal", "spherical")
R = np.random.default_rng(3)
CLUSTERS = np.concatenate([R.normal(m, s, (60, 2)) for m, s in ((0, 1), (7, 0.5))])
QUICK = EM(restarts=4)


def fitted(spec, data, algorithm=QUICK):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # that rows are equal, that restarts collapsed
        return fit(spec, {"x": data}, algorithm)


def finite(run: Run) -> bool:
    return (
        all(bool(value.isfinite().all()) for value in run.state.values()) and np.isfinite(run.history).all()
    )


@pytest.mark.parametrize("unit", [1e200, 1e-200])
@pytest.mark.parametrize("covariance", COVARIANCES)
def test_units_of_1e200_leave_classes_and_likelihood_as_they_are(covariance, unit):
    spec = gaussian_mixture(2, covariance)
    home, away = fitted(spec, CLUSTERS), fitted(spec, CLUSTERS * unit)
    assert finite(away.run)
    assert away.run.status is Status.CONVERGED
    log_unit = CLUSTERS.size * np.log(unit)
    assert away.log_likelihood + log_unit == pytest.approx(home.log_likelihood, rel=1e-10)
    np.testing.assert_allclose(
        away.parameters["x"]["loc"] / unit, home.parameters["x"]["loc"], rtol=1e-9, atol=1e-12
    )


@pytest.mark.parametrize("covariance", COVARIANCES[:3])
def test_columns_of_1e200_and_1e_200_are_fitted_side_by_side(covariance):
    spec, units = gaussian_mixture(2, covariance), np.array([1e200, 1e-200])
    home, away = fitted(spec, CLUSTERS), fitted(spec, CLUSTERS * units)
    assert away.log_likelihood == pytest.approx(home.log_likelihood, rel=1e-9)
    np.testing.assert_allclose(away.parameters["z"]["probs"], home.parameters["z"]["probs"], rtol=1e-9)


@pytest.mark.parametrize("covariance", COVARIANCES)
def test_equal_rows_have_an_answer_that_says_its_variance_is_held(covariance):
    done = fitted(gaussian_mixture(2, covariance), np.full((20, 2), 3.0))
    assert finite(done.run)
    assert done.run.floored == ("x[0]", "x[1]")
    assert done.run.status is Status.BOUNDARY
    assert any("held at its floor: x[0], x[1]" in note for note in done.run.notes)
    np.testing.assert_allclose(done.parameters["x"]["loc"], 3.0, rtol=1e-12)


@pytest.mark.parametrize("covariance", COVARIANCES)
@pytest.mark.parametrize("rows", [2, 3, 4])
def test_hardly_more_rows_than_classes_end_in_a_status_not_in_a_nan(covariance, rows):
    done = fitted(gaussian_mixture(2, covariance), CLUSTERS[:rows]).run
    assert finite(done)
    assert done.status in (Status.COLLAPSED, Status.CONVERGED)
    if done.status is Status.COLLAPSED:
        assert done.reseeded == 3 * 4  # every restart as often as is promised
        assert any("4 of 4 restarts began anew, up to 3 times each" in note for note in done.notes)


def test_fewer_rows_than_classes_are_refused():
    with pytest.raises(DataError, match=r"3 classes.*2 row"):
        fitted(gaussian_mixture(3), CLUSTERS[:2])


@pytest.mark.parametrize("covariance", COVARIANCES)
def test_a_restart_that_takes_the_tied_rows_alone_is_drawn_again(covariance):
    data = np.concatenate([CLUSTERS, np.full((5, 2), 3.5)])
    done = fitted(gaussian_mixture(3, covariance), data, EM(restarts=10)).run
    assert finite(done)
    assert done.status is Status.CONVERGED or done.collapsed < done.finished


def test_counts_of_zero_and_answers_that_are_all_alike_are_fitted():
    zero = fitted(poisson_mixture(2), np.zeros((20, 1)))
    assert finite(zero.run)
    assert zero.log_likelihood == pytest.approx(0, abs=1e-9)  # rate 0 makes them certain
    alike = fitted(latent_class(2), np.zeros((20, 3), dtype=int))
    assert finite(alike.run)
    assert alike.log_likelihood == pytest.approx(0, abs=1e-9)
    two = fitted(latent_class(2), np.array([[0, 1, 0], [1, 0, 1]]))
    assert two.log_likelihood == pytest.approx(2 * np.log(0.5), abs=1e-9)  # one class a row
    assert two.run.status is Status.BOUNDARY


def test_a_class_too_many_is_drawn_again_and_then_reported():
    random = np.random.default_rng(2)
    data = random.integers(0, 2, (40, 2))  # four patterns: independence needs no second class
    done = fitted(latent_class(4), data, EM(restarts=3)).run
    assert finite(done)
    counts = np.stack([(data == pair).all(1).sum() for pair in ([0, 0], [0, 1], [1, 0], [1, 1])])
    saturated = float((counts * np.log(counts / 40)).sum())
    assert done.history[-1] == pytest.approx(saturated, abs=1e-6)
