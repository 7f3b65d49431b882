"""Models with discrete latents that nobody thought of: EM's steps are those of brute force, and never fall.

One or two latents, one under the other, tables over both, every family as a leaf, regressions on Inputs, priors,
missing cells, labels in some rows, weights. Rows are drawn from the declared model itself. The brute force writes
each joint state of the latents into the rows and asks Pyro for the log-joint: it shares nothing with the
enumeration, the lowering or the statistics of the E-step.
"""

from __future__ import annotations

import dataclasses
import itertools
import warnings

import numpy as np
import torch
from hypothesis import Phase, assume, given, settings
from hypothesis import strategies as st
from pyro import poutine
from scipy.special import logsumexp

from ppl_gen.data.reading import read_table
from ppl_gen.data.schema import Schema
from ppl_gen.declare import priors
from ppl_gen.declare.files import read_spec
from ppl_gen.declare.nodes import (
    Bernoulli,
    Binomial,
    Categorical,
    Exponential,
    Gamma,
    Input,
    LogNormal,
    MultivariateNormal,
    MultivariateStudentT,
    NegativeBinomial,
    Normal,
    Poisson,
    StudentT,
)
from ppl_gen.declare.spec import Roles, Spec
from ppl_gen.declare.terms import By, Free, Linear, Sum, Value
from ppl_gen.fitting import fit
from ppl_gen.infer.algorithms import EM
from ppl_gen.infer.engine import Engine
from ppl_gen.infer.enumeration import posterior_marginals, site_log_probs
from ppl_gen.program.program import compile_spec

N = 30

# The declarations

HERE = st.sampled_from([0.5, 1, 3])
PRIORS = {
    "real": st.one_of(
        st.builds(priors.Normal, loc=st.sampled_from([-1, 0.5]), scale=HERE),
        st.builds(priors.StudentT, df=HERE, loc=st.just(0), scale=HERE),
    ),
    "positive": st.one_of(
        st.builds(priors.Gamma, concentration=st.sampled_from([1.5, 3]), rate=HERE),
        st.builds(priors.InverseGamma, concentration=HERE, rate=HERE),
        st.builds(priors.LogNormal, loc=st.just(0), scale=HERE),
        st.builds(priors.HalfNormal, scale=HERE),
        st.builds(priors.HalfCauchy, scale=HERE),
        st.builds(priors.Exponential, rate=HERE),
    ),
    "unit_interval": st.builds(
        priors.Beta, concentration1=st.sampled_from([1.5, 3]), concentration0=st.just(2)
    ),
    "simplex": st.builds(priors.Dirichlet, concentration=st.sampled_from([1, 1.5, 4])),
    "covariance": st.builds(priors.InverseWishart, df=st.sampled_from([4, 6.5]), scale=HERE),
}
FAMILIES = [
    *(Normal, LogNormal, StudentT, Gamma, Exponential, Poisson, Bernoulli, NegativeBinomial, Binomial),
    *(MultivariateNormal, MultivariateStudentT, Categorical),
]
MATRICES = ("covariance", "lower_cholesky")


@st.composite
def terms(draw, constraint, width, k, given_names, categories):
    """A parameter's term: `categories` above, mostly, and a function of the Input."""
    table = k is not None or constraint in MATRICES
    kind = draw(st.sampled_from(["by"] * 6 + ["free", "free", "value", "linear", "sum", "ordered"]))
    real = k is None or constraint == "real"
    if kind == "value" and not table:
        return Value(draw(st.sampled_from([0.5, 0.25])))
    if kind == "ordered" and not table and width == 1 and constraint in ("real", "positive"):
        scalar = [name for name in categories if name in ("a", "b")]
        return By(draw(st.sampled_from(scalar)), ordered=True, dim=1)
    if kind in ("linear", "sum") and "u" in given_names and real:
        by = draw(st.sampled_from([(), tuple(categories[:1])])) if kind == "linear" else ()
        line = Linear("u", by=by, prior=draw(st.none() | PRIORS["real"]))
        if kind == "linear" or constraint in MATRICES:
            return line
        return Sum(By(draw(parents(categories))), dataclasses.replace(line, prior=None))
    dim = None if table else draw(st.sampled_from([None, None, 1]))
    prior = draw(st.none() | PRIORS[constraint]) if constraint in PRIORS and draw(st.booleans()) else None
    return (
        Free(dim=dim, prior=prior) if kind == "free" else By(draw(parents(categories)), dim=dim, prior=prior)
    )


def parents(categories):
    return st.lists(st.sampled_from(categories), min_size=1, max_size=2, unique=True)


@st.composite
def leaves(draw, given_names, categories):
    family = draw(st.sampled_from(FAMILIES))
    dim = draw(st.integers(1, 3))
    k = draw(st.integers(2, 3)) if family is Categorical else None
    kept = draw(st.sampled_from(family.either)) if family.either else None
    parameters = {}
    for key, constraint in family.constraints.items():
        if constraint == "count":
            parameters[key] = 4
        elif not family.either or key not in family.either or key == kept:
            width = 1 if key in family.single else dim
            parameters[key] = draw(terms(constraint, width, k, given_names, categories))
    if family is Categorical:
        return Categorical(k, dim=dim if dim > 1 else None, **parameters)
    return family(dim, **parameters)


@st.composite
def mixtures(draw):
    model = {}
    if draw(st.booleans()):
        model["u"] = Input(1)
    if draw(st.integers(0, 3)) == 0:
        model["v"] = Input(k=2)
    above = ["v"] * ("v" in model)
    prior = draw(st.none() | PRIORS["simplex"])
    model["a"] = draw(
        st.sampled_from(
            [
                *[Categorical(k, probs=Free(prior=prior)) for k in (2, 3)],
                Categorical(2, probs=[0.25, 0.75]),
                Bernoulli(1),
                Categorical(2, dim=2),
                *[Categorical(2, logits=Linear("u"))] * ("u" in model),
                *[Categorical(2, probs=By("v"))] * ("v" in model),
            ]
        )
    )
    if draw(st.booleans()):
        model["b"] = draw(
            st.sampled_from(
                [
                    *(Categorical(2), Categorical(2, probs=By("a")), Categorical(3, logits=By("a"))),
                    *[Categorical(2, logits=Linear("u", by="a"))] * ("u" in model),
                    *[Categorical(2, logits=By("a") + Linear("u"))] * ("u" in model),
                ]
            )
        )
    scalar = [n for n in ("b", "a") if n in model and model[n].dim is None] + above
    categories = scalar + (["a"] if "a" not in scalar else [])
    for i in range(draw(st.integers(1, 3))):
        model[f"x{i}"] = draw(leaves([*model], categories))
    spec = Spec(model=model)
    assume(all(name not in spec.leaves for name in ("a", "b")))
    return spec


# The rows


def drawn(spec, rng):
    """Rows of the model at random parameters, and the latents' values."""
    latent = tuple(name for name in ("a", "b") if name in spec.nodes)
    observed = tuple(name for name in spec.nodes if name.startswith("x"))
    columns = {
        name: tuple(f"{name}[{j}]" for j in range(spec.nodes[name].width or 1))
        for name in (*observed, *spec.inputs)
    }
    plain = [n for n in columns if spec.nodes[n].support not in ("category", "boolean") and n != "v"]
    schema = Schema(
        roles=Roles(observed, latent, spec.inputs),
        dims={name: spec.nodes[name].width or 1 for name in spec.nodes},
        k={name: node.k for name, node in spec.nodes.items() if getattr(node, "k", None)},
        columns=columns,
        centre={name: (0.0,) * len(columns[name]) for name in plain},
        spread={name: (1.0,) * len(columns[name]) for name in plain},
    )
    program = compile_spec(spec, schema, dtype=torch.float64)
    set_randomly(program, rng)
    inputs = {"u": rng.normal(size=(N, 1)), "v": rng.integers(0, 2, N)}
    given_rows = {name: inputs[name] for name in spec.inputs}
    with torch.no_grad(), torch.random.fork_rng():
        torch.manual_seed(int(rng.integers(2**31)))
        values = program.model(program.tensors(given_rows), n=N)
    return given_rows | {name: values[name].numpy() for name in (*latent, *observed)}


def set_randomly(program, rng):
    with torch.no_grad():
        for path, parameter in program.named_parameters():
            wide = 3.0 if path.endswith(":loc.table") else 0.7
            parameter.copy_(torch.from_numpy(rng.normal(size=tuple(parameter.shape)) * wide))


def as_user_has(spec, rows, rng, holes, labels):
    """What is left of the rows: latents gone or known in part, some cells missing."""
    data = {name: rows[name] for name in (*spec.inputs, *spec.leaves)}
    if holes:
        for name in spec.leaves:
            lost = rng.random(data[name].shape) < 0.2
            lost[:3] = False
            data[name] = np.where(lost, np.nan, data[name].astype(float))
    if labels:
        known = rng.random(N) < 0.3
        known[:1] = True
        label = rows["a"].astype(float)
        data["a"] = np.where(known if label.ndim == 1 else known[:, None], label, np.nan)
    return data


# The brute force


def by_hand(program, table):
    """Log p(x_d, z) at each joint state of what is summed out: (…states in the enumeration's order, N)."""
    rows = program.tensors(table.arrays, table.holes)
    names = list(program.enumerated)
    draws = [program.generative.draws[name] for name in names]
    supports = [list(itertools.product(*map(range, draw.sizes.levels))) for draw in draws]
    sizes = [len(own) for own in supports]
    found = np.empty([*sizes, N])
    for position in itertools.product(*map(range, sizes)):
        fixed = {key: own for key, own in rows.items() if key.split(".")[0] not in names}
        possible = np.ones(N, dtype=bool)
        for name, draw, own, i in zip(names, draws, supports, position, strict=True):
            state = np.tile(own[i], (N, 1))
            label = table.arrays.get(name)
            if label is not None:
                label = np.nan_to_num(label.reshape(N, -1), nan=-1)
                possible &= ((label == state) | (label < 0)).all(1)
            value = torch.from_numpy(state[:, 0] if draw.sizes.scalar else state)
            fixed[name] = value if draw.node.support == "category" else value.double()
        with torch.no_grad():
            trace = poutine.trace(program.model).get_trace(fixed)
            trace.compute_log_prob()
        log_joint = sum(trace.nodes[name]["log_prob"] for name in program.generative.draws).numpy()
        found[position] = np.where(possible, log_joint, -np.inf)
    return found.transpose(
        *range(len(sizes))[::-1], len(sizes)
    )  # the first latent on the axis before the rows


def check_e_step(program, table):
    log_joint = by_hand(program, table)
    states = tuple(range(log_joint.ndim - 1))
    rows_log_p = logsumexp(log_joint, axis=states)
    posterior = np.exp(log_joint - rows_log_p)
    state = {path: value.detach() for path, value in program.state_dict().items()}
    rows = program.tensors(table.arrays, table.holes)
    # A few densities a row, each to rounding in its largest term; a row's log p may be of some hundred nats.
    log_p, marginals = posterior_marginals(program, state, rows)
    np.testing.assert_allclose(log_p.numpy(), rows_log_p, rtol=1e-9, atol=1e-9)
    for name, log_prob in site_log_probs(program, state, rows).items():
        # A site's own entries: the other latents are summed over.
        sizes = (1,) * (log_joint.ndim - log_prob.ndim) + tuple(log_prob.shape)
        expected = posterior.sum(axis=tuple(axis for axis in states if sizes[axis] == 1), keepdims=True)
        found = np.broadcast_to(marginals[name].numpy(), expected.shape)
        np.testing.assert_allclose(found, expected, atol=1e-8, err_msg=name)
    weights = np.ones(N) if table.weights is None else table.weights
    expected = float(weights @ rows_log_p) + float(program.log_prior().detach())
    objectives = {}
    for how in ("eager", "traced"):
        engine = Engine(program, table, state, 2, how)
        inside = {path: torch.stack([value, value]) for path, value in engine.standard.enter(state).items()}
        for _ in range(2):
            value, statistics = engine.e_step(inside)
        objectives[how] = value, statistics
        np.testing.assert_allclose(value.numpy() - engine.offset, expected, rtol=1e-8, atol=1e-7)
    assert torch.equal(objectives["eager"][0], objectives["traced"][0])
    for name, own in objectives["eager"][1].items():
        assert torch.equal(own, objectives["traced"][1][name]), name


# What is held


@settings(max_examples=40, deadline=None, derandomize=True, phases=[Phase.explicit, Phase.generate])
@given(mixtures(), st.integers(0, 2**16), st.booleans(), st.booleans(), st.booleans())
def test_any_mixture_is_fitted_as_brute_force_says(spec, seed, holes, labels, weighted):
    assert read_spec(str(spec)) == spec
    rng = np.random.default_rng(seed)
    rows = drawn(spec, rng)
    assume(all(np.isfinite(own).all() and np.abs(own).max() < 1e6 for own in rows.values()))
    data = as_user_has(spec, rows, rng, holes, labels)
    weights = rng.choice([0.5, 1.0, 2.0], N) if weighted else None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # constant columns, rows without a cell: usable, and said
        table = read_table(data, spec, weights=weights)
        program = compile_spec(spec, table.schema)
        set_randomly(program, rng)
        check_e_step(program, table)
        result = fit(spec, data, EM(restarts=2, max_steps=30), weights=weights, seed=seed)
    assert np.diff(result.history).min(initial=0) >= -1e-9 * (abs(result.history[-1]) + N)
    assert not result.certificate.failed, str(result.certificate)
    each = result.score_samples(data)
    total = each.sum() if weights is None else weights @ each
    np.testing.assert_allclose(result.log_likelihood, total, rtol=1e-7, atol=1e-6)
    again = result.sample(N, given={name: data[name] for name in spec.inputs} or None)
    new = {name: again[name] for name in spec.leaves} | {name: data[name] for name in spec.inputs}
    assert np.isfinite(result.score_samples(new)).all()
