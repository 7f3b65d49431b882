"""Fits made by hand: parameters are written down, so that oracles need no fitting."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from ppl_gen.certify.certificate import Certificate, Line
from ppl_gen.data.reading import read_table
from ppl_gen.declare.nodes import Categorical, MultivariateNormal, Normal
from ppl_gen.declare.spec import Spec
from ppl_gen.declare.terms import By, Linear
from ppl_gen.infer.algorithms import EM, SVI, described
from ppl_gen.infer.em import run_em
from ppl_gen.infer.given import given_state
from ppl_gen.infer.run import Mode, Run
from ppl_gen.infer.status import Status
from ppl_gen.program.program import compile_spec
from ppl_gen.results.fit import Fit

CERTIFICATE = Certificate(
    (Line("gap", True, 0.0, 1e-9, "zero"), Line("hits", None, float("nan"), None, "no"))
)

Build = Callable[..., Fit]


def as_fit(spec: Spec, data: Any, state: Mapping[str, Any], *, dtype: torch.dtype | None = None) -> Fit:
    """A Fit whose state is its program's own, with `state` written over it by path."""
    table = read_table(data, spec)
    program = compile_spec(spec, table.schema, dtype=dtype)
    own = program.state_dict()
    assert set(state) <= set(own), sorted(own)
    # np.asarray keeps written numbers in double precision
    program.load_state_dict(own | {path: torch.as_tensor(np.asarray(value)) for path, value in state.items()})
    run = Run(
        program.state_dict(),
        (-50.0, float("nan"), -40.25),
        Status.EPOCHS_DONE,
        (Mode(-40.25, 1, (0.1, 0.9)),),
    )
    algorithm = described(SVI(epochs=3))
    return Fit(program, run, algorithm, 3, table.n_units, -40.25, -41.0, CERTIFICATE, {"torch": "2"}, table)


@pytest.fixture
def by_path() -> Build:
    """(spec, data, unconstrained values by path) → a Fit."""
    return as_fit


@pytest.fixture
def by_hand() -> Build:
    """(spec, data, natural parameters) → a Fit; tables only."""

    def build(spec: Spec, data: Any, parameters: Mapping[str, Mapping[str, Any]]) -> Fit:
        fit = as_fit(spec, data, {})
        fit.program.load_state_dict(given_state(fit.program, parameters))
        return replace(fit, run=replace(fit.run, state=fit.program.state_dict()))

    return build


@pytest.fixture
def by_em() -> Build:
    """(spec, data) → a Fit of EM."""

    def build(spec: Spec, data: Any, **options: Any) -> Fit:
        fit, algorithm = as_fit(spec, data, {}), EM(**{"restarts": 2, **options})
        assert fit.data is not None
        run = run_em(fit.program, fit.data, algorithm)
        fit.program.load_state_dict(run.state)
        best = run.history[-1]
        return replace(fit, run=run, algorithm=described(algorithm), log_likelihood=best, elbo=best)

    return build


MIXTURE = {
    "z": {"probs": [0.2, 0.5, 0.3]},
    "x": {
        "loc": [[0.0, 0.0], [2.0, 1.0], [-1.0, 3.0]],
        "cov": [[[1.0, 0.3], [0.3, 0.5]], [[0.8, -0.2], [-0.2, 1.5]], [[2.0, 0.0], [0.0, 0.3]]],
    },
}


@pytest.fixture
def mixture(by_hand: Build) -> Fit:
    """A full-covariance mixture of three classes, 40 rows."""
    spec = Spec(model={"z": Categorical(3), "x": MultivariateNormal(loc=By("z"), cov=By("z"))})
    return by_hand(spec, {"x": np.random.default_rng(0).normal(1, 2, (40, 2))}, MIXTURE)


WEIGHT = np.array([[1.0, 0.5], [-0.4, 1.2], [0.3, 0.8]])
BIAS = np.array([0.5, -1.0, 2.0])


@pytest.fixture
def affine_vae() -> Fit:
    """x = W z + b + 0.5 ε with a guide that is good, not exact: scale 0.6, and means of half the rotation."""
    guide = {"z": Normal(2, loc=Linear("x"), scale=Linear("x"))}  # written, or the exact posterior is asked
    spec = Spec(
        model={"z": Normal(2, loc=0, scale=1), "x": Normal(3, loc=Linear("z"), scale=0.5)}, guide=guide
    )
    x = np.random.default_rng(1).normal(0, 1, (30, 2)) @ WEIGHT.T + BIAS
    x += 0.5 * np.random.default_rng(2).normal(0, 1, x.shape)
    gain = WEIGHT.T @ np.linalg.inv(WEIGHT @ WEIGHT.T + 0.25 * np.eye(3))
    state = {
        "generative.layers.x:loc.weight": WEIGHT,
        "generative.layers.x:loc.bias": BIAS,
        "recognition.layers.z:loc.weight": gain,
        "recognition.layers.z:loc.bias": -gain @ BIAS,
        "recognition.layers.z:scale.weight": np.zeros((2, 3)),
        "recognition.layers.z:scale.bias": np.log([0.6, 0.6]),
    }
    return as_fit(spec, {"x": x}, state, dtype=torch.float64)


CLASSES = {"probs": np.array([0.3, 0.7]), "loc": np.array([-1.5, 1.0]), "scale": np.array([0.5, 1.0])}
LOADING = np.array([1.0, -0.5])


def _gm_state() -> dict[str, Any]:
    return {
        "generative.layers.c:probs.table": np.log(CLASSES["probs"]),
        "generative.layers.z:loc.table": CLASSES["loc"][:, None],
        "generative.layers.z:scale.table": np.log(CLASSES["scale"])[:, None],
        "generative.layers.x:loc.weight": LOADING[:, None],
        "generative.layers.x:loc.bias": np.zeros(2),
    }


GM_MODEL = {
    "c": Categorical(2),
    "z": Normal(1, loc=By("c"), scale=By("c")),
    "x": Normal(2, loc=Linear("z"), scale=0.7),
}
GM_ROWS = {"x": np.random.default_rng(3).normal(0, 1, (8, 1)) * LOADING + 0.2}


@pytest.fixture
def gm_vae() -> Fit:
    """Classes above a continuous latent, their guide derived: it names z only."""
    state = _gm_state() | {
        "recognition.layers.z:loc.weight": [[0.6, -0.3]],
        "recognition.layers.z:loc.bias": [0.0],
        "recognition.layers.z:scale.weight": [[0.0, 0.0]],
        "recognition.layers.z:scale.bias": [0.0],
    }
    return as_fit(Spec(model=GM_MODEL), GM_ROWS, state, dtype=torch.float64)


@pytest.fixture
def gm_vae_named() -> Fit:
    """The same model with a guide that names c too: q(c | x) q(z | x, c)."""
    guide = {
        "c": Categorical(2, logits=Linear("x")),
        "z": Normal(1, loc=Linear("x", by="c"), scale=By("c")),
    }
    state = _gm_state() | {
        "recognition.layers.c:logits.weight": [[0.8, 0.1]],
        "recognition.layers.c:logits.bias": [0.4],
        "recognition.layers.z:loc.weight": [[[0.5, -0.2]], [[0.7, -0.3]]],
        "recognition.layers.z:loc.bias": [[-0.2], [0.1]],
        "recognition.layers.z:scale.table": [[-0.5], [-0.3]],
    }
    return as_fit(Spec(model=GM_MODEL, guide=guide), GM_ROWS, state, dtype=torch.float64)
