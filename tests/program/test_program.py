"""The compiled pair as ordinary Pyro functions."""

from __future__ import annotations

import numpy as np
import pyro
import pytest
import torch
from pyro import poutine

from ppl_gen.declare.nodes import Categorical, Input, MultivariateNormal, Normal
from ppl_gen.declare.spec import Spec
from ppl_gen.declare.terms import By, Linear
from ppl_gen.errors import FitError
from ppl_gen.program.program import compile_spec

X = np.random.default_rng(0).normal(size=(20, 3))
VAE = compile_spec("vae_diagonal", {"x": X}, dtype=torch.float64)
REGRESSION = compile_spec(
    Spec(model={"u": Input(1), "z": Categorical(2), "y": Normal(1, loc=Linear("u", by="z"))}),
    {"u": X[:, :1], "y": X[:, 1:2]},
)
ROWS = {"x": torch.tensor(X)}


def test_a_minibatch_counts_for_the_whole():
    trace = poutine.trace(VAE.guide).get_trace({"x": ROWS["x"][:5]}, size=20)
    whole = poutine.trace(poutine.replay(VAE.guide, trace=trace)).get_trace({"x": ROWS["x"][:5]})
    assert trace.log_prob_sum().item() == pytest.approx(4 * whole.log_prob_sum().item(), rel=1e-12)


REFUSED = {
    "no rows": (lambda: VAE.model({}), "how many rows to draw? give n=, or data"),
    "different rows": (
        lambda: VAE.model({"x": ROWS["x"], "z": torch.zeros(3, 8)}),
        "different numbers of rows: {'x': 20, 'z': 3}",
    ),
    "another n": (lambda: VAE.model(ROWS, n=3), "n=3"),
    "a guide without data": (lambda: VAE.guide({}, n=3), "the guide needs x; the data have nothing"),
    "a model without its Input": (
        lambda: REGRESSION.model({"y": torch.zeros(3, 1)}),
        "the model needs u; the data have y",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_call_that_cannot_be_answered_says_what_it_needs(case):
    call, expected = REFUSED[case]
    with pytest.raises(FitError) as raised:
        call()
    assert expected in str(raised.value)


def test_the_starting_values_are_those_of_the_seed_and_take_no_noise():
    torch.manual_seed(3)
    expected = torch.rand(2)
    torch.manual_seed(3)
    one, two, other = (compile_spec("vae", {"x": X}, seed=seed).state_dict() for seed in (1, 1, 2))
    assert torch.equal(torch.rand(2), expected)
    assert all(torch.equal(value, two[path]) for path, value in one.items())
    assert any(not torch.equal(value, other[path]) for path, value in one.items())


def test_what_is_drawn_for_the_latents_is_what_the_observed_follow():
    program = compile_spec(
        Spec(model={"z": Categorical(2), "x": MultivariateNormal(2, loc=By("z"), cov=0.0001)}),
        {"x": X[:, :2]},
    )
    with torch.no_grad():
        program.generative.layers["x:loc"].table.copy_(torch.tensor([[0.0, 0.0], [9.0, 9.0]]))
    drawn = program.model({}, n=200)
    np.testing.assert_allclose(
        drawn["x"].detach().numpy(), 9.0 * drawn["z"].numpy()[:, None].repeat(2, 1), atol=0.1
    )


def test_parameters_stay_out_of_pyros_store_but_for_the_pair():
    pyro.clear_param_store()
    VAE.model(ROWS)
    VAE.guide(ROWS)
    assert len(pyro.get_param_store()) == 0
    model, _ = VAE.pyro_pair()
    model(ROWS)
    assert len(pyro.get_param_store()) == len(list(VAE.parameters()))
    pyro.clear_param_store()


def test_precision_and_device_are_as_asked():
    assert compile_spec("vae", {"x": X}).dtype == torch.float32
    assert compile_spec("gaussian_mixture", {"x": X}).dtype == torch.float64
    assert (
        compile_spec("gaussian_mixture", {"x": X}, dtype=torch.float32, device="cpu").dtype == torch.float32
    )
