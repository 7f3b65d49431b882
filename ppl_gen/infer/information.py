"""Observed information: the curvature of Σ_d w_d log p(x_d) at the estimate, and the errors that follow from it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ppl_gen.data.table import Table
from ppl_gen.infer.enumeration import Rows, State, log_marginal
from ppl_gen.infer.identified import BOUNDARY, FIXED, REFERENCE, Identified, identified
from ppl_gen.infer.natural import beyond_reach, leaves, natural_map, nested
from ppl_gen.program.lowering import pyro_scope
from ppl_gen.program.program import Program

Array = NDArray[np.float64]
Kind = Literal["observed", "sandwich"]
KINDS = ("observed", "sandwich")

CELLS = 4_000_000  # numbers of one intermediate result held at a time
ROWS = 1_000  # of a block where only a few directions are looked at
FLAT = 1e-10  # a curvature this small beside the largest, in scaled coordinates, is none
MOVES = 1e-6  # share of a parameter's derivative along flat directions from which it is not identified
UNIDENTIFIED = "not identified"
NOT_BOUNDED = "not bounded by data"  # off to infinity, as where columns tell outcomes apart


@dataclass(frozen=True, eq=False)
class Uncertainty:
    """Errors of the natural parameters at an estimate.

    Args:
        phi: the identified predictors φ that the information is about.
        kind: "observed" or "sandwich".
        information: −∇² of the objective in φ, (P, P).
        predictors: the covariance of φ, (P, P); NaN where there is none.
        jacobian: of all natural parameters, end to end, by φ: (M, P).
        estimates: those natural parameters, (M,).
        status: (M,) "", or why a number has no error of its own: "fixed" by the declaration, "reference" of
            the others, at the "boundary", "not identified", "not bounded by data".
        problem: None, or why there are no errors at all, in a sentence.

    """

    phi: Identified
    kind: str
    information: Array
    predictors: Array
    jacobian: Array
    estimates: Array
    status: NDArray[np.str_]
    problem: str | None = None

    @property
    def covariance(self) -> Array:
        """Of the natural parameters, by the delta method: J C Jᵀ, (M, M)."""
        return np.asarray(self.jacobian @ self.predictors @ self.jacobian.T)

    @property
    def flat_errors(self) -> Array:
        """Standard errors end to end, (M,): 0 where the declaration decides, NaN where there is none to tell."""
        errors = np.sqrt(np.einsum("mp,pq,mq->m", self.jacobian, self.predictors, self.jacobian).clip(min=0))
        still = ~self.jacobian.any(1)
        decided = still & np.isin(self.status, (FIXED, REFERENCE))
        unknown = np.isin(self.status, (BOUNDARY, UNIDENTIFIED, NOT_BOUNDED)) | (still & ~decided)
        return np.where(unknown, np.nan, np.where(decided, 0.0, errors))

    @property
    def errors(self) -> dict[str, dict[str, Any]]:
        """Standard errors in the shape of `Fit.parameters`."""
        return nested(self.phi.program.generative, self.flat_errors)


def blocks(program: Program, table: Table, size: int) -> Iterator[tuple[Rows, Tensor]]:
    """Rows and their weights, `size` at a time, as the program takes them."""
    weights = np.ones(table.n_units) if table.weights is None else table.weights
    for start in range(0, table.n_units, size):
        arrays = {name: array[start : start + size] for name, array in table.arrays.items()}
        yield (
            program.tensors(arrays, holes=table.holes),
            torch.as_tensor(weights[start : start + size], dtype=torch.float64),
        )


def observed_information(program: Program, state: State, table: Table) -> tuple[Identified, Array]:
    """−∇² [Σ_d w_d log p(x_d) + log prior] in the identified predictors: those, and (P, P).

    By automatic differentiation of the enumerated log-marginal (F1), block of rows by block of rows, in float64.

    Args:
        program: whose latents are all discrete.
        state: its parameters and buffers.
        table: the rows.

    Reference: Efron & Hinkley (1978), Biometrika 65; with a prior it is the precision of Laplace's approximation.

    Example:
        >>> from ppl_gen.data.reading import read_table
        >>> from ppl_gen.declare.files import read_spec
        >>> from ppl_gen.declare.nodes import Poisson
        >>> from ppl_gen.declare.spec import Spec
        >>> from ppl_gen.program.program import compile_spec
        >>> spec = Spec(model={"x": Poisson(1)})
        >>> table = read_table({"x": [[2], [4], [6]]}, spec)
        >>> program = compile_spec(spec, table.schema)
        >>> state = {"generative.layers.x:rate.table": torch.tensor([4.0], dtype=torch.float64).log()}
        >>> observed_information(program, state, table)[1].round(6)  # of log λ: Σ x
        array([[12.]])

    """
    phi = identified(program, state, table.total)
    return phi, information_at(phi, table)


def information_at(phi: Identified, table: Table, *, prior: bool = True) -> Array:
    """The matrix of `observed_information` in predictors that are there; of the likelihood alone if asked."""
    P = phi.count
    total = torch.zeros((P, P), dtype=torch.float64)
    if not P:
        return np.asarray(total.numpy())
    flat = phi.flat

    def likelihood(rows: Rows, weights: Tensor, flat: Tensor) -> Tensor:
        return -(log_marginal(phi.program, phi.state(flat), rows) * weights).sum()

    with pyro_scope():
        for rows, weights in blocks(phi.program, table, block_rows(phi)):
            total += torch.autograd.functional.hessian(
                partial(likelihood, rows, weights), flat, vectorize=True
            )
        if prior and any(True for _ in phi.program.priors):
            total -= torch.autograd.functional.hessian(lambda flat: _log_prior(phi, flat), flat)
    return np.asarray((0.5 * (total + total.T)).numpy())


def second_derivatives(phi: Identified, table: Table, directions: Array) -> Array:
    """vᵀ I v of a few directions v (V, P), of the likelihood alone: (V,), each for a few gradients.

    The second derivative of −Σ_d w_d log p(x_d) by t at φ + t v; no (P, P) matrix is held.
    """
    total, flat = np.zeros(len(directions)), phi.flat
    along = torch.as_tensor(directions, dtype=torch.float64)

    def likelihood(t: Tensor, v: Tensor, rows: Rows, weights: Tensor) -> Tensor:
        return -(log_marginal(phi.program, phi.state(flat + t * v), rows) * weights).sum()

    twice = torch.func.grad(torch.func.grad(likelihood))
    start = torch.zeros((), dtype=torch.float64)
    with pyro_scope():
        for rows, weights in blocks(phi.program, table, ROWS):
            total += [float(twice(start, v, rows, weights)) for v in along]
    return total


def scores(phi: Identified, table: Table) -> Array:
    """∇ log p(x_d) of each row in the identified predictors: (N, P)."""
    if not phi.count:
        return np.zeros((table.n_units, 0))
    flat = phi.flat

    def one(flat: Tensor, row: Rows) -> Tensor:
        alone = {name: value.unsqueeze(0) for name, value in row.items()}
        return log_marginal(phi.program, phi.state(flat), alone).squeeze(0)

    each = torch.func.vmap(torch.func.grad(one), (None, 0))
    with pyro_scope():
        parts = [each(flat, rows) for rows, _ in blocks(phi.program, table, block_rows(phi))]
    return np.asarray(torch.cat(parts).numpy())


def uncertainty(program: Program, state: State, table: Table, kind: Kind = "observed") -> Uncertainty:
    """Standard errors of the natural parameters by the delta method.

    C = I⁻¹ with the observed information I ("observed"), or I⁻¹ (Σ_d w_d s_d s_dᵀ) I⁻¹ with the rows' scores s_d
    ("sandwich"), which holds where the model is not the one that made the rows. Directions in which the objective
    is flat are left out of I⁻¹ (a pseudo-inverse on what is identified), and parameters that lean on them have no
    error. Where I is not positive definite, none has.

    Reference: White (1982), Econometrica 50; Huber (1967).
    """
    phi, information = observed_information(program, state, table)
    jacobian, estimates = _natural(phi)
    found = leaves(phi.program.generative)
    shapes = [tuple(leaf.read().shape) for leaf in found]
    status = np.concatenate(
        [
            leaf.status(phi, shape).reshape(-1).astype("<U20")
            for leaf, shape in zip(found, shapes, strict=True)
        ]
    )
    inverse, flat_directions, problem = pseudo_inverse(information, phi.names())
    plain = np.sqrt(np.einsum("mp,pq,mq->m", jacobian, inverse, jacobian).clip(min=0))
    loose = beyond_reach(phi.program.generative, program.schema, plain)
    status = np.where(loose & (status == ""), NOT_BOUNDED, status)
    if kind == "sandwich" and problem is None:
        s = scores(phi, table)
        weights = np.ones(len(s)) if table.weights is None else table.weights
        inverse = inverse @ (s.T @ (weights[:, None] * s)) @ inverse
    lost = _leaning(jacobian, flat_directions, information)
    status = np.where(lost & (status == ""), UNIDENTIFIED, status)
    return Uncertainty(phi, kind, information, inverse, jacobian, estimates, status, problem)


def pseudo_inverse(information: Array, names: list[str]) -> tuple[Array, Array, str | None]:
    """I⁻¹ on the directions that are identified, the flat directions (P, r), and None or what is wrong.

    Curvatures are judged in coordinates that each have curvature one, so that the data's units do not matter.
    """
    P = len(information)
    nothing = np.full((P, P), np.nan)
    if not np.isfinite(information).all():
        return nothing, np.zeros((P, 0)), "the information is not finite: no standard errors"
    curvature = np.abs(np.diag(information))
    unit = 1 / np.sqrt(np.where(curvature > 0, curvature, 1.0))
    values, vectors = np.linalg.eigh(unit[:, None] * information * unit)
    limit = FLAT * max(1.0, float(np.abs(values).max(initial=0.0)))
    if values.min(initial=0.0) < -limit:
        worst = names[int(np.abs(vectors[:, 0]).argmax())]
        return (
            nothing,
            np.zeros((P, 0)),
            f"the observed information is not positive definite (most along {worst}): this is no maximum of the "
            "likelihood, or one on a ridge, and no standard error is given. Run more steps, or use fewer classes",
        )
    steep = values > limit
    kept = unit[:, None] * vectors[:, steep]
    return (kept / values[steep]) @ kept.T, unit[:, None] * vectors[:, ~steep], None


def _leaning(jacobian: Array, flat_directions: Array, information: Array) -> NDArray[np.bool_]:
    """Which natural parameters move along directions in which the objective is flat."""
    if not flat_directions.shape[1]:
        return np.zeros(len(jacobian), dtype=bool)
    curvature = np.abs(np.diag(information))
    unit = 1 / np.sqrt(np.where(curvature > 0, curvature, 1.0))
    moved = np.abs(jacobian @ flat_directions).max(1)
    return np.asarray(moved > MOVES * np.linalg.norm(jacobian * unit, axis=1))


def _natural(phi: Identified) -> tuple[Array, Array]:
    """The natural parameters' derivatives by the predictors (M, P), and their values (M,)."""
    call = natural_map(phi.program.generative)
    flat = phi.flat
    estimates = call(phi.state(flat)).detach().numpy()
    if not phi.count:
        return np.zeros((len(estimates), 0)), estimates
    # Not jacfwd: forward mode scripts its decompositions, of which torch itself warns.
    derivative = torch.func.jacrev(lambda flat: call(phi.state(flat)))(flat)
    return np.asarray(derivative.detach().numpy()), np.asarray(estimates)


def _log_prior(phi: Identified, flat: Tensor) -> Tensor:
    """The log-density of the priors at these predictors, on the parameters' natural scale."""
    total: Tensor = torch.func.functional_call(phi.program, phi.state(flat), ("log_prior",))
    return total


def block_rows(phi: Identified) -> int:
    """Rows a block: all P second derivatives of it are taken at once."""
    program = phi.program
    joint = 1
    for name in program.enumerated:
        joint *= int(np.prod(program.generative.draws[name].sizes.levels))
    return max(16, CELLS // (max(1, phi.count) * joint))
