"""Declarations nobody thought of: the compiled program's log-joint is SciPy's, for whatever Hypothesis declares.

The evaluator below reads the declaration row by row with SciPy's distributions. It shares nothing with the
program, with the certificate's own evaluation or with the reference.
"""

from __future__ import annotations

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pyro import poutine
from scipy import linalg, special, stats

from ppl_gen.certify.evaluate import Evaluation
from ppl_gen.data.schema import Schema
from ppl_gen.declare.nodes import Bernoulli, Categorical, Input, MultivariateNormal, Normal, Poisson
from ppl_gen.declare.spec import Roles, Spec
from ppl_gen.declare.terms import MLP, By, Free, Linear, Name, Sum, Term, Value
from ppl_gen.program.program import compile_spec

N = 4
ACTIVATIONS = {
    "relu": lambda a: max(a, 0.0),
    "tanh": np.tanh,
    "sigmoid": special.expit,
    "softplus": lambda a: np.log1p(np.exp(a)),
    "elu": lambda a: a if a > 0 else np.exp(a) - 1,
    "gelu": lambda a: a * stats.norm.cdf(a),
    "silu": lambda a: a * special.expit(a),
    "leaky_relu": lambda a: a if a > 0 else a / 100,
}


# The evaluator: one row at a time


class ByHand:
    """A declaration's log-joint at one row, by SciPy."""

    def __init__(self, spec, schema, state, row):
        self.spec, self.schema, self.state, self.row = spec, schema, state, row

    def table(self, path, parents):
        index = [int(c) for parent in parents for c in np.atleast_1d(self.row[parent])]
        return self.state[path][tuple(index)]

    def entering(self, name, network):
        entry, x = self.spec.model[name], self.row.get(name)
        if isinstance(entry, Term):
            return self.named(name, entry)
        x = np.atleast_1d(x).astype(float)
        if name in self.schema.k:
            return np.concatenate([np.eye(self.schema.k[name])[int(c)][0 if network else 1 :] for c in x])
        if network and isinstance(entry, Poisson):
            return np.log1p(x)
        if network and isinstance(entry, Normal | MultivariateNormal | Input):
            return (x - self.schema.centre[name]) / self.schema.spread[name]
        return x

    def named(self, name, term):
        if isinstance(term, MLP) and term.dim is None:
            return self.hidden(term, f"generative.layers.{name}:")
        return self.predictor(term, f"generative.layers.{name}:", None, True)

    def hidden(self, term, path):
        h = np.concatenate([self.entering(name, True) for name in term.of])
        for i in range(len(term.hidden)):
            a = self.table(f"{path}.weights.{i}", term.by) @ h + self.table(f"{path}.biases.{i}", term.by)
            h = np.array([ACTIVATIONS[term.activation](v) for v in a])
        return h

    def predictor(self, term, path, table, intercept):
        """The predictor: a vector, or a `table` (items, k) of categories."""
        match term:
            case Free() | By():
                parents = term.of if isinstance(term, By) else ()
                own = self.table(f"{path}.table", parents)
                if getattr(term, "ordered", False):
                    level, steps = int(np.squeeze(self.row[parents[0]])), self.state[f"{path}.table"]
                    return steps[0] + sum(np.exp(steps[i]) for i in range(1, level + 1))
                return own if intercept else own - self.state[f"{path}.table"][(0,) * self.axes(parents)]
            case Linear():
                x = np.concatenate([self.entering(name, False) for name in term.of])
                u = self.table(f"{path}.weight", term.by) @ x
                if isinstance(term.bias, Value):
                    u = u + np.asarray(term.bias.value)
                elif intercept:
                    u = u + self.table(f"{path}.bias", term.by)
                if table:  # the first category is the reference
                    u = np.concatenate([np.zeros((table[0], 1)), u.reshape(table[0], -1)], axis=1)
                return u
            case MLP():
                last = len(term.hidden)
                u = self.table(f"{path}.weights.{last}", term.by) @ self.hidden(term, path)
                u = u + self.table(f"{path}.biases.{last}", term.by) if intercept else u
                return u.reshape(table) if table else u
            case Name():
                entry = self.spec.model[term.name]
                return self.named(term.name, entry) if isinstance(entry, Term) else self.row[term.name]
        total, free = 0.0, True
        for i, part in enumerate(term.terms):
            total = total + self.predictor(part, f"{path}.terms.{i}", table, free)
            if isinstance(part, Free | By | MLP) or (isinstance(part, Linear) and part.bias == Free()):
                free = False
        return total

    def axes(self, parents):
        return sum(self.schema.dims[parent] for parent in parents)

    def parameter(self, name, key, table=None):
        """The natural value, but for probabilities, which stay logits."""
        node, owner = self.spec.model[name], name
        term = node.terms()[key]
        if isinstance(term, Name) and isinstance(self.spec.model[term.name], Term):
            owner, term = term.name, self.spec.model[term.name]
        if isinstance(term, Value):
            return np.asarray(term.value, dtype=float)
        u = self.predictor(term, f"generative.layers.{owner}:{key}", table, True)
        if node.constraints[key] == "positive":
            return np.log1p(np.exp(u)) if getattr(term, "transform", None) == "softplus" else np.exp(u)
        return u

    def log_joint(self):
        return sum(
            getattr(self, type(node).__name__)(name, node)
            for name, node in self.spec.nodes.items()
            if not isinstance(node, Input)
        )

    def Normal(self, name, node):
        return stats.norm.logpdf(
            self.row[name], self.parameter(name, "loc"), self.parameter(name, "scale")
        ).sum()

    def MultivariateNormal(self, name, node):
        D = self.schema.dims[name]
        key = "cov" if node.cov is not None else "scale_tril"
        given = self.parameter(name, key)
        if isinstance(node.terms()[key], Value):
            matrix = np.sqrt(given) * np.eye(D) if key == "cov" else given * np.eye(D)
        else:
            matrix = np.zeros((D, D))
            for value, (i, j) in zip(given, np.transpose(np.tril_indices(D)), strict=True):
                matrix[i, j] = np.exp(value) if i == j else value
        mean = np.broadcast_to(self.parameter(name, "loc"), D)
        white = linalg.solve_triangular(matrix, self.row[name] - mean, lower=True)
        return stats.norm.logpdf(white).sum() - np.log(np.diag(matrix)).sum()

    def Bernoulli(self, name, node):
        key = "probs" if node.probs is not None else "logits"
        given = self.parameter(name, key)
        if key == "probs" and isinstance(node.probs, Value):
            return stats.bernoulli.logpmf(self.row[name], given).sum()
        return stats.bernoulli.logpmf(self.row[name], special.expit(given)).sum()

    def Categorical(self, name, node):
        D, k = self.schema.dims[name], self.schema.k[name]
        key = "probs" if node.probs is not None else "logits"
        given = self.parameter(name, key, (D, k))
        probs = given if key == "probs" and isinstance(node.probs, Value) else special.softmax(given, axis=-1)
        probs = np.broadcast_to(probs, (D, k))
        return sum(np.log(probs[i, int(c)]) for i, c in enumerate(np.atleast_1d(self.row[name])))

    def Poisson(self, name, node):
        rate = self.parameter(name, "rate")
        return stats.poisson.logpmf(self.row[name], rate).sum()


# The declarations


def is_category(node):
    return isinstance(node, Categorical | Bernoulli) or (isinstance(node, Input) and node.k is not None)


@st.composite
def functions(draw, values, categories, summed=False):
    """A term of a real-valued predictor; `values` and `categories` are names above."""
    kinds = ["free", *["by"] * bool(categories), *["linear", "mlp"] * bool(values)]
    kind = draw(st.sampled_from(kinds))
    dim = None if summed else draw(st.sampled_from([None, None, 1]))
    by = draw(st.lists(st.sampled_from(categories), max_size=1, unique=True)) if categories else []
    of = draw(st.lists(st.sampled_from(values), min_size=1, max_size=2, unique=True)) if values else []
    match kind:
        case "free":
            return Free(dim=dim)
        case "by":
            return By(
                draw(st.lists(st.sampled_from(categories), min_size=1, max_size=2, unique=True)), dim=dim
            )
        case "linear":
            return Linear(of, by=by, dim=dim, bias=draw(st.sampled_from([Free(), Value(0), Value(0.5)])))
    hidden = draw(st.lists(st.integers(1, 3), min_size=1, max_size=2))
    return MLP(of, hidden, by=by, dim=dim, activation=draw(st.sampled_from(sorted(ACTIVATIONS))))


@st.composite
def terms(draw, model, constraint, width, table=False):
    """A term for one parameter of a node that comes next in `model`; a table has no dim=1 and no names."""
    nodes = {name: entry for name, entry in model.items() if not isinstance(entry, Term)}
    categories = [name for name, node in nodes.items() if is_category(node)]
    values = [
        name
        for name, entry in model.items()
        if not isinstance(entry, Term) or isinstance(entry, MLP) or entry.dim
    ]
    function = functions(values, categories, summed=table)
    kind = draw(st.sampled_from(["function"] * 4 + ["sum", "sum", "value", "name", "ordered"]))
    if kind == "value" and not table:
        return Value(draw(st.sampled_from([0.25, 0.5])))
    if kind == "ordered" and "v" in model and constraint in ("real", "positive"):
        return By("v", ordered=True, dim=1)
    if kind == "sum":
        offsets = [
            Name(name)
            for name, entry in model.items()
            if not table
            and (
                getattr(entry, "dim", None) in (1, width)
                or (isinstance(entry, MLP) and entry.hidden[-1] == width)
            )
            and not is_category(entry)
            and not (isinstance(entry, MLP) and entry.dim is None and entry.hidden[-1] not in (1, width))
        ]
        parts = draw(st.lists(functions(values, categories, summed=True), min_size=1, max_size=2))
        extra = (
            draw(st.lists(st.sampled_from(offsets), min_size=2 - len(parts), max_size=1)) if offsets else []
        )
        together = [*parts, *extra]
        return Sum(*together) if len(together) > 1 else parts[0]
    if kind == "name" and not table and constraint in ("real", "positive"):
        shared = [
            n for n, e in model.items() if isinstance(e, Linear | MLP) and e.dim is None and n.startswith("q")
        ]
        if shared and n_uses(model, shared[-1]) == 0:
            return Name(shared[-1])
    term = draw(function)
    if constraint == "positive" and not isinstance(term, Sum) and draw(st.booleans()):
        return type(term)(**{f: getattr(term, f) for f in fields_of(term)} | {"transform": "softplus"})
    return term


def fields_of(term):
    return {Free: ("dim",), By: ("of", "dim"), Linear: ("of", "by", "bias", "dim")}.get(
        type(term), ("of", "hidden", "activation", "by", "dim")
    )


def n_uses(model, name):
    return sum(name in entry.parents() for entry in model.values())


@st.composite
def entries(draw, model, name):
    """The next node."""
    kind = draw(st.sampled_from(["normal", "mvn", "bernoulli", "categorical", "items", "poisson"]))
    dim = draw(st.integers(1, 2))
    k = draw(st.integers(2, 3))
    way = draw(st.sampled_from(["probs", "logits"]))
    match kind:
        case "normal":
            return Normal(dim, loc=draw(terms(model, "real", dim)), scale=draw(terms(model, "positive", dim)))
        case "mvn":
            matrix = draw(terms(model, "covariance", 3, table=True)) if draw(st.booleans()) else Value(0.5)
            return MultivariateNormal(
                2, loc=draw(terms(model, "real", 2)), **{draw(st.sampled_from(["cov", "scale_tril"])): matrix}
            )
        case "bernoulli":
            return Bernoulli(dim, **{way: draw(terms(model, "unit_interval", dim))})
        case "categorical":
            return Categorical(k, **{way: draw(terms(model, "simplex", 1, table=True))})
        case "items":
            return Categorical(k, dim=2, **{way: draw(terms(model, "simplex", 2, table=True))})
    return Poisson(dim, rate=draw(terms(model, "positive", dim)))


@st.composite
def declarations(draw):
    model = {}
    if draw(st.booleans()):
        model["u"] = Input(2)
    if draw(st.booleans()):
        model["v"] = Input(k=3)
    for i in range(draw(st.integers(2, 5))):
        values = [name for name, entry in model.items() if not isinstance(entry, Term)]
        if values and draw(st.integers(0, 3)) == 0:
            categories = [name for name in values if is_category(model[name])]
            term = draw(functions(values, categories, summed=True))
            if isinstance(term, MLP):
                model[f"q{i}"] = term
            else:
                model[f"h{i}"] = type(term)(**{f: getattr(term, f) for f in fields_of(term)} | {"dim": 2})
        model[f"x{i}"] = draw(entries(model, f"x{i}"))
    return Spec(model=model)


def drawn_rows(spec, rng):
    rows = {}
    for name, node in spec.nodes.items():
        width = node.width or 1
        if isinstance(node, Categorical):
            rows[name] = rng.integers(0, node.k, (N, width) if node.dim else N)
        elif isinstance(node, Input) and node.k:
            rows[name] = rng.integers(0, node.k, N)
        elif isinstance(node, Bernoulli):
            rows[name] = rng.integers(0, 2, (N, width)).astype(float)
        elif isinstance(node, Poisson):
            rows[name] = rng.poisson(2, (N, width)).astype(float)
        else:
            rows[name] = rng.normal(size=(N, width)) * 2 + 1
    return rows


def schema_of(spec, rows):
    """As the data room would settle it, but for levels, which are already codes."""
    random = tuple(name for name, node in spec.nodes.items() if not isinstance(node, Input))
    numeric = [
        name for name, x in rows.items() if x.dtype == float and not isinstance(spec.nodes[name], Bernoulli)
    ]
    return Schema(
        roles=Roles(random, (), spec.inputs),
        dims={name: spec.nodes[name].width or 1 for name in spec.nodes},
        k={name: node.k for name, node in spec.nodes.items() if getattr(node, "k", None)},
        columns={
            name: tuple(f"{name}[{j}]" for j in range(node.width or 1)) for name, node in spec.nodes.items()
        },
        centre={name: tuple(rows[name].mean(0)) for name in numeric},
        spread={name: tuple(rows[name].std(0)) for name in numeric},
    )


@settings(max_examples=150, deadline=None, derandomize=True)
@given(declarations(), st.integers(0, 2**16))
def test_log_joint_of_any_declaration_is_scipys(spec, seed):
    rng = np.random.default_rng(seed)
    rows = drawn_rows(spec, rng)
    schema = schema_of(spec, rows)
    program = compile_spec(spec, schema, dtype=torch.float64)
    with torch.no_grad():
        for parameter in program.parameters():
            parameter.copy_(torch.from_numpy(rng.normal(size=tuple(parameter.shape)) * 0.5))
        trace = poutine.trace(program.model).get_trace(program.tensors(rows))
        trace.compute_log_prob()
        ours = sum(trace.nodes[name]["log_prob"] for name in schema.roles.observed).numpy()
    np.testing.assert_allclose(float(trace.log_prob_sum()), ours.sum(), rtol=1e-12)
    state = {path: value.numpy() for path, value in program.state_dict().items()}
    by_hand = [
        ByHand(spec, schema, state, {name: x[d] for name, x in rows.items()}).log_joint() for d in range(N)
    ]
    # Sums of some ten log-densities of size up to 1e4, each to some units in the last place.
    np.testing.assert_allclose(ours, by_hand, rtol=1e-10, atol=1e-10, err_msg=str(spec))
    # The certificate's evaluation is an independent reading too.
    certified = Evaluation(spec, schema, state).log_joint(rows)
    np.testing.assert_allclose(certified, by_hand, rtol=1e-10, atol=1e-10, err_msg=str(spec))
