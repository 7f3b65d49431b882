"""Where the certificate gives a wider bound or no verdict, and that a real fault is still seen there."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from ppl_gen import EM, MLP, By, Categorical, Input, Normal, Spec, fit, gaussian_mixture
from ppl_gen.certify import lines


def test_a_constant_column_does_not_make_a_sound_fit_look_unfinished():
    """Its variance is held at a floor, where the likelihood has no maximum and its gradient is not zero."""
    x = np.random.default_rng(0).normal(size=(80, 2))
    withheld = fit(gaussian_mixture(1), x, EM(restarts=1)).certificate["gradient"]
    assert withheld.ok is True
    with pytest.warns(UserWarning, match=r"x\[2\].*the same value in every row"):
        held = fit(gaussian_mixture(1), np.c_[x, np.full(80, 7.0)], EM(restarts=1)).certificate["gradient"]
    assert held.ok is None


def test_a_fall_beyond_float32s_last_digits_is_still_a_fall():
    """The wider bound of float32 is for the rounding of a sum, a few units in its last digit."""
    rounding = 10 * torch.finfo(torch.float32).eps
    assert lines.ascent([-1300.0, -1280.0, -1280.0001], 250, rounding).ok
    assert not lines.ascent([-1300.0, -1280.0, -1280.1], 250, rounding).ok


@pytest.mark.parametrize("activation", ["relu", "tanh"])
def test_a_network_with_kinks_is_not_held_against_second_derivatives_and_a_smooth_one_is(activation):
    random = np.random.default_rng(3)
    u = random.normal(size=(300, 2))
    far = 1.5 * np.sin(2 * u[:, 0]) > random.logistic(size=300)
    x = random.normal(np.where(far, 4.0, 0.0), 1.0)[:, None]
    gate = MLP("u", (4,), activation=activation)
    spec = Spec(model={"u": Input(2), "z": Categorical(2, logits=gate), "x": Normal(1, loc=By("z"))})
    found = fit(spec, {"u": u, "x": x}, EM(restarts=2)).certificate
    assert found.ok
    assert found["information"].ok is (None if activation == "relu" else True)
    assert found["gradient"].ok is not False
