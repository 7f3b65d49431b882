"""Classes whose probabilities depend on columns: concomitant variables, mixtures of experts, networks as gates."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.optimize import minimize, rosen, rosen_der
from scipy.special import expit, log_softmax, logsumexp
from scipy.stats import norm

from ppl_gen.data.sources import Rows
from ppl_gen.declare.nodes import Categorical, Input, Normal
from ppl_gen.declare.spec import Spec
from ppl_gen.declare.terms import MLP, By, Linear
from ppl_gen.errors import FitError
from ppl_gen.fitting import fit
from ppl_gen.infer.algorithms import EM
from ppl_gen.infer.enumeration import log_marginal
from ppl_gen.infer.lbfgs import climb
from ppl_gen.infer.ordering import permuted
from ppl_gen.program.program import compile_spec
from ppl_gen.resampling import bootstrap
from ppl_gen.results.fit import Fit

sm = pytest.importorskip("statsmodels.api")

R = np.random.default_rng(3)
N = 300
U = R.normal(size=(N, 2))
SCORES = np.column_stack([np.zeros(N), 0.3 + 1.2 * U[:, 0], -0.5 - U[:, 1]])
CLASS = (SCORES + R.gumbel(size=(N, 3))).argmax(1)
X = R.normal(np.array([0.0, 3.0, 7.0])[CLASS], 1.0)[:, None]
GATED = Spec(model={"u": Input(2), "z": Categorical(3, logits=Linear("u")), "x": Normal(1, loc=By("z"))})


def test_with_known_classes_the_gate_is_statsmodels_multinomial_logit() -> None:
    peer = sm.MNLogit(CLASS, sm.add_constant(U)).fit(disp=0, method="newton", tol=1e-12)
    model = Spec(model={"u": Input(2), "z": Categorical(3, logits=Linear("u"))})
    found = fit(model, {"u": 1e4 + 300 * U, "z": CLASS}, EM(tol=1e-13))
    logits = found.parameters["z"]["logits"]
    np.testing.assert_allclose(300 * logits["weight"], peer.params[1:].T, rtol=1e-6)
    np.testing.assert_allclose(logits["bias"] + logits["weight"].sum(1) * 1e4, peer.params[0], rtol=1e-6)
    assert found.log_likelihood == pytest.approx(peer.llf, rel=1e-10)


def negative(theta: np.ndarray) -> float:
    """−Σ log Σ_k softmax(W u + b)_k N(x; μ_k, σ)."""
    gate = np.column_stack([np.zeros(N), theta[:2] + U @ theta[2:6].reshape(2, 2).T])
    joint = log_softmax(gate, 1) + norm.logpdf(X, theta[6:9], np.exp(theta[9]))
    return float(-logsumexp(joint, axis=1).sum())


def test_concomitant_variables_are_at_the_maximum_a_general_optimiser_finds() -> None:
    found = fit(GATED, {"u": U, "x": X}, EM(tol=1e-12, restarts=6))
    p = found.parameters
    gate = p["z"]["logits"]
    theta = np.concatenate(
        [gate["bias"], gate["weight"].ravel(), p["x"]["loc"].ravel(), np.log(p["x"]["scale"].ravel())]
    )
    assert -negative(theta) == pytest.approx(found.log_likelihood, rel=1e-10)
    climbed = minimize(negative, theta, method="BFGS")
    assert -climbed.fun <= found.log_likelihood + 1e-7
    assert np.diff(found.history).min() >= -1e-9 * abs(found.log_likelihood)
    assert found.certificate.ok, found.certificate
    # Classes come by decreasing weight, whichever was the reference where EM began; so that starts agree.
    shares = found.predict_proba({"u": U, "x": X}).mean(0)
    assert (np.diff(shares) <= 0).all()
    assert len(found.run.modes) == 1
    assert found.run.modes[0].hits > 1


@pytest.mark.parametrize("gate", [Linear("u"), MLP("u", [3])], ids=str)
def test_classes_in_another_order_are_the_same_law(gate: Linear | MLP) -> None:
    spec = Spec(model={**GATED.model, "z": Categorical(3, logits=gate)})
    program = compile_spec(spec, {"u": U, "x": X}, dtype=torch.float64)
    with torch.no_grad():
        for parameter in program.parameters():
            parameter.copy_(torch.from_numpy(R.normal(size=parameter.shape)))
    state, rows = dict(program.state_dict()), program.tensors({"u": U, "x": X})
    moved = permuted(program.generative, state, "z", torch.tensor([2, 0, 1]))
    assert not torch.equal(moved["generative.layers.x:loc.table"], state["generative.layers.x:loc.table"])
    torch.testing.assert_close(log_marginal(program, moved, rows), log_marginal(program, state, rows))


# A ring of one class within the other: no linear gate can tell where which is likely.
INSIDE = R.random(N) < expit(4 - 1.5 * (U**2).sum(1))
RING = {"u": U, "x": R.normal(np.where(INSIDE, 0.0, 3.0), 1.0)[:, None]}
FEW = EM(restarts=2, max_steps=100)


def ring(gate: Linear | MLP) -> Fit:
    spec = Spec(
        model={"u": Input(2), "z": Categorical(2, logits=gate), "x": Normal(1, loc=By("z"), scale=By("z"))}
    )
    return fit(spec, RING, FEW)


@pytest.mark.filterwarnings("ignore:stopped at max_steps")
@pytest.mark.parametrize("hidden", [4, 60])
def test_a_network_as_gate_rises_at_every_step_and_beats_a_linear_one(hidden: int) -> None:
    found, straight = ring(MLP("u", [hidden], activation="tanh")), ring(Linear("u"))
    assert found.run.notes[0] == "EM: as asked"
    assert np.diff(found.history).min() >= -1e-9 * abs(found.log_likelihood)
    assert found.log_likelihood > straight.log_likelihood + 10
    assert found.certificate.ok, found.certificate
    p, r = found.parameters["x"], found.predict_proba(RING)
    # The closed M-steps beside the network's are at their own maximum given the responsibilities.
    np.testing.assert_allclose(p["loc"][:, 0], (r.T @ RING["x"])[:, 0] / r.sum(0), atol=0.02)


def test_rows_that_are_not_all_in_memory_are_refused_for_networks(tmp_path) -> None:
    spec = Spec(model={"u": Input(2), "z": Categorical(2, logits=MLP("u", [3])), "x": Normal(1, loc=By("z"))})
    for name, array in RING.items():
        np.save(tmp_path / f"{name}.npy", array)
    table = np.column_stack([RING["u"], RING["x"]])
    path = tmp_path / "rows.csv"
    np.savetxt(path, table, delimiter=",", header="u1,u2,x", comments="")
    columns = Spec(model=spec.model, columns={"u": ["u1", "u2"], "x": ["x"]})
    with pytest.raises(FitError, match="rows that stay in their files do not serve this model"):
        fit(columns, Rows(path), FEW)


@pytest.mark.filterwarnings("ignore:stopped at max_steps")
def test_a_bootstrap_of_a_network_is_refused_in_words() -> None:
    spec = Spec(model={"u": Input(2), "z": Categorical(2, logits=MLP("u", [3])), "x": Normal(1, loc=By("z"))})
    with pytest.raises(FitError, match="here the M-step of z, L-BFGS"):
        bootstrap(fit(spec, RING, EM(restarts=1, max_steps=2)), draws=2)


def test_the_climb_of_several_points_never_falls_and_ends_where_scipys_does() -> None:
    starts = np.array([[-1.2, 1.0, 0.5], [2.0, 2.0, 2.0], [0.0, 0.0, 0.0], [1.0, 1.0, 1.0]])

    def objective(points: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        values = [-rosen(point) for point in points.numpy()]
        return torch.tensor(values), torch.from_numpy(
            np.stack([-rosen_der(point) for point in points.numpy()])
        )

    points = torch.from_numpy(starts)
    for _ in range(20):
        moved = climb(objective, points, little=0.0)
        assert (objective(moved)[0] >= objective(points)[0]).all()
        points = moved
    np.testing.assert_allclose(points.numpy(), np.ones((4, 3)), atol=1e-6)  # the minimum is at (1, 1, 1)
    alone = climb(objective, torch.from_numpy(starts[:1]), little=0.0)
    together = climb(objective, torch.from_numpy(starts), little=0.0)
    np.testing.assert_allclose(alone[0], together[0], rtol=1e-9)


def test_a_network_in_the_place_of_a_location_takes_columns_far_from_zero() -> None:
    y = 1e5 + 300 * np.sin(2 * U[:, :1]) + R.normal(0, 30, (N, 1))
    spec = Spec(model={"u": Input(2), "y": Normal(1, loc=MLP("u", [6], activation="tanh"))})
    with np.errstate(all="ignore"):
        found = fit(spec, {"u": 1e4 + 300 * U, "y": y}, EM(max_steps=30))
    assert found.parameters["y"]["scale"].item() < 60  # of 300 · 0.7 for a constant, 30 at best
    assert np.diff(found.history).min() >= -1e-9 * abs(found.log_likelihood)
    assert found.certificate.ok, found.certificate
