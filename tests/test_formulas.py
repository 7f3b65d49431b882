"""Pyro's objectives on compiled programs, held against the formulas in float64.

The tables come from the certificate's NumPy reading of a declaration, the formulas from the reference, and
everything else from Pyro's own objects: `TraceEnum_ELBO`, `Trace_ELBO`, `TraceMeanField_ELBO`.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import Trace_ELBO, TraceEnum_ELBO, TraceMeanField_ELBO

from ppl_gen import reference as ref
from ppl_gen.certify.evaluate import Evaluation, log_joint_table
from ppl_gen.data.reading import read_table
from ppl_gen.declare.files import read_spec
from ppl_gen.declare.nodes import Bernoulli, Categorical, MultivariateNormal, Normal
from ppl_gen.declare.spec import Spec
from ppl_gen.declare.terms import MLP, By, Free, Linear
from ppl_gen.infer.algorithms import SVI
from ppl_gen.infer.elbo import TraceableELBO
from ppl_gen.infer.enumeration import log_marginal, posterior_marginals, site_log_probs
from ppl_gen.infer.svi import run_svi
from ppl_gen.program.families.normal import DiagonalNormal
from ppl_gen.program.program import compile_spec

TIGHT = {"rtol": 1e-10, "atol": 1e-10}
N = 60
SHIPPED = {
    path.stem: read_spec(path) for path in sorted((Path(__file__).parents[1] / "models").glob("*.yaml"))
}
MIXED = {
    "c": Categorical(3),
    "z": Normal(2, loc=By("c"), scale=By("c")),
    "x": Normal(3, loc=MLP("z", [8]), scale=1),
}
GM_VAE = Spec(model=MIXED, guide={"z": Normal(2, loc=MLP("x", [8]), scale=MLP("x", [8]))})
GM_VAE_NAMING_C = Spec(
    model=MIXED,
    guide={
        "c": Categorical(3, logits=MLP("x", [8])),
        "z": Normal(2, loc=MLP(["x", "c"], [8]), scale=By("c")),
    },
)


def close(a, b):
    np.testing.assert_allclose(a, b, **TIGHT)


def made_up(spec, rng):
    """Rows that every leaf and Input accepts."""
    kinds = {
        "real": lambda: rng.normal(size=(N, 3)),
        "count": lambda: rng.poisson(3, (N, 2)),
        "positive": lambda: rng.gamma(2, 1, (N, 2)),
        "boolean": lambda: rng.integers(0, 2, (N, 3)),
        "category": lambda: rng.integers(0, 3, (N, 4)),
    }
    rows = {name: kinds[spec.nodes[name].support]() for name in spec.leaves}
    for name in spec.inputs:
        k = spec.nodes[name].k
        rows[name] = rng.normal(size=(N, 2)) if k is None else rng.integers(0, k, N)
    widths = {name: spec.nodes[name].width for name in rows}
    return {
        name: x if widths[name] is None or x.ndim == 1 else np.resize(x.T, (widths[name], N)).T
        for name, x in rows.items()
    }


def compiled(spec, data, jitter=0.5):
    """A program in float64 at random parameters."""
    program = compile_spec(spec, data, dtype=torch.float64)
    noise = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in program.parameters():
            drawn = torch.randn(parameter.shape, generator=noise, dtype=torch.float64)
            parameter.add_(jitter * drawn)
    return program


def numbers(program):
    return {path: value.detach().numpy() for path, value in program.state_dict().items()}


# Discrete latents: F1, F2, F5 to F7


@pytest.fixture(
    params=[
        name
        for name, spec in SHIPPED.items()
        if all(n.discrete for n in map(spec.nodes.get, spec.roles().latent))
    ]
)
def discrete(request):
    """A shipped model with one discrete latent, rows drawn from the model itself, and its formula's table."""
    spec = SHIPPED[request.param]
    data = made_up(spec, np.random.default_rng(0))
    program = compiled(spec, data)
    inputs = program.tensors({name: data[name] for name in spec.inputs})
    torch.manual_seed(1)
    with torch.no_grad():
        drawn = program.model(inputs, n=N)
    rows = inputs | {name: drawn[name] for name in program.schema.roles.observed}
    evaluation = Evaluation(spec, program.schema, numbers(program))
    table = log_joint_table(evaluation, {name: value.numpy() for name, value in rows.items()}, ("z",))
    return program, rows, table


def enumerated_bound(program, rows, q):
    """LB of a given q (N, K) by stock Pyro: a guide that is q, summed exactly."""
    probs = torch.tensor(q)

    def guide(rows):
        with pyro.plate("units", len(probs), dim=-1):
            pyro.sample("z", dist.Categorical(probs), infer={"enumerate": "parallel"})

    return -TraceEnum_ELBO(max_plate_nesting=1).differentiable_loss(program.model, guide, rows)


def random_q(table, seed=0):
    return np.random.default_rng(seed).dirichlet(np.ones(table.shape[1]), len(table))


def test_responsibilities_of_the_e_step_are_f7_1(discrete):
    program, rows, table = discrete
    log_p, marginals = posterior_marginals(program, program.state_dict(), rows)
    close(marginals["z"].detach().numpy().T, ref.responsibilities(table))
    close(log_p.detach().numpy(), ref.log_marginal(table))


def test_bound_plus_kl_is_the_log_likelihood_for_any_q(discrete):
    program, rows, table = discrete
    for seed in range(3):
        q = random_q(table, seed)
        bound = enumerated_bound(program, rows, q).item()
        close(bound, ref.lower_bound(table, q).sum())
        gap = ref.kl(q, ref.responsibilities(table)).sum()
        close(bound + gap, log_marginal(program, program.state_dict(), rows).sum().item())


def test_the_two_forms_of_em_differ_by_an_entropy_that_the_parameters_do_not_move(discrete):
    program, rows, table = discrete
    r = ref.responsibilities(table)
    _, marginals = posterior_marginals(program, program.state_dict(), rows)
    weights = {name: value.detach() for name, value in marginals.items()}
    for _ in range(2):  # at θ̃ itself, then at another θ
        form_1 = enumerated_bound(program, rows, r)
        sites = site_log_probs(
            program, dict(program.named_parameters()) | dict(program.named_buffers()), rows
        )
        form_2 = sum((weights[name] * value).sum() for name, value in sites.items())
        close(form_1.item() - form_2.item(), ref.entropy(r).sum())
        here = log_joint_table(
            Evaluation(program.spec, program.schema, numbers(program)),
            {name: value.numpy() for name, value in rows.items()},
            ("z",),
        )
        close(form_2.item(), ref.q_function(table, here))
        close(form_1.item(), ref.em_form_1_objective(here, r))
        parameters = list(program.parameters())
        uphill = [torch.autograd.grad(form, parameters) for form in (form_1, form_2)]
        for one, two in zip(*uphill, strict=True):
            close(one.numpy(), two.numpy())
        with torch.no_grad():
            for parameter in parameters:
                parameter.add_(0.1 * torch.randn_like(parameter))


def test_the_bound_touches_the_likelihood_at_its_own_parameters_and_is_below_elsewhere(discrete):
    program, rows, table = discrete
    r = ref.responsibilities(table)
    torch.manual_seed(0)
    start = {path: value.clone() for path, value in program.state_dict().items()}
    touching = enumerated_bound(program, rows, r).item()
    close(touching, log_marginal(program, start, rows).sum().item())
    for step in (1e-3, 0.1, 1.0):
        with torch.no_grad():
            for path, parameter in program.named_parameters():
                parameter.copy_(start[path] + step * torch.randn_like(parameter))
        apart = log_marginal(program, program.state_dict(), rows).sum() - enumerated_bound(program, rows, r)
        assert apart.item() > 0


@pytest.mark.parametrize("name", ["gaussian_mixture", "gaussian_mixture_tied"])
@pytest.mark.parametrize("columns", [15, 16, 20])  # from 16 on another arrangement of the density runs
def test_many_columns_are_scored_as_few_are(name, columns):
    x = np.random.default_rng(0).normal(size=(N, columns))
    program = compiled(SHIPPED[name], {"x": x}, jitter=0.1)
    table = log_joint_table(Evaluation(program.spec, program.schema, numbers(program)), {"x": x}, ("z",))
    found = log_marginal(program, program.state_dict(), program.tensors({"x": x}))
    close(found.detach().numpy(), ref.log_marginal(table))


# Continuous latents: F9 to F11


def standardised(n_columns, rng):
    """Columns of mean 0 and sd 1, so that what the encoder sees is x itself."""
    x = rng.normal(size=(N, n_columns)) @ rng.normal(size=(n_columns, n_columns))
    return (x - x.mean(0)) / x.std(0)


UNIT = Spec(
    model={"z": Normal(2, loc=0, scale=1), "x": Normal(3, loc=MLP("z", [5], activation="tanh"), scale=1)},
    guide={"z": Normal(2, loc=MLP("x", [4], activation="tanh"), scale=1)},
)
DIAGONAL = Spec(
    model={"z": Normal(2, loc=0, scale=1), "x": Normal(3, loc=MLP("z", [5]), scale=Free())},
    guide={"z": Normal(2, loc=MLP("x", [4]), scale=MLP("x", [4]))},
)
PARTS = {
    "generative.layers.x:loc": "decoder",
    "generative.layers.x:scale": "log_sigma_D",
    "recognition.layers.z:loc": "encoder_loc",
    "recognition.layers.z:scale": "encoder_log_scale",
}


def network_of(program, path):
    found = numbers(program)
    return [(found[f"{path}.weights.{i}"], found[f"{path}.biases.{i}"]) for i in range(2)]


def formula_name(path, unit):
    """The reference's name of a parameter."""
    layer, part = (
        path.split(".weights." if ".weights." in path else ".biases.")
        if "table" not in path
        else (path[:-6], "")
    )
    name = PARTS[layer]
    if unit:
        name = name.replace("encoder_loc", "encoder")
    return name if not part else f"{name}.{part}.{'weight' if '.weights.' in path else 'bias'}"


@pytest.mark.parametrize("spec", [UNIT, DIAGONAL], ids=["F9.1", "F9.5"])
@pytest.mark.parametrize(
    ("objective", "sampled"), [(Trace_ELBO, True), (TraceableELBO, True), (TraceMeanField_ELBO, False)]
)
def test_the_objective_and_its_gradient_are_the_written_ones(spec, objective, sampled):
    unit = spec is UNIT
    x = standardised(3, np.random.default_rng(0))
    program = compiled(spec, {"x": x}, jitter=0.2)
    rows = program.tensors({"x": x})
    torch.manual_seed(5)
    with torch.no_grad():
        z = program.guide(rows)["z"].numpy()
    torch.manual_seed(5)
    loss = objective().differentiable_loss(program.model, program.guide, rows)

    decoder = network_of(program, "generative.layers.x:loc")
    encoder = network_of(program, "recognition.layers.z:loc")
    activation = "tanh" if unit else "relu"
    mu_E, mu_D = ref.network(encoder, x, activation), ref.network(decoder, z[None], activation)
    if unit:
        eps = (z - mu_E)[None]
        truth = ref.lower_bound_unit(x, mu_E, mu_D)
        if sampled:
            truth = ref.sampled_lower_bound_unit(x, mu_E, mu_D, eps)
        gradients = ref.gradients_unit(x, encoder, decoder, eps, activation=activation, sampled=sampled)
    else:
        scales = network_of(program, "recognition.layers.z:scale")
        sigma_E = np.exp(ref.network(scales, x))
        eps = ((z - mu_E) / sigma_E)[None]
        log_sigma_D = numbers(program)["generative.layers.x:scale.table"]
        truth = ref.lower_bound_diagonal(x, mu_E, sigma_E, mu_D, np.exp(log_sigma_D))
        if sampled:
            truth = truth + ref.sampled_difference_diagonal(mu_E, sigma_E, eps)
        gradients = ref.gradients_diagonal(x, (encoder, scales), decoder, log_sigma_D, eps, sampled=sampled)
    close(-loss.item(), truth.sum())
    paths = [path for path, _ in program.named_parameters()]
    found = torch.autograd.grad(-loss, list(program.parameters()))
    assert {formula_name(path, unit) for path in paths} == set(gradients)
    for path, gradient in zip(paths, found, strict=True):
        close(gradient.numpy(), gradients[formula_name(path, unit)].sum(0))


def test_bernoulli_reconstruction_is_f9_6():
    spec = Spec(
        model={"z": Normal(2, loc=0, scale=1), "x": Bernoulli(5, logits=MLP("z", [4]))},
        guide={"z": Normal(2, loc=0, scale=1)},  # the prior: the KL is 0, and reconstruction is all there is
    )
    x = np.random.default_rng(0).integers(0, 2, (N, 5)).astype(float)
    program = compiled(spec, {"x": x})
    torch.manual_seed(5)
    with torch.no_grad():
        z = program.guide(program.tensors({"x": x}))["z"].numpy()
    torch.manual_seed(5)
    bound = -TraceMeanField_ELBO().loss(program.model, program.guide, program.tensors({"x": x}))
    logits = ref.network(network_of(program, "generative.layers.x:logits"), z[None])
    close(bound, ref.reconstruction_bernoulli(x, logits).sum())


def test_one_step_of_sgd_is_f10(monkeypatch):
    x = standardised(3, np.random.default_rng(0))
    table = read_table({"x": x}, UNIT)
    program = compile_spec(UNIT, table.schema, dtype=torch.float64)
    eps = np.array([0.3, -1.1])  # the same for every row, so that the order of the rows does not matter
    monkeypatch.setattr(
        DiagonalNormal, "rsample", lambda self, _=(): self.loc + self.scale * torch.tensor(eps)
    )
    step_size = 0.05
    before = numbers(program)
    algorithm = SVI(
        epochs=1,
        batch_size=N,
        learning_rate=step_size,
        optimizer=lambda leaves: torch.optim.SGD(leaves, lr=step_size),
        lowering="eager",
    )
    encoder, decoder = (
        network_of(program, path) for path in ("recognition.layers.z:loc", "generative.layers.x:loc")
    )
    gradients = ref.gradients_unit(
        x, encoder, decoder, np.tile(eps, (1, N, 1)), activation="tanh", sampled=True
    )
    after = run_svi(program, table, algorithm).state
    paths = {formula_name(path, unit=True): path for path, _ in program.named_parameters()}
    stepped = ref.sgd_step({name: before[path] for name, path in paths.items()}, gradients, step_size)
    for name, path in paths.items():
        close(after[path].numpy(), stepped[name])
        assert np.abs(after[path].numpy() - before[path]).max() > 1e-4


def test_with_the_exact_posterior_as_guide_every_draw_of_the_bound_is_log_p():
    """E1: LB + KL = log p(x), with KL = 0 on every single draw."""
    spec = Spec(
        model={"z": Normal(2, loc=0, scale=1), "x": Normal(4, loc=Linear("z"), scale=Free())},
        guide={"z": MultivariateNormal(2, loc=Linear("x"), scale_tril=Free())},
    )
    x = np.random.default_rng(0).normal(size=(N, 4)) * [1, 2, 3, 4] + 5
    program = compiled(spec, {"x": x})
    found = numbers(program)
    W, b = found["generative.layers.x:loc.weight"], found["generative.layers.x:loc.bias"]
    psi = np.exp(found["generative.layers.x:scale.table"]) ** 2
    at_zero, cov = ref.factor_analysis_posterior(np.zeros((1, 4)), W, b, psi)
    weight = (ref.factor_analysis_posterior(np.eye(4), W, b, psi)[0] - at_zero).T
    factor = np.linalg.cholesky(cov)
    packed = np.array([np.log(factor[0, 0]), factor[1, 0], np.log(factor[1, 1])])
    exact = {"loc.weight": weight, "loc.bias": at_zero[0], "scale_tril.table": packed}
    program.load_state_dict(
        program.state_dict()
        | {f"recognition.layers.z:{path}": torch.tensor(value) for path, value in exact.items()}
    )
    log_p = ref.log_marginal_affine(x, W, b, psi)
    rows = program.tensors({"x": x})
    with torch.no_grad():
        weights = TraceableELBO(5).log_weights(program.model, program.guide, rows).numpy()
    close(weights, np.tile(log_p, (5, 1)))


def test_for_any_guide_the_mean_bound_and_the_kl_add_up_to_log_p():
    spec = Spec(
        model={"z": Normal(2, loc=0, scale=1), "x": Normal(4, loc=Linear("z"), scale=Free(dim=1))},
        guide={"z": Normal(2, loc=Linear("x"), scale=0.7)},
    )
    x = np.random.default_rng(0).normal(size=(N, 4))
    program = compiled(spec, {"x": x}, jitter=0.2)
    found = numbers(program)
    W, b = found["generative.layers.x:loc.weight"], found["generative.layers.x:loc.bias"]
    psi = np.full(4, np.exp(found["generative.layers.x:scale.table"][0]) ** 2)
    weight, bias = (found[f"recognition.layers.z:loc.{part}"] for part in ("weight", "bias"))
    mean, cov = x @ weight.T + bias, 0.49 * np.eye(2)
    kl = ref.kl_multivariate_normal(mean, cov, *ref.factor_analysis_posterior(x, W, b, psi))
    # The bound is quadratic in ε: ±√2·e_j with equal weight is a rule that integrates it exactly.
    nodes = np.sqrt(2) * np.concatenate([np.eye(2), -np.eye(2)])
    bounds = []
    for eps in nodes:
        DiagonalNormal_rsample = DiagonalNormal.rsample
        try:
            DiagonalNormal.rsample = lambda self, _=(), e=eps: self.loc + self.scale * torch.tensor(e)
            with torch.no_grad():
                rows = program.tensors({"x": x})
                bounds.append(TraceableELBO().per_row(program.model, program.guide, rows).numpy())
        finally:
            DiagonalNormal.rsample = DiagonalNormal_rsample
    close(np.mean(bounds, axis=0) + kl, ref.log_marginal_affine(x, W, b, psi))


def test_variances_of_one_reduce_the_learned_bound_to_the_unit_bound():
    x = standardised(3, np.random.default_rng(0))
    one = {"x": Normal(3, loc=MLP("z", [5], activation="tanh"), scale=Free())}
    head = {"z": Normal(2, loc=MLP("x", [4], activation="tanh"), scale=Free())}
    learned = Spec(model=UNIT.model | one, guide=head)
    unit, wide = compiled(UNIT, {"x": x}), compiled(learned, {"x": x})
    state = dict(wide.state_dict())
    for path, value in unit.state_dict().items():
        if path in state:
            state[path] = value
    state |= {path: torch.zeros_like(value) for path, value in state.items() if path.endswith("scale.table")}
    wide.load_state_dict(state)  # log σ = 0
    for objective in (Trace_ELBO, TraceMeanField_ELBO):
        found = []
        for program in (unit, wide):
            torch.manual_seed(2)
            found.append(objective().loss(program.model, program.guide, program.tensors({"x": x})))
        close(found[0], found[1])


# Our objective is stock Pyro's at the same seed


SAMPLED = {
    name: spec
    for name, spec in SHIPPED.items()
    if not all(n.discrete for n in map(spec.nodes.get, spec.roles().latent))
}
ENUMERATED = {name: spec for name, spec in SHIPPED.items() if name not in SAMPLED} | {
    "gm_vae": GM_VAE,
    "gm_vae_naming_c": GM_VAE_NAMING_C,
}
SUMMED = {  # continuous latents beside discrete ones, which stock Pyro has another objective for
    name: spec for name, spec in SAMPLED.items() if any(spec.nodes[n].discrete for n in spec.roles().latent)
}


@pytest.mark.parametrize(
    ("name", "stock"),
    [(n, TraceEnum_ELBO if n in SUMMED else Trace_ELBO) for n in SAMPLED]
    + [(n, TraceEnum_ELBO) for n in ENUMERATED],
)
def test_the_objective_is_stock_pyros_at_the_same_seed(name, stock):
    spec = {**SAMPLED, **ENUMERATED}[name]
    data = made_up(spec, np.random.default_rng(0))
    program = compiled(spec, data, jitter=0.2)
    rows = program.tensors(read_table(data, spec).arrays)
    parameters = list(program.parameters())
    losses, gradients = [], []
    for objective in (stock(max_plate_nesting=1), TraceableELBO()):
        torch.manual_seed(4)
        losses.append(objective.loss(program.model, program.guide, rows))
        torch.manual_seed(4)
        loss = objective.differentiable_loss(program.model, program.guide, rows)
        gradients.append(torch.autograd.grad(loss, parameters))
    close(losses[0], losses[1])
    for theirs, ours in zip(*gradients, strict=True):
        close(ours.numpy(), theirs.numpy())
