"""Eager, traced and compiled are three ways to run one step: the numbers, the noise and the errors agree."""

from __future__ import annotations

import weakref

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch

from ppl_gen.data.reading import read_table
from ppl_gen.declare.files import read_spec
from ppl_gen.declare.nodes import Bernoulli, Categorical, MultivariateNormal, Normal, Poisson
from ppl_gen.declare.spec import Spec
from ppl_gen.declare.terms import By, Linear
from ppl_gen.errors import FitError
from ppl_gen.infer.algorithms import EM, SVI
from ppl_gen.infer.em import run_em
from ppl_gen.infer.steps import expectation_step
from ppl_gen.infer.svi import run_svi
from ppl_gen.program.families.bernoulli import BernoulliVector
from ppl_gen.program.families.categorical import CategoricalVector
from ppl_gen.program.families.multivariate_normal import CholeskyNormal
from ppl_gen.program.families.normal import DiagonalNormal
from ppl_gen.program.families.poisson import PoissonVector
from ppl_gen.program.lowering import Lowered, pyro_scope
from ppl_gen.program.program import compile_spec

X = np.random.default_rng(0).normal(size=(30, 2)) + 4 * (np.arange(30) % 2)[:, None]


def noisy(x: torch.Tensor) -> torch.Tensor:
    with pyro.plate("rows", x.shape[0]):
        return pyro.sample("e", dist.Normal(x, 1.0))


def test_a_traced_step_is_the_eager_one_to_the_last_bit():
    program = compile_spec("gaussian_mixture", {"x": X})
    step, ones = expectation_step(program), torch.ones(30, dtype=torch.float64)
    state = {path: torch.randn_like(value) for path, value in program.state_dict().items()}
    rows = {"x": torch.tensor(X)}
    value, statistics = Lowered(step, "eager")(state, rows, ones)
    traced = Lowered(step, "traced")
    for _ in range(2):
        again, others = traced(state, rows, ones)
        assert torch.equal(value, again)
        assert all(torch.equal(statistics[name], others[name]) for name in statistics)


def test_other_shapes_get_a_graph_of_their_own():
    step = Lowered(lambda x: x.sum() / x.shape[0], "traced")
    assert float(step(torch.full((200,), 3.0))) == 3.0
    assert float(step(torch.full((1,), 3.0))) == 3.0
    assert float(step(torch.full((1,), 3.0, dtype=torch.float64))) == 3.0


def test_a_tensor_that_the_step_captured_is_refused_instead_of_frozen():
    captured = torch.ones(3)
    with pytest.raises(FitError, match=r"captured the tensor .* of shape \(3,\) as a constant"):
        Lowered(lambda x: x + captured, "traced")(torch.zeros(3))


def test_a_captured_number_stays_what_it_was_when_the_step_was_recorded():
    captured = torch.tensor(2.0)
    step = Lowered(lambda x: x * captured, "traced")
    assert float(step(torch.ones(()))) == 2.0


@pytest.mark.parametrize(
    "reading",
    [
        lambda x: x * x.sum().item(),
        lambda x: x if x.sum() > 0 else -x,
        lambda x: x[x > 0].sum(),
        lambda x: x.nonzero().double().sum(),
        lambda x: x * torch.rand(()).item(),
    ],
    ids=["item", "branch", "mask", "nonzero", "noise"],
)
def test_a_step_that_reads_a_value_is_refused_instead_of_repeating_it(reading):
    with pytest.raises(FitError, match="reads the value of a tensor"):
        Lowered(reading, "traced")(torch.ones(3))


def test_what_no_input_decides_may_be_read():
    step = Lowered(lambda x: x * torch.arange(4).max().item(), "traced")
    assert torch.equal(step(torch.ones(2)), torch.full((2,), 3.0))


def in_place(x: torch.Tensor) -> torch.Tensor:
    memory = x.clone()
    before = memory.exp()
    memory.view(-1)[0].add_(1.0)
    blank = torch.zeros(3)
    blank.view(3)[1:].fill_(5.0)
    return before + memory.exp() + blank


def scattered(x: torch.Tensor) -> torch.Tensor:
    total = torch.func.grad(lambda y: (y[..., 1] * y.index_select(-1, torch.arange(2)).sum(-1)).sum())
    return torch.func.vmap(total)(x.expand(2, 3))


def curved(x: torch.Tensor) -> torch.Tensor:
    slope = torch.func.grad(lambda y: (y.tril() ** 3).sum() * y[0, 1] + y.diagonal().exp().sum())
    along = torch.func.grad(lambda y, d: (slope(y) * d).sum())
    directions = torch.eye(4).reshape(4, 2, 2)
    return torch.func.vmap(lambda d: along(x[:2, None] * x[:2], d))(directions)


def shaped(x: torch.Tensor) -> dict[str, torch.Tensor]:
    same = x.index_select(0, torch.arange(3))
    chosen = torch.where(torch.ones(3) > 0, x, 0.0)
    column = x.unsqueeze(-1).expand(3, 2).permute(1, 0).unsqueeze(0).squeeze(0).reshape(6)
    return {"same": same, "chosen": chosen, "column": column, "ones": torch.ones_like(x) * 2, "x": x}


@pytest.mark.parametrize("step", [in_place, scattered, curved, shaped], ids=lambda f: f.__name__)
@pytest.mark.parametrize("steady", [(), (1,)], ids=["whole", "split"])
def test_whatever_a_step_does_to_memory_its_graph_does_too(step, steady):
    lowered = Lowered(lambda x, y: (step(x), step(y)), "traced", steady=steady)
    fixed = torch.tensor([0.5, -0.5, 1.0])
    for x in (torch.tensor([0.1, 0.2, 0.3]), torch.tensor([-1.0, 2.0, 0.0])):
        kept = x.clone()
        found, wanted = lowered(x, fixed), (step(x.clone()), step(fixed.clone()))
        pairs = zip(
            torch.utils._pytree.tree_leaves(found), torch.utils._pytree.tree_leaves(wanted), strict=True
        )
        assert all(torch.equal(a, b) and a.shape == b.shape for a, b in pairs)
        assert torch.equal(x, kept)


def test_a_result_is_the_callers_own_to_change():
    step = Lowered(shaped, "traced")
    x = torch.ones(3)
    for name in ("same", "chosen", "column", "ones"):
        step(x)[name].add_(1.0)
    assert torch.equal(step(x)["ones"], torch.full((3,), 2.0))
    assert torch.equal(x, torch.ones(3))


def test_recording_holds_on_to_nothing_that_the_step_let_go():
    alive = []

    def step(x: torch.Tensor) -> torch.Tensor:
        for _ in range(5):
            x = x + 1
            alive.append(weakref.ref(x))
        return x.sum() + sum(own() is not None for own in alive)

    assert float(Lowered(step, "traced")(torch.zeros(2))) == 11.0


def test_recording_takes_no_noise_from_the_run():
    x = torch.zeros(4)
    torch.manual_seed(0)
    with pyro_scope():
        eager = [noisy(x) for _ in range(3)]
    torch.manual_seed(0)
    step = Lowered(noisy, "traced")
    traced = [step(x) for _ in range(3)]
    assert all(torch.equal(a, b) for a, b in zip(eager, traced, strict=True))
    assert not torch.equal(traced[0], traced[1])


def test_lowering_leaves_pyros_settings_and_store_alone():
    pyro.clear_param_store()
    pyro.param("mine", torch.ones(1))
    with pyro.validation_enabled(True):
        Lowered(noisy, "traced")(torch.zeros(2))
        Lowered(noisy, "eager")(torch.zeros(2))
        assert pyro.poutine.util.is_validation_enabled()
    assert list(pyro.get_param_store().keys()) == ["mine"]
    pyro.clear_param_store()


# One program: EM and SVI, eager, traced or compiled, have no formula of their own beside the distribution's.
Z = {"z": Categorical(2)}
COUNTS = np.random.default_rng(1).poisson(4, (30, 1)).astype(float)
COINS = np.random.default_rng(2).integers(0, 2, (30, 3)).astype(float)
FAMILIES = {
    CholeskyNormal: (Z | {"x": MultivariateNormal(loc=By("z"), cov=By("z"))}, X),
    DiagonalNormal: (Z | {"x": Normal(loc=By("z"), scale=By("z"))}, X),
    PoissonVector: (Z | {"x": Poisson(rate=By("z"))}, COUNTS),
    BernoulliVector: (Z | {"x": Bernoulli(probs=By("z"))}, COINS),
    CategoricalVector: (Z | {"x": Categorical(probs=By("z"))}, COINS.astype(int)),
}
MIXED = {"z": Categorical(2), "x": Normal(loc=Linear("z"), scale=1)}


def run(model: dict[str, object], x: np.ndarray, how: str, by_em: bool) -> float:
    """The objective after one step or epoch."""
    spec = Spec(model=model)
    table = read_table({"x": x}, spec)
    program = compile_spec(spec, table.schema)
    if by_em:
        done = run_em(program, table, EM(max_steps=1, restarts=1, lowering=how))
    else:
        done = run_svi(program, table, SVI(epochs=1, lowering=how))
    assert done.lowering == how
    return done.history[-1]


def half_again(monkeypatch: pytest.MonkeyPatch, family: type) -> None:
    stock = family.log_prob
    monkeypatch.setattr(family, "log_prob", lambda self, value: 1.5 * stock(self, value))


@pytest.mark.parametrize("by_em", [True, False], ids=["EM", "SVI"])
@pytest.mark.parametrize("family", FAMILIES, ids=lambda f: f.__name__)
def test_replacing_a_density_changes_every_result_alike(monkeypatch, family, by_em):
    model, x = FAMILIES[family]
    before = run(model, x, "eager", by_em)
    half_again(monkeypatch, family)
    eager, traced = (run(model, x, how, by_em) for how in ("eager", "traced"))
    assert abs(eager - before) > 1
    assert eager == traced


@pytest.mark.filterwarnings("ignore")  # inductor warns of itself, and fails where that is an error
@pytest.mark.parametrize("by_em", [True, False], ids=["EM", "SVI"])
def test_replacing_a_density_changes_the_compiled_result_too(monkeypatch, by_em):
    model, x = FAMILIES[DiagonalNormal]
    half_again(monkeypatch, DiagonalNormal)
    eager, compiled = (run(model, x, how, by_em) for how in ("eager", "compiled"))
    assert compiled == pytest.approx(eager, rel=1e-10)


def test_a_broken_compiler_is_a_log_line_and_the_traced_step_runs(monkeypatch, caplog):
    from torch import _inductor

    def broken(*args: object, **kwargs: object) -> None:
        raise RuntimeError("no compiler here")

    monkeypatch.setattr(_inductor, "compile", broken)
    step = Lowered(lambda x: 2 * x, "compiled")
    assert float(step(torch.ones(1))) == 2
    assert step.executed == "traced"
    assert "no compiler here" in caplog.text


def test_svi_draws_the_same_noise_however_it_is_lowered():
    spec = read_spec("vae_diagonal")
    table = read_table({"x": X}, spec)
    histories = {}
    for how in ("eager", "traced"):
        program = compile_spec(spec, table.schema)
        done = run_svi(program, table, SVI(epochs=2, batch_size=16, lowering=how), seed=3)
        histories[how] = (done.history, done.state)
    assert histories["eager"][0] == histories["traced"][0]
    for path, value in histories["eager"][1].items():
        assert torch.equal(value, histories["traced"][1][path])
