"""Accelerated EM: the same maximum in a fraction of the steps, and never a step down."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from scipy.special import logsumexp
from scipy.stats import poisson

from ppl_gen.declare.phrasebook import gaussian_mixture, poisson_mixture
from ppl_gen.fitting import fit
from ppl_gen.infer.algorithms import EM
from ppl_gen.infer.restarts import Restarts

DATA = Path(__file__).parents[2] / "examples" / "data"
NOTICES = pd.read_csv(DATA / "death_notices.csv")
DEATHS = np.repeat(NOTICES["deaths"], NOTICES["days"]).to_numpy(float)[:, None]
FAITHFUL = pd.read_csv(DATA / "faithful.csv").to_numpy(float)
START = {"z": {"probs": [0.3, 0.7]}, "x": {"rate": [[1.0], [2.5]]}}  # that of the SQUAREM vignette


def by_hand() -> tuple[int, float, np.ndarray]:
    """Plain EM in NumPy until no parameter moves by more than 1e-8: evaluations, log-likelihood, parameters."""
    counts, days = NOTICES["deaths"].to_numpy(), NOTICES["days"].to_numpy()
    theta, evaluations = np.array([0.3, 1.0, 2.5]), 0
    while True:
        joint = np.log([theta[0], 1 - theta[0]]) + poisson.logpmf(counts[:, None], theta[1:])
        total = logsumexp(joint, axis=1)
        r = days[:, None] * np.exp(joint - total[:, None])
        new = np.array([r[:, 0].sum() / days.sum(), *(r * counts[:, None]).sum(0) / r.sum(0)])
        evaluations += 1
        if np.linalg.norm(new - theta) <= 1e-8:
            return evaluations, float(days @ total), new
        theta = new


def test_death_notices_take_a_hundred_evaluations_where_plain_em_takes_thousands():
    plain, log_likelihood, theta = by_hand()
    assert plain > 2500  # references: 2 600 to 2 900, and about 72 with SQUAREM
    found = fit(poisson_mixture(2), {"x": DEATHS}, EM(init=START, tol=1e-13))
    assert found.run.evaluations <= 100
    assert len(found.run.history) <= found.run.evaluations  # what was refused counts, too
    assert found.log_likelihood == pytest.approx(log_likelihood, abs=1e-9)
    # Plain EM shrinks by 0.9957 a step: where it moves by 1e-8 it still has 2e-6 to go.
    assert found.parameters["z"]["probs"][1] == pytest.approx(theta[0], abs=5e-6)
    np.testing.assert_allclose(found.parameters["x"]["rate"][:, 0], theta[[2, 1]], atol=1e-5)


def test_no_start_ends_lower_or_falls_on_the_way():
    found = fit(poisson_mixture(2), {"x": DEATHS}, EM(restarts=20, keep=20), seed=3)
    assert [mode.hits for mode in found.modes] == [20]
    # 2 000 nats are summed: a few units of the last digit.
    assert np.diff(found.run.history).min() > -1e-11


def test_acceleration_changes_neither_the_maximum_nor_the_history_of_a_fast_fit():
    same = {"restarts": 1, "tol": 1e-9}
    fast = fit(gaussian_mixture(2), {"x": FAITHFUL}, EM(**same)).run
    plain = fit(gaussian_mixture(2), {"x": FAITHFUL}, EM(accelerate=False, **same)).run
    assert fast.history == plain.history
    slow = {"restarts": 1, "init": "random-responsibilities"}
    fast = fit(gaussian_mixture(2), {"x": FAITHFUL}, EM(**slow)).run
    plain = fit(gaussian_mixture(2), {"x": FAITHFUL}, EM(accelerate=False, **slow)).run
    assert fast.evaluations < plain.evaluations
    assert fast.history[-1] == pytest.approx(plain.history[-1], abs=1e-6)


class Plane:
    """Coordinates of a problem that is no program: two numbers, measured as they are."""

    def measured(self, flat: torch.Tensor) -> torch.Tensor:
        return flat

    inside = measured


def climb(objective, step, *, monotone, evaluations=400, accelerate=True):
    """A batch of three restarts on a problem of one's own."""
    points = torch.tensor([[4.0, 1.0], [-3.0, 2.0], [0.5, -6.0]], dtype=torch.float64)
    restarts = Restarts(Plane(), points, accelerate=accelerate, monotone=monotone)
    for _ in range(evaluations):
        if not restarts.active.any():
            break
        point = restarts.lanes.point
        sound = torch.ones(len(points), dtype=torch.bool)
        restarts.update(objective(point), step(point), sound, 1e-12, 1e-6)
    return restarts


def test_an_extrapolation_that_lowers_the_objective_is_not_taken():
    # Narrow ridge along y = sin x: straight extrapolations fall off it.
    rate = torch.tensor([0.98, 0.3], dtype=torch.float64)

    def bent(p):
        return torch.stack([p[:, 0], p[:, 1] - torch.sin(p[:, 0])], 1)

    def objective(p):
        return -(bent(p) ** 2 * torch.tensor([1.0, 50.0])).sum(1)

    def step(p):
        inside = bent(p) * rate
        return torch.stack([inside[:, 0], inside[:, 1] + torch.sin(inside[:, 0])], 1)

    done = climb(objective, step, monotone=True)
    assert done.lanes.converged.all()
    assert min(np.diff(history).min() for history in done.history) >= -1e-14
    assert any(len(h) < u for h, u in zip(done.history, done.lanes.used, strict=True))  # some were refused
    assert done.lanes.base.abs().max() < 1e-5
    plain = climb(objective, step, monotone=True, evaluations=5000, accelerate=False)
    assert done.lanes.used.max() * 3 < plain.lanes.used.min()


def test_a_step_that_overshoots_is_halved_until_it_does_not():
    done = climb(lambda p: -(p**2).sum(1), lambda p: -1.8 * p, monotone=False)
    assert done.lanes.converged.all()
    assert min(np.diff(history).min() for history in done.history) >= 0
    assert done.lanes.base.abs().max() < 1e-5
