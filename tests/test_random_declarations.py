"""Declarations nobody thought of: the compiled program's log-joint is SciPy's, for whatever Hypothesis declares.

The evaluator below reads the declaration row by row with SciPy's distributions. It shares nothing with the
program, with the certificate's own evaluation or with the reference. Every node of the language is drawn, every
kind of term with its transforms and priors, numbers with places left free, and rows with missing cells.
"""

from __future__ import annotations

import dataclasses

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pyro import poutine
from scipy import linalg, special, stats

from ppl_gen.certify.evaluate import Evaluation
from ppl_gen.certify.priors import log_prior
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


TRANSFORMS = {
    "identity": lambda u: u,
    "exp": np.exp,
    "softplus": lambda u: np.logaddexp(0, u),
    "sigmoid": special.expit,
}
OWN = {"real": "identity", "positive": "exp"}


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
        if network and entry.support == "count":
            return np.log1p(x)
        if network and entry.support in ("real", "positive", "given"):
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
            case Value():
                return self.numbers(term, path)
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

    def numbers(self, term, path, onto=lambda u: u):
        """Written numbers, the places left free filled in from what is learned."""
        given = np.vectorize(lambda c: np.nan if isinstance(c, Free) else float(c), otypes=[float])(
            np.array(list(term.cells()), dtype=object).reshape(term.shape)
        )
        if not np.isnan(given).any():
            return given
        learned = onto(self.state[f"{path}.table"])
        return np.where(np.isnan(given), learned, given)

    def parameter(self, name, key, table=None):
        """The natural value, but for probabilities, which stay logits."""
        node, owner = self.spec.model[name], name
        term = node.terms()[key]
        if isinstance(term, Name) and isinstance(self.spec.model[term.name], Term):
            owner, term = term.name, self.spec.model[term.name]
        path, constraint = f"generative.layers.{owner}:{key}", node.constraints[key]
        onto = TRANSFORMS[getattr(term, "transform", None) or OWN.get(constraint, "identity")]
        if isinstance(term, Value):
            return self.numbers(term, path, onto)
        u = self.predictor(term, path, table, True)
        natural = np.atleast_1d(onto(u) if constraint in OWN else u)
        least = self.least(name, node, term) if key == "scale" else None
        if least is None:
            return natural
        # A scale for all columns is held by their root mean square.
        return np.maximum(natural, least if len(natural) > 1 else np.sqrt(np.mean(least**2)))

    def least(self, name, node, term):
        """What a function's value for an observed real column's scale is held at; a fit holds tables itself."""
        if (
            node.support != "real"
            or isinstance(term, Value | Free)
            or (isinstance(term, By) and not term.ordered)
        ):
            return None
        return (1e-10 if isinstance(node, StudentT) else 1e-4) * np.array(self.schema.spread[name])

    def log_odds(self, name, node):
        key = "probs" if node.probs is not None else "logits"
        given = self.parameter(name, key)
        if key == "probs" and isinstance(node.probs, Value):
            own = [isinstance(cell, Free) for cell in node.probs.cells()]
            written = np.reshape([not free for free in own], node.probs.shape)
            return np.where(written, special.logit(np.where(written, given, 0.5)), given)
        return given

    def log_joint(self):
        return sum(
            getattr(self, type(node).__name__)(name, node)
            for name, node in self.spec.nodes.items()
            if not isinstance(node, Input)
        )

    def of_seen(self, name, log_density):
        """Σ over the cells that are seen; where one is not, the density is asked about a value of 1."""
        x = np.atleast_1d(self.row[name])
        seen = ~np.isnan(x)
        cells = np.broadcast_to(log_density(np.where(seen, x, 1.0)), x.shape)
        return cells[seen].sum()

    def Normal(self, name, node):
        loc, scale = self.parameter(name, "loc"), self.parameter(name, "scale")
        return self.of_seen(name, lambda x: stats.norm.logpdf(x, loc, scale))

    def LogNormal(self, name, node):
        loc, scale = self.parameter(name, "loc"), self.parameter(name, "scale")
        return self.of_seen(name, lambda x: stats.norm.logpdf(np.log(x), loc, scale) - np.log(x))

    def StudentT(self, name, node):
        df, loc, scale = (self.parameter(name, key) for key in ("df", "loc", "scale"))
        return self.of_seen(name, lambda x: stats.t.logpdf(x, df, loc, scale))

    def Gamma(self, name, node):
        shape, rate = self.parameter(name, "concentration"), self.parameter(name, "rate")
        return self.of_seen(name, lambda x: stats.gamma.logpdf(x, shape, scale=1 / rate))

    def Exponential(self, name, node):
        rate = self.parameter(name, "rate")
        return self.of_seen(name, lambda x: stats.expon.logpdf(x, scale=1 / rate))

    def factor(self, name, node):
        D = self.schema.dims[name]
        key = "cov" if node.cov is not None else "scale_tril"
        given = self.parameter(name, key)
        if isinstance(node.terms()[key], Value):
            matrix = given * np.eye(D) if given.ndim == 0 else given
            return linalg.cholesky(matrix, lower=True) if key == "cov" else matrix
        matrix = np.zeros((D, D))
        for value, (i, j) in zip(given, np.transpose(np.tril_indices(D)), strict=True):
            matrix[i, j] = np.exp(value) if i == j else value
        term = node.terms()[key]
        least = self.least(name, node, self.spec.model[term.name] if isinstance(term, Name) else term)
        return matrix if least is None else np.where(np.eye(D), np.maximum(matrix, least), matrix)

    def seen_part(self, name, node):
        """The seen values, and location and scale matrix of their margin; None where nothing is seen."""
        x, D = self.row[name], self.schema.dims[name]
        seen, factor = np.flatnonzero(~np.isnan(x)), self.factor(name, node)
        mean = np.broadcast_to(self.parameter(name, "loc"), D)[seen]
        # R of L = QR's transpose: the factor of the margin, without squaring L and with it its condition.
        margin = linalg.qr(factor[seen].T, mode="economic")[1].T if len(seen) else np.zeros((0, 0))
        return x[seen] - mean, margin * np.sign(np.diag(margin))

    def MultivariateNormal(self, name, node):
        apart, factor = self.seen_part(name, node)
        white = linalg.solve_triangular(factor, apart, lower=True) if apart.size else apart
        return stats.norm.logpdf(white).sum() - np.log(np.diag(factor)).sum()

    def MultivariateStudentT(self, name, node):
        apart, factor = self.seen_part(name, node)
        if not apart.size:
            return 0.0
        white = linalg.solve_triangular(factor, apart, lower=True)
        df = float(np.squeeze(self.parameter(name, "df")))
        whole = stats.multivariate_t.logpdf(white, np.zeros(len(white)), np.eye(len(white)), df=df)
        return whole - np.log(np.diag(factor)).sum()

    def Bernoulli(self, name, node):
        logits = self.log_odds(name, node)
        return self.of_seen(
            name, lambda x: np.where(x > 0, special.log_expit(logits), special.log_expit(-logits))
        )

    def Binomial(self, name, node):
        logits, total = self.log_odds(name, node), self.parameter(name, "total_count")

        def log_density(x):
            ways = special.gammaln(total + 1) - special.gammaln(x + 1) - special.gammaln(total - x + 1)
            return ways + x * special.log_expit(logits) + (total - x) * special.log_expit(-logits)

        return self.of_seen(name, log_density)

    def NegativeBinomial(self, name, node):
        logits, total = self.log_odds(name, node), self.parameter(name, "total_count")

        def log_density(x):
            ways = -np.log(total + x) - special.betaln(total, x + 1)
            return ways + total * special.log_expit(-logits) + x * special.log_expit(logits)

        return self.of_seen(name, log_density)

    def Categorical(self, name, node):
        D, k = self.schema.dims[name], self.schema.k[name]
        key = "probs" if node.probs is not None else "logits"
        given = self.parameter(name, key, (D, k))
        numbers = key == "probs" and isinstance(node.probs, Value)
        logs = np.broadcast_to(np.log(given) if numbers else special.log_softmax(given, axis=-1), (D, k))
        codes = np.atleast_1d(self.row[name])
        return sum(logs[i, int(c)] for i, c in enumerate(codes) if c >= 0)

    def Poisson(self, name, node):
        rate = self.parameter(name, "rate")
        return self.of_seen(name, lambda x: stats.poisson.logpmf(x, rate))


# The declarations


def is_category(node):
    return isinstance(node, Categorical | Bernoulli) or (isinstance(node, Input) and node.k is not None)


ABOVE_0 = st.sampled_from([0.5, 1, 2.5])
PRIORS = {
    "real": st.one_of(
        st.builds(priors.Normal, loc=st.sampled_from([-1, 0.5]), scale=ABOVE_0),
        st.builds(priors.StudentT, df=ABOVE_0, loc=st.just(0), scale=ABOVE_0),
    ),
    "positive": st.one_of(
        st.builds(priors.Gamma, concentration=ABOVE_0, rate=ABOVE_0),
        st.builds(priors.InverseGamma, concentration=ABOVE_0, rate=ABOVE_0),
        st.builds(priors.LogNormal, loc=st.just(0), scale=ABOVE_0),
        st.builds(priors.HalfNormal, scale=ABOVE_0),
        st.builds(priors.HalfCauchy, scale=ABOVE_0),
        st.builds(priors.Exponential, rate=ABOVE_0),
    ),
    "unit_interval": st.builds(priors.Beta, concentration1=ABOVE_0, concentration0=ABOVE_0),
    "simplex": st.builds(priors.Dirichlet, concentration=ABOVE_0),
    "covariance": st.builds(priors.InverseWishart, df=st.sampled_from([4, 6.5]), scale=ABOVE_0),
}
MATRICES = {
    "covariance": [[2, 0.5, 0], [0.5, 1, 0], [0, 0, 3]],
    "lower_cholesky": [[1, 0, 0], [-0.5, 2, 0], [1, 0, 0.5]],
}
WITHIN = {"real": ["exp", "softplus", "sigmoid"], "positive": ["exp", "softplus", "sigmoid"]}


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
                draw(st.lists(st.sampled_from(categories), min_size=1, max_size=3, unique=True)), dim=dim
            )
        case "linear":
            return Linear(of, by=by, dim=dim, bias=draw(st.sampled_from([Free(), Value(0), Value(0.5)])))
    hidden = draw(st.lists(st.integers(1, 3), min_size=1, max_size=2))
    return MLP(of, hidden, by=by, dim=dim, activation=draw(st.sampled_from(sorted(ACTIVATIONS))))


@st.composite
def with_options(draw, term, constraint):
    """The term with a transform or a prior, or both, where the constraint has any."""
    options = {}
    if constraint in WITHIN and draw(st.integers(0, 2)) == 0:
        options["transform"] = draw(st.sampled_from(WITHIN[constraint]))
    about = "real" if isinstance(term, Linear) else constraint
    if about in PRIORS and not isinstance(term, MLP) and draw(st.integers(0, 2)) == 0:
        options["prior"] = draw(PRIORS[about])
    return dataclasses.replace(term, **options)


@st.composite
def written(draw, constraint, width, k):
    """Numbers for a whole parameter, some of them left free where that is possible."""
    matrix = {
        "covariance": [[2, 0.5, 0], [0.5, 1, 0], [0, 0, 3]],
        "lower_cholesky": [[1, 0, 0], [-0.5, 2, 0], [1, 0, 0.5]],
    }
    if constraint in matrix:
        rows = [row[:width] for row in matrix[constraint][:width]]
        return Value(draw(st.sampled_from([0.5, rows])))
    if constraint == "simplex":
        row = [0.5, 0.3, 0.2] if k == 3 else [0.25, 0.75]
        return Value(draw(st.sampled_from([row, [row[::-1]], [row] * width])) if width > 1 else row)
    cell = st.sampled_from([0.25, 0.5, Free()])
    if k is not None:  # logits
        return Value(draw(st.lists(cell, min_size=k, max_size=k)))
    return Value(draw(st.sampled_from([0.25, 0.5]) | st.lists(cell, min_size=width, max_size=width)))


@st.composite
def terms(draw, model, constraint, width, k=None):
    """A term for one parameter of a node that comes next in `model`; a table has no dim=1 and no names."""
    table = k is not None or constraint in ("covariance", "lower_cholesky")
    nodes = {name: entry for name, entry in model.items() if not isinstance(entry, Term)}
    categories = [name for name, node in nodes.items() if is_category(node)]
    values = [
        name
        for name, entry in model.items()
        if not isinstance(entry, Term) or isinstance(entry, MLP) or entry.dim
    ]
    function = functions(values, categories, summed=table)
    kind = draw(st.sampled_from(["function"] * 4 + ["sum", "sum", "value", "name", "ordered"]))
    if kind == "value":
        return draw(written(constraint, width, k))
    if kind == "ordered" and "v" in model and constraint in ("real", "positive") and not table:
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
        numbers = (
            [] if table or draw(st.integers(0, 3)) else [Value(draw(st.sampled_from([0.5, [-1] * width])))]
        )
        together = [*parts, *extra, *numbers]
        if len(together) == 1:
            return parts[0]
        if (
            constraint in WITHIN
        ):  # a sum has one transform, whichever part names it; its parts' priors are real
            together[0] = draw(with_options(together[0], constraint)) if draw(st.booleans()) else together[0]
            if getattr(together[0], "prior", None) is not None:
                together[0] = dataclasses.replace(together[0], prior=draw(PRIORS["real"]))
        return Sum(*together)
    if kind == "name" and not table and constraint in ("real", "positive"):
        shared = [
            n for n, e in model.items() if isinstance(e, Linear | MLP) and e.dim is None and n.startswith("q")
        ]
        if shared and n_uses(model, shared[-1]) == 0:
            return Name(shared[-1])
    return draw(with_options(draw(function), constraint))


def n_uses(model, name):
    return sum(name in entry.parents() for entry in model.values())


FAMILIES = [
    *(Normal, LogNormal, StudentT, Gamma, Exponential, Poisson, Bernoulli, NegativeBinomial, Binomial),
    *(MultivariateNormal, MultivariateStudentT, Categorical),
]


@st.composite
def entries(draw, model):
    """The next node."""
    family = draw(st.sampled_from(FAMILIES))
    dim = draw(st.integers(1, 3))
    k = draw(st.integers(2, 3)) if family is Categorical else None
    one_of_two = {draw(st.sampled_from(family.either))} if family.either else set()
    parameters = {}
    for key, constraint in family.constraints.items():
        if family.either and key in {*family.either} - one_of_two:
            continue
        if constraint == "count":
            parameters[key] = draw(st.sampled_from([3, "n"])) if "n" in model else 3
            continue
        width = 1 if key in family.single else dim
        parameters[key] = draw(terms(model, constraint, width, k))
    if family is Categorical:
        return Categorical(k, dim=dim if dim > 1 else None, **parameters)
    return family(dim, **parameters)


@st.composite
def declarations(draw):
    model = {}
    if draw(st.booleans()):
        model["u"] = Input(2)
    if draw(st.booleans()):
        model["v"] = Input(k=3)
    if draw(st.integers(0, 2)) == 0:
        model["n"] = Input(1)
    for i in range(draw(st.integers(2, 5))):
        values = [name for name, entry in model.items() if not isinstance(entry, Term)]
        if values and draw(st.integers(0, 3)) == 0:
            categories = [name for name in values if is_category(model[name])]
            term = draw(functions(values, categories, summed=True))
            if isinstance(term, MLP):
                model[f"q{i}"] = term
            else:
                model[f"h{i}"] = dataclasses.replace(term, dim=2)
        model[f"x{i}"] = draw(entries(model))
    return Spec(model=model)


def drawn_rows(spec, rng):
    rows = {}
    for name, node in spec.nodes.items():
        width = node.width or 1
        if isinstance(node, Categorical):
            rows[name] = rng.integers(0, node.k, (N, width) if node.dim else N)
        elif isinstance(node, Input) and node.k:
            rows[name] = rng.integers(0, node.k, N)
        elif name == "n":
            rows[name] = rng.integers(3, 9, (N, 1)).astype(float)
        elif isinstance(node, Bernoulli):
            rows[name] = rng.integers(0, 2, (N, width)).astype(float)
        elif isinstance(node, Binomial):
            rows[name] = rng.integers(0, 4, (N, width)).astype(float)
        elif node.support == "count":
            rows[name] = rng.poisson(2, (N, width)).astype(float)
        elif node.support == "positive":
            rows[name] = rng.gamma(2, size=(N, width))
        else:
            rows[name] = rng.normal(size=(N, width)) * 2 + 1
    return rows


def with_holes(spec, rows, rng):
    """The same rows, a third of the leaves' cells missing."""
    holed = dict(rows)
    for name in spec.leaves:
        lost = rng.random(rows[name].shape) < 1 / 3
        missing = -1 if rows[name].dtype.kind == "i" else np.nan
        holed[name] = np.where(lost, missing, rows[name])
    return holed


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
        spread={name: tuple(np.where(rows[name].std(0) > 0, rows[name].std(0), 1.0)) for name in numeric},
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
    state = {path: value.numpy() for path, value in program.state_dict().items()}
    evaluation = Evaluation(spec, schema, state)
    for given_rows in (rows, with_holes(spec, rows, rng)):
        with torch.no_grad():
            trace = poutine.trace(program.model).get_trace(program.tensors(given_rows))
            trace.compute_log_prob()
            ours = sum(trace.nodes[name]["log_prob"] for name in schema.roles.observed).numpy()
        np.testing.assert_allclose(float(trace.log_prob_sum()), ours.sum(), rtol=1e-12)
        by_hand = [
            ByHand(spec, schema, state, {name: x[d] for name, x in given_rows.items()}).log_joint()
            for d in range(N)
        ]
        # Sums of some ten log-densities of size up to 1e4, each to some units in the last place. Where cells are
        # missing, the others' covariance is factorised anew, which costs half of the digits of its condition; rows
        # that are a hundred thousand nats away tell of that alone.
        whole = given_rows is rows
        within = {"rtol": 1e-10 if whole else 1e-6, "atol": 1e-10, "err_msg": str(spec)}
        near = np.full(N, whole) | (np.abs(by_hand) < 1e5)
        np.testing.assert_allclose(ours[near], np.array(by_hand)[near], **within)
        # The certificate's evaluation is an independent reading too.
        certified = evaluation.log_joint(given_rows)
        np.testing.assert_allclose(certified[near], np.array(by_hand)[near], **within)
    np.testing.assert_allclose(
        float(program.log_prior().detach()), log_prior(evaluation), rtol=1e-10, atol=1e-10
    )


@settings(max_examples=150, deadline=None, derandomize=True)
@given(declarations())
def test_any_declaration_is_read_back_from_its_yaml(spec):
    text = str(spec)
    assert read_spec(text) == spec
    assert str(read_spec(text)) == text
