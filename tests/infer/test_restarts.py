"""Restarts: short runs pruned, drawn anew where they break, and maxima told apart up to the order of classes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.mixture import GaussianMixture

from ppl_gen.data.reading import read_table
from ppl_gen.declare.nodes import Categorical, Normal, Poisson
from ppl_gen.declare.phrasebook import gaussian_mixture, latent_class
from ppl_gen.declare.spec import Spec
from ppl_gen.declare.terms import By
from ppl_gen.fitting import fit
from ppl_gen.infer import modes
from ppl_gen.infer.algorithms import EM
from ppl_gen.infer.coordinates import Coordinates
from ppl_gen.infer.given import given_state
from ppl_gen.program.program import compile_spec

DATA = Path(__file__).parents[2] / "examples" / "data"
FAITHFUL = pd.read_csv(DATA / "faithful.csv").to_numpy(float)
CARCINOMA = pd.read_csv(DATA / "carcinoma.csv").to_numpy()
X = np.random.default_rng(0).normal(size=(30, 2))


def flat(program, given):
    state = given_state(program, given)
    coordinates = Coordinates(program, state)
    return coordinates, coordinates.flatten({path: value.unsqueeze(0) for path, value in state.items()})


def grouped(spec, data, *parameters, values=None):
    program = compile_spec(spec, read_table(data, spec).schema)
    pairs = [flat(program, given) for given in parameters]
    points = torch.cat([point for _, point in pairs])
    return modes.group(program, pairs[0][0], points, values or [-1.0] * len(points), 30)


def mixture(order, shift=0.0):
    order = list(order)
    loc = np.array([[0.0, 0.0], [3.0, 1.0], [0.1, 2.0]])[order] + shift
    return {
        "z": {"probs": np.array([0.2, 0.5, 0.3])[order]},
        "x": {"loc": loc, "scale": np.array([[1.0, 2.0], [0.5, 0.5], [3.0, 1.0]])[order]},
    }


def test_restarts_that_differ_in_labels_alone_are_one_maximum():
    spec = gaussian_mixture(3, "diagonal")
    found = grouped(spec, {"x": X}, mixture([0, 1, 2]), mixture([2, 0, 1]), mixture([1, 0, 2]))
    assert found == [[0, 1, 2]]


def test_two_maxima_of_equal_height_are_told_apart():
    spec = gaussian_mixture(3, "diagonal")
    assert grouped(spec, {"x": X}, mixture([0, 1, 2]), mixture([0, 1, 2], shift=0.5)) == [[0], [1]]
    apart = grouped(spec, {"x": X}, mixture([0, 1, 2]), mixture([2, 1, 0]), values=[-2.0, -1.0])
    assert apart == [[1], [0]]  # the better one first


def test_labels_of_a_hierarchy_are_matched_level_by_level():
    spec = Spec(
        model={
            "a": Categorical(2),
            "b": Categorical(2, probs=By("a")),
            "x": Normal(loc=By("b"), scale=1),
            "n": Poisson(rate=By("a")),
        }
    )
    data = {"x": X, "n": np.arange(30.0)[:, None]}

    def parameters(a, b):
        return {
            "a": {"probs": np.array([0.4, 0.6])[a]},
            "b": {"probs": np.array([[0.9, 0.1], [0.3, 0.7]])[a][:, b]},
            "x": {"loc": np.array([[0.0, 1.0], [2.0, 5.0]])[b]},
            "n": {"rate": np.array([[1.0], [8.0]])[a]},
        }

    same, turned = [0, 1], [1, 0]
    every = [parameters(a, b) for a in (same, turned) for b in (same, turned)]
    assert grouped(spec, data, *every) == [[0, 1, 2, 3]]


def test_pruning_finds_the_maximum_of_restarts_that_are_all_run_to_their_end():
    pruned = fit(latent_class(3), {"x": CARCINOMA}, EM(restarts=30, keep=5), seed=4)
    full = fit(latent_class(3), {"x": CARCINOMA}, EM(restarts=30, keep=30), seed=4)
    assert pruned.log_likelihood == pytest.approx(full.log_likelihood, abs=1e-7)
    assert (pruned.run.finished, full.run.finished) == (5, 30)
    assert sum(mode.hits for mode in full.modes) == 30
    assert any("25 of 30 restarts were dropped" in note for note in pruned.run.notes)


@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
def test_a_hundred_restarts_are_no_worse_than_scikit_learns():
    stock = GaussianMixture(3, n_init=20, tol=1e-6, reg_covar=0, random_state=0).fit(FAITHFUL)
    found = fit(gaussian_mixture(3), {"x": FAITHFUL}, EM(restarts=100))
    assert found.log_likelihood >= stock.score(FAITHFUL) * len(FAITHFUL) - 1e-3
    for mode in found.modes:
        assert sum(mode.shares) == pytest.approx(1)
        assert list(mode.shares) == sorted(mode.shares, reverse=True)


def test_short_runs_on_a_sample_of_many_rows_end_at_the_maximum_over_all():
    random = np.random.default_rng(1)
    x = np.concatenate([random.normal(m, 1.0, (4500, 2)) for m in (0, 3, 7)])
    found = fit(gaussian_mixture(3), {"x": x}, EM(restarts=12, keep=2))
    stock = GaussianMixture(3, tol=1e-9, reg_covar=0, max_iter=1000, n_init=2, random_state=0).fit(x)
    assert found.log_likelihood == pytest.approx(stock.score(x) * len(x), abs=1e-3)
    assert any("a short run on 5000 of 13500 rows" in note for note in found.run.notes)
    assert np.diff(found.run.history).min() > -1e-7


def test_the_same_seed_prunes_and_ends_with_the_same_bits():
    one, two = (fit(gaussian_mixture(3), {"x": FAITHFUL}, EM(restarts=20), seed=5).run for _ in range(2))
    assert one.history == two.history
    assert one.modes == two.modes
