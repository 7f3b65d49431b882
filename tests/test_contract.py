"""One contract for every declared model that is shipped."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pyro
import pytest
import torch
from pyro import poutine
from pyro.infer import Predictive, Trace_ELBO, TraceEnum_ELBO

from ppl_gen.data.reading import read_table
from ppl_gen.declare.files import read_spec
from ppl_gen.declare.spec import Spec
from ppl_gen.declare.terms import Linear
from ppl_gen.fitting import fit
from ppl_gen.infer.algorithms import EM, SVI
from ppl_gen.infer.elbo import TraceableELBO
from ppl_gen.infer.em import run_em
from ppl_gen.infer.enumeration import log_marginal
from ppl_gen.infer.importance import importance_log_likelihood
from ppl_gen.infer.route import em_obstacle
from ppl_gen.infer.svi import run_svi
from ppl_gen.program.program import Program, compile_spec
from ppl_gen.results.storage import load

MODELS = sorted(path.stem for path in (Path(__file__).parents[1] / "models").glob("*.yaml"))
N = 300

pytestmark = pytest.mark.parametrize("name", MODELS)


def example(name: str) -> dict[str, np.ndarray]:
    """Rows of the right kind for any of the models, in three clear groups."""
    random = np.random.default_rng(11)
    group = np.arange(N) % 3
    real = random.normal(size=(N, 2)) + 6 * group[:, None]
    if name == "mixed_types":
        return {
            "size": real[:, :1],
            "visits": random.poisson(1 + 9 * (group[:, None] > 0)).astype(float),
            "kind": np.where(random.uniform(size=N) < 0.8, group > 0, random.integers(0, 2, N)).astype(int),
        }
    if name == "latent_class":
        return {"x": (random.uniform(size=(N, 5)) < np.array([0.1, 0.5, 0.9])[group][:, None]).astype(int)}
    u = random.normal(size=(N, 2))
    line = np.where(group > 0, 1, -1) * (1.2 * u[:, 0] - 0.5) + 1
    if name in ("regression_mixture", "mixture_of_experts"):
        far = group > 0 if name == "regression_mixture" else u[:, 1] + 0.5 * random.normal(size=N) > 0
        return {"u": u, "y": np.where(far, line, 4 - line)[:, None] + 0.4 * random.normal(size=(N, 1))}
    if name == "poisson_regression_mixture":
        return {"u": u, "y": random.poisson(np.exp(line))[:, None].astype(float)}
    if name == "latent_class_covariates":
        often = np.where(u[:, :1] + 0.5 * random.normal(size=(N, 1)) > 0, 0.85, 0.2)
        return {"u": u, "x": (random.uniform(size=(N, 5)) < often).astype(int)}
    if name == "poisson_mixture":
        return {"x": random.poisson(1 + 5 * group[:, None], (N, 2)).astype(float)}
    if name == "negative_binomial_mixture":
        return {"x": random.negative_binomial(3, 0.6 - 0.45 * (group[:, None] > 0), (N, 2)).astype(float)}
    if name == "binomial_mixture":
        return {"x": random.binomial(10, 0.2 + 0.5 * (group[:, None] > 0), (N, 3)).astype(float)}
    if name in ("gamma_mixture", "exponential_mixture", "log_normal_mixture"):
        shape = 1 if name == "exponential_mixture" else 6
        return {"x": random.gamma(shape, 1 + 9 * (group[:, None] > 0), (N, 2))}
    if name.startswith("student_t_mixture"):
        return {"x": random.standard_t(4, size=(N, 2)) + 8 * (group[:, None] > 0)}
    if name in ("factor_analysis", "probabilistic_pca"):
        loadings = np.random.default_rng(12).normal(size=(2, 5))
        return {"x": random.normal(size=(N, 2)) @ loadings + random.normal(size=(N, 5))}
    if name == "vae_counts":
        size = random.uniform(50, 200, size=(N, 1))
        return {"log_size": np.log(size), "x": random.poisson(size * (1 + group[:, None]) / 60, (N, 3)) * 1.0}
    if name == "vae_mixed":
        return example("mixed_types")
    if name == "vae_conditional":
        return {"u": group.astype(float), "x": real}
    if name == "vae_supervised":
        return {"x": real, "y": np.where(random.uniform(size=N) < 0.5, group, np.nan)}
    if name == "vae_two_latents":
        return {"x": real, "y": real[:, :1] + random.normal(size=(N, 1))}
    if name == "semi_supervised_vae":
        return {"x": real, "y": np.where(random.uniform(size=N) < 0.3, group, np.nan)}
    if name in ("vae_bernoulli", "gm_vae"):
        return {"x": (random.uniform(size=(N, 6)) < 0.1 + 0.4 * group[:, None]).astype(float)}
    if name == "vae_convolutional":
        bright = (np.arange(64).reshape(8, 8) // 22 == group[:, None, None]) * 0.7 + 0.1
        return {"x": (random.uniform(size=(N, 8, 8)) < bright).reshape(N, 64).astype(float)}
    return {"x": real}


def prepared(name: str) -> tuple[Spec, Program, dict[str, np.ndarray], dict[str, torch.Tensor]]:
    spec, data = read_spec(name), example(name)
    program = compile_spec(spec, data, dtype=torch.float64)
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():  # tables start at 0, where gradients of a symmetric mixture may vanish
        for parameter in program.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype))
    return spec, program, data, program.tensors(read_table(data, spec).arrays)


def given(program: Program, data: dict[str, np.ndarray], n: int) -> dict[str, torch.Tensor]:
    """The Inputs of n rows: nothing for most models."""
    inputs = {name: np.resize(data[name], (n, *data[name].shape[1:])) for name in program.schema.roles.inputs}
    return program.tensors(inputs)


def discrete(program: Program) -> bool:
    return em_obstacle(program) is None


def sums(program: Program) -> bool:
    """Whether a discrete latent is enumerated, in the model or in the guide."""
    return bool(program.enumerated or any(draw.node.discrete for draw in program.recognition.draws.values()))


def test_its_density_has_a_number_for_every_row(name):
    _, program, _, rows = prepared(name)
    if discrete(program):
        values = log_marginal(program, dict(program.state_dict()), rows)
    else:
        values = TraceableELBO().per_row(program.model, program.guide, rows)
    assert values.shape == (N,)
    assert bool(values.isfinite().all())


def test_a_gradient_reaches_every_parameter(name):
    _, program, _, rows = prepared(name)
    if discrete(program):
        log_marginal(
            program, dict(program.named_parameters()) | dict(program.named_buffers()), rows
        ).sum().backward()
    else:
        TraceableELBO().differentiable_loss(program.model, program.guide, rows).backward()
    for path, parameter in program.named_parameters():
        assert parameter.grad is not None, path
        assert float(parameter.grad.abs().max()) > 0, path


def test_it_draws_without_data(name):
    _, program, data, _ = prepared(name)
    torch.manual_seed(0)
    drawn = program.model(given(program, data, 10), n=10)
    assert set(program.generative.draws) <= set(drawn)
    for node, value in drawn.items():
        assert len(value) == 10
        if node in data:
            assert value.shape[1:] == data[node].shape[1:]


def test_refitting_its_own_draws_recovers_it(name):
    spec, _, data, _ = prepared(name)
    table = read_table(data, spec)
    program = compile_spec(spec, table.schema)
    if not discrete(program):
        return  # a VAE's own test is below
    program.load_state_dict(run_em(program, table, EM(restarts=5)).state)
    truth = program.natural()
    torch.manual_seed(4)
    with torch.no_grad():
        values = program.model(given(program, data, 2000), n=2000)
        drawn = {key: value.numpy() for key, value in values.items() if key in data}
    generator = float(
        log_marginal(program, dict(program.state_dict()), program.tensors(drawn)).sum().detach()
    )
    generator += float(program.log_prior().detach())  # 0 without priors: it is the posterior that EM climbs
    again = read_table(drawn, spec)
    refitted = compile_spec(spec, again.schema)
    # From the generator EM climbs to the optimum nearby; from its own starts it must find one as high.
    near = run_em(refitted, again, EM(init=truth))
    assert near.history[-1] >= generator - 1e-6
    free = run_em(refitted, again, EM(restarts=10))
    assert free.history[-1] >= near.history[-1] - 1e-3
    refitted.load_state_dict(free.state)
    found = refitted.natural()
    # 2000 rows: some 600 a class, so a standard error of about 0.04 spreads; four of them.
    assert apart(spec, truth, found) < 0.16


def apart(spec: Spec, truth: dict[str, dict], found: dict[str, dict]) -> float:
    """The largest relative difference of two fits' parameters, their classes in the orders that are nearest."""
    tables = {key: isinstance(spec.nodes["z"].terms()[key], Linear) for key in truth["z"]}
    K = spec.nodes["z"].k

    def distance(order: tuple[int, ...]) -> float:
        worst = 0.0
        for node, parameters in truth.items():
            for key, value in parameters.items():
                term, other = spec.nodes[node].terms()[key], found[node][key]
                for one, two in zip(arrays(value), arrays(other), strict=True):
                    if node == "z" and tables[key]:
                        two = based(two, list(order))
                    elif node == "z" or "z" in term.parents():
                        two = two[list(order)]
                    if key in (
                        "df",
                        "total_count",
                    ):  # whose inverse is what data bound: 0 is the normal's, Poisson's
                        one, two = 1 / one, 1 / two
                    worst = max(worst, np.abs(two - one).max() / (1 + np.abs(one).max()))
        return worst

    return min(map(distance, itertools.permutations(range(K))))


def arrays(value: np.ndarray | dict[str, np.ndarray]) -> list[np.ndarray]:
    return [np.asarray(part) for part in value.values()] if isinstance(value, dict) else [np.asarray(value)]


def based(rows: np.ndarray, order: list[int]) -> np.ndarray:
    """A gate's rows in another order of the classes, counted from the new first one."""
    full = np.concatenate([np.zeros_like(rows[:1]), rows])[order]
    return full[1:] - full[0]


def test_refitting_a_vaes_own_draws_scores_them_as_well_as_it_does(name):
    spec, program, data, _ = prepared(name)
    if discrete(program):
        return
    with torch.no_grad():
        torch.manual_seed(4)
        values = program.model(given(program, data, 400), n=400)
        drawn = {key: value.numpy() for key, value in values.items() if key in data}
    table = read_table(drawn, spec)
    rows = program.tensors(table.arrays)
    state = dict(program.state_dict())
    generator, error = importance_log_likelihood(program, state, rows, draws=200, seed=0)
    refitted = compile_spec(spec, table.schema, dtype=torch.float64)
    done = run_svi(refitted, table, SVI(epochs=150, batch_size=100, learning_rate=5e-3))
    found, spread = importance_log_likelihood(refitted, done.state, rows, draws=200, seed=0)
    # Both are estimates; three of their standard errors, and the last nats that a short run leaves.
    slack = 3 * (error.square().sum() + spread.square().sum()).sqrt().item() + 0.02 * table.n_units
    assert found.sum().item() >= generator.sum().item() - slack


def test_plain_pyro_moves_every_parameter_and_climbs(name):
    _, program, _, rows = prepared(name)
    pyro.clear_param_store()
    pyro.set_rng_seed(0)
    before = {path: value.detach().clone() for path, value in program.named_parameters()}
    model, guide = program.pyro_pair()
    loss = TraceEnum_ELBO(max_plate_nesting=1) if sums(program) else Trace_ELBO()
    svi = pyro.infer.SVI(model, guide, pyro.optim.Adam({"lr": 1e-2}), loss)
    losses = [svi.step(rows) for _ in range(80)]
    pyro.clear_param_store()
    assert np.mean(losses[-20:]) < np.mean(losses[:20])
    for path, value in program.named_parameters():
        assert not torch.equal(value, before[path]), path


def test_pyros_own_tools_take_it(name):
    _, program, data, rows = prepared(name)
    trace = poutine.trace(program.model).get_trace(rows)
    trace.compute_log_prob()
    for node in program.generative.draws:
        assert trace.nodes[node]["log_prob"].shape == (N,)
    assert np.isfinite(trace.log_prob_sum().item())
    drawn = Predictive(program.model, num_samples=3)(given(program, data, 5), n=5)
    for node, value in ((node, data[node]) for node in program.generative.draws if node in data):
        assert drawn[node].shape == (3, 5, *value.shape[1:])
    posterior = Predictive(program.model, guide=program.guide, num_samples=3)(rows)
    for node in program.recognition.draws:
        assert posterior[node].shape[:2] == (3, N)
    graph = pyro.render_model(program.model, model_args=(rows,), render_distributions=True)
    assert all(node in graph.source for node in program.generative.draws)
    assert len(pyro.get_param_store()) == 0


def test_pyros_objectives_agree_with_ours(name):
    _, program, _, rows = prepared(name)
    state = dict(program.state_dict())
    if sums(program) and program.continuous:
        torch.manual_seed(7)
        stock = TraceEnum_ELBO(max_plate_nesting=1).loss(program.model, program.guide, rows)
        torch.manual_seed(7)
        ours = TraceableELBO().loss(program.model, program.guide, rows)
    elif program.enumerated:
        stock = TraceEnum_ELBO(max_plate_nesting=1).loss(program.model, program.guide, rows)
        ours = -float(log_marginal(program, state, rows).sum().detach())
    else:
        torch.manual_seed(7)
        stock = Trace_ELBO().loss(program.model, program.guide, rows)
        torch.manual_seed(7)
        ours = TraceableELBO().loss(program.model, program.guide, rows)
        enumerating = TraceEnum_ELBO(max_plate_nesting=1, strict_enumeration_warning=False)
        torch.manual_seed(7)
        assert enumerating.loss(program.model, program.guide, rows) == pytest.approx(stock, rel=1e-10)
    assert ours == pytest.approx(stock, rel=1e-10)


def short(program: Program) -> EM | SVI:
    return EM(restarts=3, max_steps=60) if discrete(program) else SVI(epochs=3, batch_size=128)


@pytest.mark.parametrize("how", ["eager", "traced"])
def test_the_same_seed_gives_the_same_bits_and_em_never_falls(name, how):
    spec, _, data, _ = prepared(name)
    table = read_table(data, spec)
    runs = []
    for _ in range(2):
        program = compile_spec(spec, table.schema, seed=1)
        if discrete(program):
            done = run_em(program, table, EM(restarts=2, max_steps=25, lowering=how), seed=1)
            assert np.diff(done.history).min() > -1e-9
        else:
            done = run_svi(program, table, SVI(epochs=2, batch_size=128, lowering=how), seed=1)
        runs.append(done)
    assert runs[0].history == runs[1].history
    for path, value in runs[0].state.items():
        assert torch.equal(value, runs[1].state[path]), path


def test_it_is_saved_and_loaded_to_the_last_bit(name, tmp_path):
    spec, program, data, _ = prepared(name)
    result = fit(spec, data, short(program))
    result.save(tmp_path / "fit")
    again = load(tmp_path / "fit")
    assert str(again.spec) == str(result.spec)
    assert again.log_likelihood == result.log_likelihood
    assert tuple(again.history) == tuple(result.history)
    for path, value in result.program.state_dict().items():
        assert torch.equal(value, again.program.state_dict()[path]), path
    np.testing.assert_array_equal(again.score_samples(data), result.score_samples(data))
