"""L-BFGS for several functions at once, each of a vector of its own: every point taken is higher.

Reference: Liu & Nocedal (1989), On the limited memory BFGS method for large scale optimization,
https://doi.org/10.1007/BF01589116
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

STEPS = 12  # of one climb
STEEP = 5e-4  # gradients below it count as small: networks have directions that lead nowhere, slowly
MEMORY = 20  # pairs of changes that stand in for the Hessian
ENOUGH = 0.1  # of the gradient's norm at the beginning: what is left to the next M-step
TRIALS = 8  # lengths along one direction
ARMIJO = 1e-4
PROBE = 1e-4  # length of the step that tells the first curvature

Pairs = list[tuple[Tensor, Tensor]]
Objective = Callable[[Tensor], tuple[Tensor, Tensor]]


def climb(objective: Objective, start: Tensor, *, little: float, memory: Pairs | None = None) -> Tensor:
    """Points (R, P) at which each row's objective is at least as high: L-BFGS, its steps shortened until they rise.

    Where no step along a row's direction rises, as at the kink of a rectifier, what is remembered of that row is
    forgotten and the gradient tried; where that fails too, the row has arrived.

    Args:
        objective: (R, P) → (R,) and its gradient (R, P).
        start: (R, P).
        little: a rise that is not worth a move, where the gradient is small too.
        memory: what earlier climbs of nearly the same objective found of its curvature; this one adds to it.

    """
    point, pairs = start, Pairs() if memory is None else memory
    value, gradient = objective(point)
    first_value, first = value, gradient.norm(dim=1)
    if not pairs:
        length = PROBE / first[:, None].clamp(min=1e-300)
        _, beside = objective(point + length * gradient)
        _remember(pairs, length * gradient, gradient - beside)
    moving = gradient.isfinite().all(1) & (first > 0)
    plain = torch.zeros_like(moving)
    for _ in range(STEPS):
        direction = _direction(pairs, gradient)
        curved = ((direction * gradient).sum(1) > 0) & ~plain
        direction = torch.where(curved[:, None], direction, gradient)
        taken, new_value, new_gradient = _risen(objective, point, value, gradient, direction, moving)
        _remember(pairs, taken - point, gradient - new_gradient)
        plain = moving & (taken == point).all(1)
        if bool(plain.any()):
            _forget(pairs, plain)
        moving = moving & (curved | ~plain) & (new_gradient.norm(dim=1) > ENOUGH * first)
        point, value, gradient = taken, new_value, new_gradient
        if not bool(moving.any()):
            break
    arrived = (value - first_value < little) & (first < STEEP)
    return torch.where(arrived[:, None], start, point)


def _risen(
    objective: Objective, point: Tensor, value: Tensor, gradient: Tensor, direction: Tensor, moving: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """The points along the direction that rise enough, with value and gradient; those that find none stay.

    After a failure the next length is where the parabola through what is known has its top.
    """
    slope, length = (direction * gradient).sum(1), torch.ones_like(value)
    best, best_value, best_gradient, open_ = point, value, gradient, moving
    for _ in range(TRIALS):
        trial = torch.where(open_[:, None], point + length[:, None] * direction, best)
        trial_value, trial_gradient = objective(trial)
        sound = trial_value.isfinite() & trial_gradient.isfinite().all(1)
        good = open_ & sound & (trial_value >= value + ARMIJO * length * slope) & (trial_value > value)
        best = torch.where(good[:, None], trial, best)
        best_value = torch.where(good, trial_value, best_value)
        best_gradient = torch.where(good[:, None], trial_gradient, best_gradient)
        open_ = open_ & ~good
        if not bool(open_.any()):
            break
        short = (value + slope * length - trial_value).clamp(min=1e-300)  # of what the slope promised
        top = torch.where(sound, slope * length**2 / (2 * short), 0.0)
        length = torch.maximum(torch.minimum(top, length / 2), length / 10)
    return best, best_value, best_gradient


def _forget(pairs: Pairs, rows: Tensor) -> None:
    """Drop what is remembered of the marked rows (R,)."""
    kept = ~rows[:, None]
    pairs[:] = [(torch.where(kept, change, 0.0), torch.where(kept, bend, 0.0)) for change, bend in pairs]


def _remember(pairs: Pairs, change: Tensor, bend: Tensor) -> None:
    """Keep a change of parameters, and the fall of the gradient over it, where the objective bends down there."""
    concave = (change * bend).sum(1) > 1e-10 * change.norm(dim=1) * bend.norm(dim=1)
    pairs.append((torch.where(concave[:, None], change, 0.0), torch.where(concave[:, None], bend, 0.0)))
    del pairs[:-MEMORY]


def _direction(pairs: Sequence[tuple[Tensor, Tensor]], gradient: Tensor) -> Tensor:
    """The two loops of L-BFGS: the inverse Hessian that the pairs describe, times the gradient."""
    left, steps, unit = gradient, [], torch.ones_like(gradient[:, :1])
    for change, bend in reversed(pairs):
        both = (change * bend).sum(1, keepdim=True)
        inverse = torch.where(both > 0, 1 / both.clamp(min=1e-300), 0.0)
        share = inverse * (change * left).sum(1, keepdim=True)
        left = left - share * bend
        steps.append((change, bend, inverse, share))
    for _, bend, inverse, _ in steps[::-1]:
        unit = torch.where(
            inverse > 0, 1 / (inverse * (bend**2).sum(1, keepdim=True)).clamp(min=1e-300), unit
        )
    left = left * unit
    for change, bend, inverse, share in steps[::-1]:
        left = left + change * (share - inverse * (bend * left).sum(1, keepdim=True))
    return left
