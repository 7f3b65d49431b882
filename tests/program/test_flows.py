"""Flows as guides: their density is that of their draws, and where a posterior is curved they come nearer to it."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from ppl_gen.data.reading import read_table
from ppl_gen.declare.flow import KINDS, Flow
from ppl_gen.declare.nodes import MultivariateNormal, Normal
from ppl_gen.declare.spec import Spec
from ppl_gen.declare.terms import Free, Linear, Net, Term
from ppl_gen.infer.algorithms import SVI
from ppl_gen.infer.elbo import TraceableELBO
from ppl_gen.infer.svi import run_svi
from ppl_gen.program.program import Program, compile_spec
from ppl_gen.results.queries import posterior_means

X = np.random.default_rng(0).normal(size=(6, 2))


def flow(kind: str, dim: int, context: Term, far: float = 0.4) -> tuple[Program, dict[str, Tensor]]:
    """A flow with numbers far from where it begins, in float64, and rows."""
    guide = Flow(
        dim, loc=Linear("x"), scale=Free(), context=context, kind=kind, hidden=[8], activation="tanh"
    )
    model = {"z": Normal(dim, loc=0, scale=1), "x": Normal(2, loc=Linear("z"), scale=1)}
    program = compile_spec(Spec(model=model, guide={"z": guide}), {"x": X}, dtype=torch.float64)
    generator = torch.Generator().manual_seed(4)
    with torch.no_grad():
        for parameter in program.parameters():
            parameter.add_(far * torch.randn(parameter.shape, generator=generator, dtype=torch.float64))
    return program, program.tensors({"x": X})


EVERY = [(kind, dim, context) for kind in KINDS for dim in (2, 3) for context in (Free(), Linear("x"))]
EVERY += [("planar", 1, Linear("x"))]


@pytest.mark.parametrize(("kind", "dim", "context"), EVERY, ids=str)
def test_the_density_is_that_of_the_draws_by_the_change_of_variables(kind, dim, context):
    program, rows = flow(kind, dim, context)
    guide = program.recognition.distribution("z", dict(rows))
    with torch.no_grad():
        torch.manual_seed(1)
        drawn = guide.expand([6]).rsample()
        remembered = guide.log_prob(drawn)
        computed = guide.log_prob(drawn.clone())  # another tensor: the way back is computed
    torch.testing.assert_close(remembered, computed, rtol=0, atol=1e-12)
    base = guide.base.expand([6])
    torch.manual_seed(1)
    start = base.rsample().detach()

    def carried(x: Tensor) -> Tensor:
        for transform in program.recognition.distribution("z", dict(rows)).transforms:
            x = transform(x)
        return x.detach()

    torch.testing.assert_close(carried(start), drawn, rtol=1e-12, atol=1e-12)
    step, jacobian = 1e-5, torch.zeros(6, dim, dim, dtype=torch.float64)
    for j in range(dim):  # central differences: no derivative of torch's takes part
        shift = step * torch.eye(dim, dtype=torch.float64)[j]
        jacobian[:, :, j] = (carried(start + shift) - carried(start - shift)) / (2 * step)
    log_base = torch.distributions.Normal(base.loc, base.scale).log_prob(start).sum(-1).detach()
    expected = log_base - torch.linalg.slogdet(jacobian)[1]
    # Central differences are good to step², and what rounding leaves of 1e-16/step.
    torch.testing.assert_close(remembered, expected, rtol=0, atol=1e-7)


@pytest.mark.parametrize("kind", KINDS)
def test_the_density_holds_as_much_of_a_square_as_the_draws_do(kind):
    program, rows = flow(kind, 2, Linear("x"), far=0.2)
    side = torch.linspace(-8, 8, 241, dtype=torch.float64)
    grid = torch.cartesian_prod(side, side)
    with torch.no_grad():
        torch.manual_seed(2)
        at = program.recognition.distribution("z", {"x": rows["x"][:1]})
        inside = (at.sample((20_000,)).abs() < 8).all(-1).double().mean().item()
        at = program.recognition.distribution("z", {"x": rows["x"][:1].expand(len(grid), 2)})
        total = at.log_prob(grid).exp().sum().item() * (side[1] - side[0]).item() ** 2
    assert inside > 0.9
    assert total == pytest.approx(inside, abs=5 * math.sqrt(inside * (1 - inside) / 20_000) + 2e-3)


def test_the_posterior_mean_is_that_of_its_draws():
    program, rows = flow("affine_autoregressive", 2, Linear("x"))
    table = read_table({"x": X}, program.spec, schema=program.schema)
    found = posterior_means(program, table, draws=1, seed=0)
    with torch.no_grad():
        torch.manual_seed(5)
        drawn = program.recognition.distribution("z", dict(rows)).expand([6]).sample((20_000,))
    error = (drawn.std(0) * math.sqrt(1 / 1024 + 1 / 20_000)).numpy()
    assert (np.abs(found - drawn.mean(0).numpy()) < 5 * error).all()
    np.testing.assert_array_equal(found, posterior_means(program, table, draws=1, seed=0))


@pytest.mark.parametrize("kind", KINDS)
def test_a_recorded_step_of_a_flow_is_the_eager_one_to_the_bit(kind):
    program, _ = flow(kind, 2, Linear("x"))
    table = read_table({"x": X}, program.spec)
    runs = [
        run_svi(
            compile_spec(program.spec, table.schema),
            table,
            SVI(epochs=3, batch_size=4, particles=2, lowering=how),
        )
        for how in ("eager", "traced")
    ]
    assert runs[1].lowering == "traced"
    assert runs[0].history == runs[1].history
    for path, value in runs[0].state.items():
        assert torch.equal(value, runs[1].state[path]), path


class Bent(nn.Module):
    """2(z₂ − z₁² + 1), which makes of a normal prior a crescent."""

    def forward(self, z: Tensor) -> Tensor:
        return 2 * (z[..., 1:] - z[..., :1] ** 2 + 1)


class Squared(nn.Module):
    """2z² − 2: two values of z are as good as one another."""

    def forward(self, z: Tensor) -> Tensor:
        return 2 * z**2 - 2


def reached(model: dict, guide: dict, data: np.ndarray, epochs: int = 800) -> tuple[float, float]:
    """The ELBO a row of a fitted guide over 20 000 draws, and its standard error."""
    spec = Spec(model=model, guide=guide)
    table = read_table({"x": data}, spec)
    program = compile_spec(spec, table.schema)
    run = run_svi(program, table, SVI(epochs=epochs, particles=32, learning_rate=1e-2, schedule="cosine"))
    assert run.status.usable
    program.load_state_dict(run.state)
    torch.manual_seed(9)
    with torch.no_grad():
        draws = TraceableELBO(20_000).log_weights(program.model, program.guide, program.tensors(table.arrays))
    return draws.mean().item(), draws.mean(1).std().item() / math.sqrt(20_000)


def log_evidence(mean: np.ndarray, prior: np.ndarray, x: float, scale: float, cell: float) -> float:
    """Log p(x) by the sum over a grid of z."""
    log_p = prior - 0.5 * ((x - mean) / scale) ** 2 - math.log(scale) - 0.5 * math.log(2 * math.pi)
    return float(np.logaddexp.reduce(log_p.ravel()) + math.log(cell))


def test_on_a_crescent_a_flow_comes_nearer_than_any_normal():
    model = {"z": Normal(2, loc=0, scale=1), "x": Normal(1, loc=Net(Bent(), "z"), scale=0.5)}
    data = np.zeros((1, 1))
    side = np.linspace(-8, 8, 1601)
    a, b = np.meshgrid(side, side)
    prior = -0.5 * (a**2 + b**2) - math.log(2 * math.pi)
    exact = log_evidence(2 * (b - a**2 + 1), prior, 0.0, 0.5, (side[1] - side[0]) ** 2)
    diagonal, error_d = reached(model, {"z": Normal(2)}, data)
    full, error_f = reached(model, {"z": MultivariateNormal(2, scale_tril=Free())}, data)
    found, error = reached(model, {"z": Flow(2, hidden=[16], activation="tanh")}, data)
    assert found < exact + 5 * error
    assert found > max(diagonal, full) + 5 * math.hypot(error, max(error_d, error_f))
    assert exact - found < 0.5 * (exact - max(diagonal, full))


def test_of_two_modes_a_flow_reaches_both():
    model = {"z": Normal(1, loc=0, scale=1), "x": Normal(1, loc=Net(Squared(), "z"), scale=1)}
    data = np.zeros((1, 1))
    side = np.linspace(-8, 8, 16_001)
    prior = -0.5 * side**2 - 0.5 * math.log(2 * math.pi)
    exact = log_evidence(2 * side**2 - 2, prior, 0.0, 1.0, side[1] - side[0])
    normal, error_n = reached(model, {"z": Normal(1)}, data)
    found, error = reached(model, {"z": Flow(1, kind="planar", transforms=8)}, data)
    assert normal + 5 * math.hypot(error, error_n) < found < exact + 5 * error
