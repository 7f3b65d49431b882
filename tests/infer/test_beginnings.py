"""Where SVI begins: a start from which the optimum cannot be reached would be a wrong answer without a word."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from ppl_gen import SVI, By, Categorical, FitError, Free, Input, Linear, Normal, Poisson, Spec, Sum, fit
from ppl_gen.infer.algorithms import EM


def test_classes_in_a_sum_begin_apart_and_are_found():
    """With equal entries their gradients are equal too, and one class is all that would ever be fitted."""
    random = np.random.default_rng(0)
    counts = np.r_[random.poisson(1, (200, 1)), random.poisson(20, (200, 1))].astype(float)
    zero = np.zeros((400, 1))
    in_a_sum = Spec(model={"z": Categorical(2), "u": Input(1), "p": Poisson(rate=Sum(By("z"), "u"))})
    alone = Spec(model={"z": Categorical(2), "p": Poisson(rate=By("z"))})
    found = fit(in_a_sum, {"u": zero, "p": counts}, SVI(epochs=400, learning_rate=0.05, batch_size=400))
    best = fit(alone, {"p": counts}, EM())
    # Full batches and a smooth optimum: within a twentieth of a nat a hundred rows.
    assert found.log_likelihood == pytest.approx(best.log_likelihood, abs=0.2)


def test_a_regression_far_from_zero_begins_at_the_columns_means():
    """From a bias of 0 a column at 1e3 is a million squared units away, which no default run walks."""
    random = np.random.default_rng(1)
    u = random.normal(size=(300, 2))
    y = u @ [[1.0], [-1.0]] + random.normal(size=(300, 1))
    spec = Spec(model={"u": Input(2), "y": Normal(1, loc=Linear("u"), scale=Free())})
    near = fit(spec, {"u": u, "y": y}, SVI(epochs=5))
    far = fit(spec, {"u": u, "y": y + 500}, SVI(epochs=5))
    # Both begin at their own means and take the same steps: only the rounding of y + 500 differs.
    assert far.log_likelihood == pytest.approx(near.log_likelihood, rel=1e-6)


def test_a_column_that_svis_steps_cannot_reach_is_named():
    """An answer that is far from the optimum must at least say which column to scale."""
    x = np.random.default_rng(2).normal(size=(50, 2)) * [1.0, 1e3]
    spec = Spec(model={"h": Normal(1, loc=0, scale=1), "x": Normal(loc=Linear("h"), scale=Free())})
    with pytest.warns(UserWarning, match=r"column 'x\[1\]' of 'x' .* far from unit scale"):
        fit(spec, x, SVI(epochs=1))


def test_data_that_lost_their_digits_in_float32_are_named():
    """At an offset of 1e8 float32 keeps multiples of 8: no fit can bring the rest back."""
    x = (np.random.default_rng(4).normal(size=(60, 1)) * 20 + 1e8).astype(np.float32)
    with pytest.warns(UserWarning, match="column 'x' of 'x' .* seems to have been stored in float32"):
        fit(Spec(model={"x": Normal()}), x)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"seed": -1}, "seed must be a whole number from 0, not -1"),
        ({"seed": 1.5}, "seed must be a whole number from 0, not 1.5"),
        ({"dtype": torch.int64}, "dtype must be torch.float32 or torch.float64"),
        ({"device": "nowhere"}, "device 'nowhere' cannot be used here"),
    ],
)
def test_arguments_of_fit_that_cannot_be_meant_are_told(options, message):
    """A traceback from torch would not say which argument was wrong."""
    with pytest.raises(FitError, match=message):
        fit(Spec(model={"x": Normal(1)}), [[1.0], [2.0]], **options)


def test_a_start_outside_a_parameters_space_is_refused():
    """A negative scale would be taken for a tiny one, and end as NaN."""
    x = np.random.default_rng(3).normal(size=(40, 1))
    spec = Spec(model={"z": Categorical(2), "x": Normal(loc=By("z"), scale=By("z"))})
    good = {"z": {"probs": [0.5, 0.5]}, "x": {"loc": [[0.0], [1.0]], "scale": [[1.0], [1.0]]}}
    for path, value, message in (
        (("x", "scale"), [[-1.0], [1.0]], "x.scale holds values that are not positive"),
        (("z", "probs"), [0.9, 0.9], "z.probs holds values that are not simplex"),
        (("x", "loc"), "a", "x.loc must be numbers"),
        (("x", "lok"), [[0.0], [1.0]], "x has no parameter lok; it has loc, scale"),
    ):
        node, key = path
        bad = good | {node: good[node] | {key: value}}
        with pytest.raises(FitError, match=message):
            fit(spec, x, EM(init=bad))
