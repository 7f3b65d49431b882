"""Numbers written as arguments of a prior: one, or a nested list; positive ones, positive definite ones."""

from __future__ import annotations

import math
import numbers
from typing import Annotated, Any, TypeAlias

from pydantic import BeforeValidator

from ppl_gen.declare.arguments import shown
from ppl_gen.declare.matrices import check_covariance
from ppl_gen.errors import SpecError

Nested: TypeAlias = Any  # a number, or tuples of them nested to one shape


def _numbers(value: object, depth: int = 0) -> Nested:
    if hasattr(value, "tolist"):  # an array, of whatever library
        value = value.tolist()
    if isinstance(value, list | tuple) and value and depth < 8:
        rows = tuple(_numbers(item, depth + 1) for item in value)
        if len({shape(row) for row in rows}) > 1:
            raise SpecError(f"must have rows of one length, got {shown(value)}")
        return rows
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        raise SpecError(f"must be a number or a list of numbers, got {shown(value)}")
    try:
        finite = math.isfinite(value)
    except OverflowError:
        finite = False
    if not finite:
        raise SpecError(f"must be finite, got {shown(value)}")
    return int(value) if isinstance(value, numbers.Integral) else float(value)


def _positive(value: object) -> Nested:
    read = _numbers(value)
    if least(read) <= 0:
        raise SpecError(f"must be positive, got {shown(value)}")
    return read


def _positive_matrix(value: object) -> Nested:
    read = _numbers(value)
    if not isinstance(read, tuple):
        return _positive(read)
    if shape(read) != (len(read), len(read)):
        raise SpecError(f"must be a number or a square matrix, got {shown(value)}")
    check_covariance(read)
    return read


def _positive_number(value: object) -> Nested:
    if isinstance(read := _positive(value), tuple):
        raise SpecError(f"must be one number, got {shown(value)}")
    return read


def least(nested: Nested) -> float:
    """The smallest of the numbers."""
    return min(map(least, nested)) if isinstance(nested, tuple) else float(nested)


def shape(nested: Nested) -> tuple[int, ...]:
    """Lengths of the nested lists, outermost first; () for one number."""
    return (len(nested), *shape(nested[0])) if isinstance(nested, tuple) else ()


Real: TypeAlias = Annotated[Nested, BeforeValidator(_numbers)]
Positive: TypeAlias = Annotated[Nested, BeforeValidator(_positive)]
PositiveNumber: TypeAlias = Annotated[Nested, BeforeValidator(_positive_number)]
PositiveMatrix: TypeAlias = Annotated[Nested, BeforeValidator(_positive_matrix)]
