"""Numbers of a declaration as predictors: broadcast to the parameter's shape, taken through its constraint."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from ppl_gen.declare.terms import Free, Value
from ppl_gen.errors import SpecError
from ppl_gen.program.scope import Target


def written_numbers(
    value: Value, target: Target, *, linear: bool = False, axes: tuple[int, ...] | None = None
) -> tuple[Tensor, Tensor]:
    """The predictor behind written numbers, and where a Free() stands among them: both `axes` (D, own).

    `linear` numbers are on the linear-predictor scale already (a bias). Raises SpecError where the numbers'
    shape does not fit the parameter's.
    """
    numbers, free = _arrays(value.value)
    axes = target.axes if axes is None else axes
    if linear:
        return _broadcast(numbers, axes, target, value), _broadcast(free, axes, target, value)
    name = target.constraint.name
    if name in ("covariance", "lower_cholesky"):
        if free.any():
            raise SpecError(
                f"{target.name}: Free() inside a matrix is not supported yet; fix all of it or none"
            )
        size = int((math.isqrt(8 * axes[0] + 1) - 1) / 2)
        matrix = _matrix(numbers, size, target, value)
        return _predictor(matrix, target, value), torch.zeros(axes, dtype=torch.bool)
    if name == "simplex" and free.any():
        raise SpecError(
            f"{target.name}: Free() among probabilities is not supported yet; write all of them or none, "
            "or logits, whose written numbers count relative to one another"
        )
    wide, where = _broadcast(numbers, axes, target, value), _broadcast(free, axes, target, value)
    return _predictor(wide, target, value), where


def _arrays(value: Any) -> tuple[Tensor, Tensor]:
    def walk(item: Any, pick: Any) -> Any:
        return [walk(inner, pick) for inner in item] if isinstance(item, tuple) else pick(item)

    numbers = walk(value, lambda item: 0.5 if isinstance(item, Free) else float(item))
    free = walk(value, lambda item: isinstance(item, Free))
    return torch.tensor(numbers, dtype=torch.float64), torch.tensor(free, dtype=torch.bool)


def _broadcast(tensor: Tensor, axes: tuple[int, ...], target: Target, value: Value) -> Tensor:
    try:
        return tensor.expand(axes).clone()
    except RuntimeError:
        wanted = " × ".join(map(str, axes))
        given = " × ".join(map(str, tensor.shape))
        raise SpecError(f"{target.name} needs {wanted} numbers, and {value} has {given}") from None


def _matrix(numbers: Tensor, size: int, target: Target, value: Value) -> Tensor:
    if numbers.ndim == 0:
        return numbers * torch.eye(size, dtype=numbers.dtype)
    if numbers.shape != (size, size):
        given = " × ".join(map(str, numbers.shape))
        raise SpecError(f"{target.name} needs a number or a {size} × {size} matrix, and {value} is {given}")
    if target.constraint.name == "covariance" and not torch.equal(numbers, numbers.mT):
        raise SpecError(f"{target.name} needs a symmetric matrix, and {value} is not")
    return numbers


def _predictor(natural: Tensor, target: Target, value: Value) -> Tensor:
    try:
        predictor = target.constraint.predictor(target.constraint.from_natural(natural))
    except RuntimeError:
        raise SpecError(f"{target.name} needs a positive definite matrix, and {value} is not") from None
    if not torch.isfinite(predictor).all():
        raise SpecError(f"{target.name} needs {target.constraint.name} numbers, and {value} holds others")
    return predictor
