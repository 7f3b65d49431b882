"""The hand-written Pyro pairs in models/ and the declarations of the same name are the same models."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import numpy as np
import pytest
import torch
from pyro import poutine
from pyro.infer import Trace_ELBO, TraceEnum_ELBO, TraceMeanField_ELBO

from ppl_gen.declare.files import read_spec
from ppl_gen.infer.elbo import TraceableELBO
from ppl_gen.infer.given import given_state
from ppl_gen.program.program import compile_spec

MODELS = Path(__file__).parents[1] / "models"
TIGHT = {"rtol": 1e-10, "atol": 1e-10}


def hand_written(name):
    spec = importlib.util.spec_from_file_location(name, MODELS / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def row_log_joint(model, *arguments):
    trace = poutine.trace(model).get_trace(*arguments)
    trace.compute_log_prob()
    sites = [node for node in trace.nodes.values() if node["type"] == "sample" and node["name"] in ("z", "x")]
    assert len(sites) == 2
    return sum(site["log_prob"] for site in sites)


@pytest.fixture
def mixture():
    """The hand-written model's arguments, and the compiled program at the same parameters."""
    rng = np.random.default_rng(0)
    x = rng.normal([0, 30], [1, 5], (40, 2))
    weights, locs = rng.dirichlet(np.ones(3)), rng.normal([0, 30], 1, (3, 2))
    root = rng.normal(size=(3, 2, 2))
    covs = root @ root.swapaxes(-1, -2) + np.eye(2)
    program = compile_spec("gaussian_mixture", {"x": x})
    state = given_state(program, {"z": {"probs": weights}, "x": {"loc": locs, "cov": covs}})
    program.load_state_dict(state)
    arguments = [torch.tensor(a) for a in (x, weights, locs, np.linalg.cholesky(covs))]
    return hand_written("gaussian_mixture"), arguments, program


def test_the_declared_mixture_has_the_hand_written_log_joint_in_every_class(mixture):
    pair, arguments, program = mixture
    table = pair.log_joint(*arguments)
    for k in range(3):
        rows = {"x": arguments[0], "z": torch.full((40,), k)}
        ours = row_log_joint(program.model, rows)
        np.testing.assert_allclose(ours.detach(), table[:, k], **TIGHT)
        theirs = row_log_joint(poutine.condition(pair.model, {"z": rows["z"]}), *arguments)
        np.testing.assert_allclose(ours.detach(), theirs, **TIGHT)


@pytest.mark.parametrize("exact_guide", [True, False])
def test_the_declared_mixture_has_the_hand_written_bound(mixture, exact_guide):
    pair, arguments, program = mixture
    stock = TraceEnum_ELBO(max_plate_nesting=1)
    theirs = stock.loss(pair.model, pair.guide if exact_guide else lambda *_: None, *arguments)
    rows = {"x": arguments[0]}
    for objective in (stock, TraceableELBO()):
        np.testing.assert_allclose(objective.loss(program.model, program.guide, rows), theirs, **TIGHT)


@pytest.fixture
def autoencoder():
    """Both networks' modules in float64, and the declared autoencoder with the same weights."""
    torch.manual_seed(0)
    pair = hand_written("vae")
    decoder, encoder = pair.Decoder(2, 6, 3).double(), pair.Encoder(3, 5, 2).double()
    rng = np.random.default_rng(0)
    x = rng.normal(size=(40, 3))
    x = (x - x.mean(0)) / x.std(0)  # the declared encoder centres and scales; the hand-written one does not
    spec = read_spec("vae")
    for path, value in {
        "z.dim": 2,
        "guide.z.dim": 2,
        "x.loc.hidden": [6],
        "guide.z.loc.hidden": [5],
    }.items():
        spec = spec.replace(path, value)
    program = compile_spec(spec, {"x": x}, dtype=torch.float64)
    state = dict(program.state_dict())
    for network, path in (
        (decoder, "generative.layers.x:loc"),
        (encoder, "recognition.layers.z:loc"),
    ):
        for i, layer in enumerate((network[0], network[2])):
            state[f"{path}.weights.{i}"], state[f"{path}.biases.{i}"] = layer.weight, layer.bias
    program.load_state_dict(state)
    data = torch.tensor(x)
    return (lambda _: pair.model(data, decoder)), (lambda _: pair.guide(data, encoder)), {"x": data}, program


def test_the_declared_autoencoder_has_the_hand_written_log_joint(autoencoder):
    model, _, rows, program = autoencoder
    z = torch.randn(40, 2, dtype=torch.float64)
    theirs = row_log_joint(poutine.condition(model, {"z": z}), rows)
    np.testing.assert_allclose(
        row_log_joint(program.model, rows | {"z": z}).detach(), theirs.detach(), **TIGHT
    )


@pytest.mark.parametrize("objective", [Trace_ELBO, TraceMeanField_ELBO, TraceableELBO])
def test_the_declared_autoencoder_has_the_hand_written_bound_at_the_same_seed(autoencoder, objective):
    model, guide, rows, program = autoencoder
    stock = Trace_ELBO if objective is TraceableELBO else objective
    losses = []
    for elbo, pair in ((stock(), (model, guide)), (objective(), (program.model, program.guide))):
        torch.manual_seed(1)
        losses.append(elbo.loss(*pair, rows))
    np.testing.assert_allclose(losses[1], losses[0], **TIGHT)
