"""What written numbers and transforms must satisfy to stand for a parameter of a given constraint."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from typing import Any

from ppl_gen.declare.matrices import check_covariance, check_lower
from ppl_gen.declare.primitives import Free, Sum, Term, Value
from ppl_gen.declare.prior_option import check_prior
from ppl_gen.declare.terms import By, Linear
from ppl_gen.errors import SpecError

# Numbers written with seven digits or more sum to 1 within this.
SUM_TOLERANCE = 1e-6

# The transforms whose values lie inside the constraint.
WITHIN = {
    "real": ("identity", "exp", "softplus", "sigmoid"),
    "positive": ("exp", "softplus", "sigmoid"),
    "unit_interval": ("sigmoid",),
    "simplex": ("softmax",),
    "covariance": ("exp",),
    "lower_cholesky": ("exp",),
}
ORDERABLE = ("real", "positive", "unit_interval")


def check_parameter(term: Term, constraint: str, dim: int | tuple[int, ...] | None, k: int | None) -> None:
    """Hold one parameter's term against its constraint and the node's size, as far as both are written.

    Args:
        term: the parameter's term.
        constraint: a key of `WITHIN`.
        dim: the node's dim; None where it is left to the data.
        k: the number of categories where the parameter has an axis over them; else None.

    Raises:
        SpecError: the message begins with a verb; the caller puts node and parameter before it.

    """
    if isinstance(term, Value):
        _check_numbers(term, constraint, dim, k)
    transform = getattr(term, "transform", None)
    if transform is not None and transform not in WITHIN[constraint]:
        fitting = ", ".join(WITHIN[constraint])
        raise SpecError(f"cannot have transform={transform!r}; those whose values fit: {fitting}")
    for part in term.terms if isinstance(term, Sum) else (term,):
        _check_width(part, dim)
        prior = getattr(part, "prior", None)
        if prior is not None:  # a weight, and what stands in a sum, is on the linear predictor's scale
            check_prior(prior, "real" if isinstance(term, Sum | Linear) else constraint, k)
        if isinstance(part, By) and part.ordered:
            wide = part.dim is None and (math.prod(dim) if isinstance(dim, tuple) else dim or 1) > 1
            if constraint not in ORDERABLE or wide:
                raise SpecError("cannot be ordered: ordered=True needs one number a category, as with dim=1")


def _check_width(part: Term, dim: int | tuple[int, ...] | None) -> None:
    own = getattr(part, "dim", None)
    if own in (None, 1) or dim is None or own == dim:
        return
    raise SpecError(
        f"has dim={_sized(own)} in {part}, but the node has dim={_sized(dim)}; write 1 or leave it out"
    )


def _sized(dim: object) -> str:
    return str(list(dim) if isinstance(dim, tuple) else dim)


def _check_numbers(value: Value, constraint: str, dim: int | tuple[int, ...] | None, k: int | None) -> None:
    if constraint in ("covariance", "lower_cholesky"):
        return _check_matrix(value, constraint, dim)
    numbers = [cell for cell in value.cells() if not isinstance(cell, Free)]
    if constraint == "positive" and any(number <= 0 for number in numbers):
        raise SpecError(f"must be positive, got {value}")
    if constraint in ("unit_interval", "simplex") and any(not 0 <= number <= 1 for number in numbers):
        raise SpecError(f"must lie between 0 and 1, got {value}")
    if constraint == "simplex":
        _check_simplex(value, k)
    shape = value.shape
    if k is not None:
        if shape and shape[-1] not in (1, k):
            raise SpecError(f"must have {k} numbers, one a category, got {shape[-1]}: {value}")
        shape = shape[:-1]
    elif constraint == "simplex":
        shape = shape[:-1]
    axes = dim if isinstance(dim, tuple) else (dim,)
    if dim is not None and not _broadcasts(shape, tuple(a for a in axes if a is not None)):
        raise SpecError(
            f"must fit the node's dim={_sized(dim)}, got numbers of shape {_sized(shape)}: {value}"
        )


def _broadcasts(shape: tuple[int, ...], onto: tuple[int, ...]) -> bool:
    return len(shape) <= len(onto) and all(
        a in (1, b) for a, b in zip(reversed(shape), reversed(onto), strict=False)
    )


def _check_simplex(value: Value, k: int | None) -> None:
    for row in _rows(value.value):
        if not isinstance(row, tuple):
            if (
                k is not None
                and not isinstance(row, Free)
                and math.isclose(row * k, 1, abs_tol=SUM_TOLERANCE)
            ):
                continue
            raise SpecError(f"must be one probability a category, summing to 1, got {value}")
        total = math.fsum(cell for cell in row if not isinstance(cell, Free))
        learned = any(isinstance(cell, Free) for cell in row)
        if learned and total >= 1:
            raise SpecError(f"must leave something for Free(): the numbers sum to {total:g} in {value}")
        if not learned and abs(total - 1) > SUM_TOLERANCE:
            raise SpecError(f"must sum to 1, got {total:g} in {value}")


def _rows(nested: Any) -> list[Any]:
    """The innermost lists (or the number itself)."""
    if isinstance(nested, tuple) and isinstance(nested[0], tuple):
        return list(itertools.chain.from_iterable(_rows(item) for item in nested))
    return [nested]


def _check_matrix(value: Value, constraint: str, dim: int | tuple[int, ...] | None) -> None:
    if any(isinstance(cell, Free) for cell in value.cells()):
        raise SpecError("with Free() inside a matrix is not supported yet; write Free() or all the numbers")
    matrix = value.value
    if not isinstance(matrix, tuple):
        if matrix <= 0:
            raise SpecError(f"must be positive, got {value}")
        return
    n = len(matrix)
    if value.shape != (n, n):
        raise SpecError(f"must be a number or a square matrix, got numbers of shape {_sized(value.shape)}")
    if dim is not None and n != dim:
        raise SpecError(f"must be {dim} by {dim} as the node's dim={_sized(dim)}, got {n} by {n}")
    MATRICES[constraint](matrix)


MATRICES: dict[str, Callable[[tuple[tuple[float, ...], ...]], None]] = {
    "covariance": check_covariance,
    "lower_cholesky": check_lower,
}
