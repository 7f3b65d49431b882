"""Any declared model's log-joint in NumPy: the declaration, the numbers and the reference's densities.

The second opinion of the certificate: no torch, no Pyro and no part of the compiled program takes part.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
from scipy.special import expit, softmax

from ppl_gen import reference
from ppl_gen.certify import densities
from ppl_gen.certify.predictors import Array, Predictors, Values
from ppl_gen.certify.predictors import SecondOpinionError as SecondOpinionError
from ppl_gen.data.schema import Schema
from ppl_gen.declare.nodes import Input, Node
from ppl_gen.declare.spec import Spec
from ppl_gen.declare.terms import By, Free, Name, Term, Value

LEAST_PROBABILITY = 1e-300  # a written 0: its logarithm must stay comparable
CELLS = 4_000_000  # of a table held at a time
IMPOSSIBLE = -1e30  # log 0, of a label that contradicts the known one


class Evaluation:
    """The nodes of a model, or of a guide, as densities of given values.

    Args:
        spec: the declaration.
        schema: what the data settled.
        numbers: the learned numbers by path, as `program.state_dict()` names them.
        guide: the guide's entries; None: the model's.

    Values are (…, N, width), and (…, N) for a category without dim; axes before the rows broadcast.

    Example:
        >>> from ppl_gen.data.reading import read_table
        >>> from ppl_gen.declare.nodes import Normal
        >>> spec = Spec(model={"x": Normal(1, loc=0, scale=2)})
        >>> rows = {"x": np.array([[0.0], [2.0]])}
        >>> evaluation = Evaluation(spec, read_table(rows, spec).schema, {})
        >>> evaluation.log_density("x", rows).round(4)
        array([-1.6121, -2.1121])

    """

    def __init__(
        self,
        spec: Spec,
        schema: Schema,
        numbers: Mapping[str, Array],
        guide: Mapping[str, Node | Term] | None = None,
    ) -> None:
        self.spec, self.schema, self.numbers = spec, schema, numbers
        self.path = "generative" if guide is None else "recognition"
        entries = spec.model if guide is None else guide
        observed = {*()} if guide is None else {*schema.roles.observed} - {*schema.partial}
        self.entries = {name: entry for name, entry in entries.items() if name not in observed}
        self.predictors = Predictors(self.entries, spec.nodes, schema, numbers, self.path)
        self.names = tuple(
            name
            for name, entry in self.entries.items()
            if isinstance(entry, Node) and not isinstance(entry, Input)
        )

    def parameters(self, name: str, values: Values) -> dict[str, Array]:
        """A node's parameters on their natural scale at the values of its parents, (…, *axes)."""
        node = self.predictors.node(name)
        return {key: self._natural(name, node, key, term, values) for key, term in node.terms().items()}

    def log_density(self, name: str, values: Values) -> Array:
        """Log p of a node's value given its parents', summed over its cells: (…, N)."""
        node, x = self.predictors.node(name), values[name]
        if node.guide_only:
            raise SecondOpinionError(
                f"{name} is a {node.family} in the guide, whose density nothing is held against"
            )
        given = self.parameters(name, values)
        if node.support == "category":
            probs = given["probs"] if "probs" in given else softmax(given["logits"], axis=-1)
            codes = x.astype(np.int64)
            known = np.maximum(codes, 0)  # −1 is a missing cell
            cells = reference.log_categorical(known, np.maximum(probs, LEAST_PROBABILITY))
            if self.predictors.is_scalar(name):
                return np.asarray(np.where(codes < 0, 0.0, cells))
            return densities.over_cells(cells, codes < 0)
        if node.family in densities.VECTORS:
            given["factor"] = self.factor(name, values)
            return densities.of_seen_part(densities.VECTORS[node.family], x, given)
        if "probs" in given:
            given["logits"] = self._log_odds(name, node, values)
        density = densities.CELLS.get(node.family) or _of_own_family(node)
        missing = np.isnan(x)
        # Where nothing is seen, any value of the support will do: 1 is in each of them.
        return densities.over_cells(density(np.where(missing, 1.0, x), given), missing)

    def log_densities(self, values: Values) -> dict[str, Array]:
        """Log p of every node: their sum is the log-joint."""
        return {name: self.log_density(name, values) for name in self.names}

    def log_joint(self, values: Values) -> Array:
        """Log p(x, z) (or log q(z | x) of a guide) at these values: (…, N)."""
        total: Array = np.zeros(())
        for log_density in self.log_densities(values).values():
            total = total + log_density
        return total

    def table(self, name: str, key: str) -> Array | None:
        """A parameter's learned table on its natural scale, (parents…, *axes); None where there is none."""
        term = self.predictors.node(name).terms()[key]
        owner = name
        if isinstance(term, Name) and term.name in self.entries:
            owner, entry = term.name, self.entries[term.name]
            assert isinstance(entry, Term)
            term = entry
        if not isinstance(term, Free | By):
            return None
        table = self.numbers[f"{self.path}.layers.{owner}:{key}.table"]
        return self._transformed(self.predictors.node(name), key, term, table)

    def factor(self, name: str, values: Values) -> Array:
        """L of a node's matrix L Lᵀ, as it is learned: squaring it first would square its condition."""
        node = self.predictors.node(name)
        key = "cov" if "cov" in node.terms() else "scale_tril"
        term = self._resolved(node.terms()[key])
        if isinstance(term, Value):
            written = self._written(name, node, key, term)
            return np.linalg.cholesky(written) if key == "cov" else written
        axes = self._axes(name, node, key)
        factor = _lower_triangle(self.predictors.of_parameter(name, key, node.terms()[key], axes, values))
        least = self._least(name, node, key)
        if least is not None:
            rows = np.arange(len(least))
            factor[..., rows, rows] = np.maximum(factor[..., rows, rows], least)
        return factor

    def _resolved(self, term: Term) -> Term:
        """A named term as if written where its name stands."""
        entry = self.entries.get(term.name) if isinstance(term, Name) else None
        return entry if isinstance(entry, Term) else term

    def _natural(self, name: str, node: Node, key: str, term: Term, values: Values) -> Array:
        if isinstance(resolved := self._resolved(term), Value):
            return self._written(name, node, key, resolved)
        if key == "cov":
            factor = self.factor(name, values)
            return factor @ factor.swapaxes(-1, -2)
        if key == "scale_tril":
            return self.factor(name, values)
        predictor = self.predictors.of_parameter(name, key, term, self._axes(name, node, key), values)
        natural = self._transformed(node, key, term, predictor)
        least = self._least(name, node, key)
        return natural if least is None else np.maximum(natural, densities.pooled(least, natural.shape[-1]))

    def _least(self, name: str, node: Node, key: str) -> Array | None:
        """The floor of the scales that a function gives an observed real column, (D,)."""
        term = self._resolved(node.terms()[key])
        written = isinstance(term, Value | Free) or (isinstance(term, By) and not term.ordered)
        observed = name in self.schema.roles.observed and node.support == "real"
        if written or not observed or key not in ("scale", "cov", "scale_tril"):
            return None
        return np.array(self.schema.spread[name]) * (1e-10 if node.family == "StudentT" else 1e-4)

    def _transformed(self, node: Node, key: str, term: Term, predictor: Array) -> Array:
        """From the unconstrained scale to the parameter's own (rule 11)."""
        constraint, transform = node.constraints[key], getattr(self._resolved(term), "transform", None)
        if transform == "softplus":
            return np.asarray(np.logaddexp(predictor, 0))
        if transform == "sigmoid":
            return np.asarray(expit(predictor))
        if constraint == "positive" or (constraint == "real" and transform == "exp"):
            return np.asarray(np.exp(predictor))
        if constraint == "unit_interval":
            return np.asarray(expit(predictor))
        if constraint == "simplex":
            return np.asarray(softmax(predictor, axis=-1))
        if constraint in ("covariance", "lower_cholesky"):
            factor = _lower_triangle(predictor)
            return np.asarray(factor if constraint == "lower_cholesky" else factor @ factor.swapaxes(-1, -2))
        return predictor

    def _axes(self, name: str, node: Node, key: str) -> tuple[int, ...]:
        width = self.schema.dims[name]
        if key in node.single:
            return (1,)
        if node.constraints[key] in ("covariance", "lower_cholesky"):
            return (width * (width + 1) // 2,)
        if node.support == "category":
            k = self.schema.k[name]
            return (k,) if self.predictors.is_scalar(name) else (width, k)
        return (width,)

    def _written(self, name: str, node: Node, key: str, term: Value) -> Array:
        """Numbers as they stand in the declaration, the places left free filled in."""
        axes, width = self._axes(name, node, key), self.schema.dims[name]
        if node.constraints[key] in ("covariance", "lower_cholesky"):
            matrix = np.asarray(term.value, dtype=np.float64)
            return matrix * np.eye(width) if matrix.ndim == 0 else matrix
        learned = [isinstance(cell, Free) for cell in term.cells()]
        cells = np.array([0.0 if isinstance(c, Free) else float(c) for c in term.cells()])
        shape = term.shape
        if isinstance(node.dim, tuple) and shape == node.dim:
            shape = (width,)  # an image-shaped list, cell by cell
        numbers = np.broadcast_to(cells.reshape(shape), axes)
        if not any(learned):
            return numbers
        free = np.broadcast_to(np.reshape(learned, shape), axes)
        table = self.numbers[f"{self.path}.layers.{name}:{key}.table"]
        if node.constraints[key] != "simplex":
            return np.where(free, self._transformed(node, key, term, table), numbers)
        rest = 1 - numbers.sum(-1, keepdims=True)  # what the written probabilities leave
        return np.where(free, rest * softmax(np.where(free, table, -np.inf), axis=-1), numbers)

    def _log_odds(self, name: str, node: Node, values: Values) -> Array:
        """The logits behind `probs`, without the detour through a rounded probability where there is none."""
        term = node.terms()["probs"]
        written = self._resolved(term)
        if not isinstance(written, Value):
            return self.predictors.of_parameter(name, "probs", term, self._axes(name, node, "probs"), values)
        p = np.clip(self._written(name, node, "probs", written), LEAST_PROBABILITY, 1 - np.finfo(float).eps)
        return np.asarray(np.log(p) - np.log1p(-p))


def _lower_triangle(packed: Array) -> Array:
    """L from its rows laid end to end, the logarithm on its diagonal: (…, D(D+1)/2) → (…, D, D)."""
    size = math.isqrt(2 * packed.shape[-1])
    factor = np.zeros((*packed.shape[:-1], size, size))
    factor[..., *np.tril_indices(size)] = packed
    diagonal = np.arange(size)
    factor[..., diagonal, diagonal] = np.exp(factor[..., diagonal, diagonal])
    return factor


def _of_own_family(node: Node) -> densities.Cell:
    """The density that a family of the user's own declares."""
    density = type(node).log_density
    if density is None:
        raise SecondOpinionError(f"{node.family} declares no log_density, so nothing is held against it")
    return lambda x, given: np.asarray(density(x, **{name: given[name] for name in node.constraints}))


def joint_states(evaluation: Evaluation, names: Sequence[str], first: int = -2) -> dict[str, Array]:
    """Every value of some discrete latents, the i-th on the axis `first` − i: together, their joint table."""
    schema, states = evaluation.schema, {}
    for position, name in enumerate(names):
        width, k = schema.dims[name], schema.k.get(name, 2)
        grid = np.stack(np.meshgrid(*[np.arange(k)] * width, indexing="ij"), -1).reshape(-1, width)
        ones = (1,) * (-first - 1 + position)
        scalar = evaluation.predictors.is_scalar(name)
        states[name] = grid.reshape(len(grid), *ones) if scalar else grid.reshape(len(grid), *ones, width)
    return states


def agreement(states: Mapping[str, Array], rows: Values) -> Array:
    """0 where the joint state is what a row's known labels say, and next to log 0 elsewhere."""
    total: Array = np.zeros(())
    for name in states.keys() & rows.keys():
        label, state = np.nan_to_num(rows[name], nan=-1), states[name]
        wrong = (state != label) & (label >= 0)
        total = total + IMPOSSIBLE * (wrong.any(-1) if label.ndim > 1 else wrong)
    return total


def log_joint_table(evaluation: Evaluation, rows: Values, names: Sequence[str]) -> Array:
    """Log p(x_d, z) of each row at every joint state of the discrete latents `names`: (N, K)."""
    n = len(next(iter(rows.values())))
    states = joint_states(evaluation, names)
    sizes = [len(states[name]) for name in reversed(names)]
    cells = math.prod(sizes) * max(evaluation.schema.dims[name] for name in rows)
    step = max(1, CELLS // cells)
    parts = []
    for start in range(0, n, step):
        block = {name: value[start : start + step] for name, value in rows.items()}
        count = min(step, n - start)
        log_joint = evaluation.log_joint(block | states) + agreement(states, block)
        log_joint = np.broadcast_to(log_joint, (*sizes, count))
        parts.append(log_joint.reshape(-1, count).T)
    return np.concatenate(parts)
