"""Stopping: 'converged' is true, what is left is said, plateaus and boundaries have their names."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from ppl_gen.declare.phrasebook import gaussian_mixture, latent_class, poisson_mixture
from ppl_gen.fitting import fit
from ppl_gen.infer.algorithms import EM
from ppl_gen.infer.status import Status

DATA = Path(__file__).parents[2] / "examples" / "data"
NOTICES = pd.read_csv(DATA / "death_notices.csv")
DEATHS = np.repeat(NOTICES["deaths"], NOTICES["days"]).to_numpy(float)[:, None]
FAITHFUL = pd.read_csv(DATA / "faithful.csv").to_numpy(float)
CARCINOMA = pd.read_csv(DATA / "carcinoma.csv").to_numpy()
START = {"z": {"probs": [0.3, 0.7]}, "x": {"rate": [[1.0], [2.5]]}}
MAXIMUM = -1989.94585988297  # of death notices, by 10 000 steps of plain EM


@pytest.mark.parametrize("tol", [1e-6, 1e-8])
def test_what_is_said_to_be_left_is_what_is_left(tol):
    done = fit(poisson_mixture(2), {"x": DEATHS}, EM(init=START, tol=tol, accelerate=False)).run
    assert done.status is Status.CONVERGED
    assert done.remaining == pytest.approx(MAXIMUM - done.history[-1], rel=0.1)


@pytest.mark.parametrize(
    ("spec", "data"),
    [
        (gaussian_mixture(3, "tied"), FAITHFUL),
        (poisson_mixture(2), DEATHS),
        (latent_class(3), CARCINOMA),
    ],
    ids=["normal", "Poisson", "latent class"],
)
def test_a_converged_fit_has_nothing_left_to_gain(spec, data):
    done = fit(spec, {"x": data})
    assert done.status.converged
    further = fit(spec, {"x": data}, EM(init=done, tol=1e-15, max_steps=300, accelerate=False))
    assert further.log_likelihood - done.log_likelihood < 1e-6
    moved = further.parameters["z"]["probs"] - done.parameters["z"]["probs"]
    assert np.abs(moved).max() < 1e-4


def test_max_steps_on_a_slope_and_on_a_plateau_have_different_names():
    slope = fit(poisson_mixture(2), {"x": DEATHS}, EM(init=START, max_steps=5, accelerate=False)).run
    assert slope.status is Status.MAX_STEPS
    level = EM(init=START, tol=1e-8, max_steps=700, accelerate=False)
    plateau = fit(poisson_mixture(2), {"x": DEATHS}, level).run
    assert plateau.status is Status.PLATEAU
    assert plateau.history[-1] - plateau.history[-2] < 1e-8 * len(DEATHS)
    assert not plateau.status.converged


def test_a_solution_at_the_boundary_is_called_one():
    done = fit(latent_class(3), {"x": CARCINOMA}).run
    assert done.status is Status.BOUNDARY
    assert any("probabilities of x are at 0 or 1" in note for note in done.notes)
    inside = fit(gaussian_mixture(2), {"x": FAITHFUL}).run
    assert inside.status is Status.CONVERGED


def test_weights_count_in_the_tolerance_as_rows_would():
    table = {"x": NOTICES["deaths"].to_numpy(float)[:, None]}
    days = NOTICES["days"].to_numpy(float)
    weighted = fit(poisson_mixture(2), table, EM(init=START), weights=days)
    rows = fit(poisson_mixture(2), {"x": DEATHS}, EM(init=START))
    assert weighted.log_likelihood == pytest.approx(rows.log_likelihood, abs=1e-9)
    assert abs(weighted.run.evaluations - rows.run.evaluations) <= 5  # rounding may refuse another step
