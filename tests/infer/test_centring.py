"""SVI finds its way whatever columns' means are, and what it steps in is the same model."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from ppl_gen.data.reading import read_table
from ppl_gen.declare.nodes import Categorical, Input, Normal, Poisson
from ppl_gen.declare.spec import Spec
from ppl_gen.declare.terms import MLP, By, Free, Linear, Sum
from ppl_gen.infer.algorithms import SVI
from ppl_gen.infer.centring import Centring
from ppl_gen.infer.svi import run_svi
from ppl_gen.program.program import compile_spec

R = np.random.default_rng(0)
U = 50.0 * (np.arange(40) % 2)[:, None]
Z = Normal(1, loc=0, scale=1)
MODELS = {
    "linear": {"x": Normal(2, loc=Linear(["z", "u"]), scale=1)},
    "by class": {"x": Normal(2, loc=Linear(["z", "u"], by="c"), scale=1)},
    "first of a sum": {"x": Normal(2, loc=Sum(Linear("u"), Linear("z")), scale=1)},
    "second of a sum": {"x": Normal(2, loc=Sum(Linear("z"), Linear("u")), scale=1)},
    "beside a network": {"x": Normal(2, loc=Sum(MLP("z", [3]), Linear("u")), scale=1)},
    "of a named value": {"h": Linear(["z", "u"], dim=2), "x": Normal(2, loc=Linear("h"), scale=1)},
}
TABLES = {"beside a table": {"x": Normal(2, loc=Sum(By("c"), Linear("z"), Linear("u")), scale=Free())}}
UNMOVED = {
    "through the origin": {"x": Normal(2, loc=Linear(["z", "u"], bias=0), scale=1)},
    "an intercept of another width": {"x": Normal(2, loc=Sum(By("c", dim=1), Linear(["z", "u"])), scale=1)},
}


def declared(entries: dict[str, object]) -> Spec:
    return Spec(model={"u": Input(1), "c": Categorical(2), "z": Z, **entries})


def data_of() -> dict[str, np.ndarray]:
    """Columns that follow u, of noise 1."""
    return {"u": U, "c": np.arange(40) // 20, "x": U + R.normal(size=(40, 2))}


@pytest.mark.parametrize("name", MODELS)
def test_a_far_column_is_followed_within_300_steps(name):
    # Least squares of x on u leaves noise of sd 1 about the line. 300 steps of 0.05 are 15: an intercept that has
    # to walk from the columns' mean, 25, would not be there.
    spec, data = declared(MODELS[name]), data_of()
    table = read_table(data, spec)
    program = compile_spec(spec, table.schema)
    run = run_svi(program, table, SVI(epochs=300, batch_size=40, learning_rate=0.05))
    program.load_state_dict(run.state)
    with torch.no_grad():
        rows = program.tensors({"u": U, "c": data["c"]}) | {"z": torch.zeros(40, 1)}
        mean = program.generative.working("x", rows)["loc"].numpy()
    assert np.abs(mean - U).max() < 2.5


@pytest.mark.parametrize("name", [*MODELS, *TABLES, *UNMOVED])
def test_coordinates_are_left_as_they_were_entered(name):
    spec = declared((MODELS | TABLES | UNMOVED)[name])
    program = compile_spec(spec, read_table(data_of(), spec).schema, dtype=torch.float64)
    centring, state = Centring(program), dict(program.state_dict())
    inside = centring.inside(state)
    back = centring.outside(inside, centring.means)
    for path, value in state.items():
        # What is added and taken away is of size 25 times a weight of at most 1.
        torch.testing.assert_close(back[path], value, rtol=0, atol=1e-13)
    recognised = {path for path in inside if path.startswith("recognition")}
    moved = {path for path in {*inside} - recognised if not torch.equal(inside[path], state[path])}
    assert bool(moved) is (name not in UNMOVED)


def test_columns_with_holes_and_counts_are_counted_from_their_means_too():
    # A guide that reads x: Linear of its seen cells and of the marks beside them; and of counts as they are.
    spec = Spec(
        model={"z": Z, "x": Normal(2, loc=Linear("z"), scale=1), "n": Poisson(1, rate=Linear("z"))},
        guide={"z": Normal(1, loc=Linear(["x", "n"]), scale=Linear(["x", "n"]))},
    )
    x = 1000 + R.normal(size=(30, 2))
    x[::3, 0] = np.nan
    data = {"x": x, "n": 40 + R.poisson(2, (30, 1))}
    table = read_table(data, spec)
    program = compile_spec(spec, table.schema, dtype=torch.float64)
    centring = Centring(program)
    own = centring.means["recognition.layers.z:loc"]
    mean = np.nanmean(x, 0)
    np.testing.assert_allclose(own["marks"], [0, 0, *mean, 0], rtol=1e-12)
    np.testing.assert_allclose(own["centre"], [0, 0, 0, 0, data["n"].mean()], rtol=1e-12)
    state = dict(program.state_dict())
    inside = centring.inside(state)
    path = "recognition.layers.z:loc"
    weight, bias = inside[f"{path}.weight"].numpy(), inside[f"{path}.bias"].numpy()
    # By hand: a seen cell enters as x − x̄ beside a mark of 1, a missing one as 0 beside 0.
    seen = ~np.isnan(x)
    entering = np.concatenate([np.where(seen, x - mean, 0), seen, data["n"] - data["n"].mean()], 1)
    rows = program.tensors(table.arrays, table.holes)
    with torch.no_grad():
        expected = program.recognition.working("z", dict(rows))["loc"].numpy()
    np.testing.assert_allclose(entering @ weight.T + bias, expected, rtol=1e-9, atol=1e-9)
