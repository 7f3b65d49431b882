"""Shape parameters by Newton's method in a fixed number of steps, which records and batches like any product."""

from __future__ import annotations

import torch
from torch import Tensor

NEWTON_STEPS = 8
LARGE = (
    30.0  # from here on the asymptotic series is good to the last digit, where the plain difference is not
)


def log_minus_digamma(a: Tensor) -> Tensor:
    """Log a − ψ(a) > 0, with all its digits where a is large: it is 1/(2a) and the two terms are log a."""
    big = a.clamp(min=LARGE)
    square = big**-2
    series = 0.5 / big + square * (1 / 12 - square * (1 / 120 - square * (1 / 252 - square / 240)))
    return torch.where(a > LARGE, series, a.log() - torch.digamma(a))


def _slope(a: Tensor) -> Tensor:
    """Its derivative with respect to log a: 1 − a ψ'(a)."""
    big = a.clamp(min=LARGE)
    square = big**-2
    series = -0.5 / big - square * (1 / 6 - square * (1 / 30 - square * (1 / 42 - square / 30)))
    return torch.where(a > LARGE, series, 1 - a * torch.polygamma(1, a))


def shape_of_gap(gap: Tensor) -> Tensor:
    """The a > 0 with log a − ψ(a) = gap: maximum likelihood of a gamma's shape (Choi and Wette, 1969).

    Example:
        >>> a = torch.tensor([0.02, 3.0, 1e7], dtype=torch.float64)
        >>> torch.allclose(shape_of_gap(log_minus_digamma(a)), a, rtol=1e-12)
        True

    """
    gap = gap.clamp(min=torch.finfo(gap.dtype).tiny ** 0.5)
    a = (3 - gap + ((gap - 3) ** 2 + 24 * gap).sqrt()) / (12 * gap)
    for _ in range(NEWTON_STEPS):
        a = a * ((gap - log_minus_digamma(a)) / _slope(a)).clamp(-2, 2).exp()
    return a


def inverse_digamma(y: Tensor) -> Tensor:
    """The a > 0 with ψ(a) = y (Minka, 2000).

    Example:
        >>> a = torch.tensor([0.02, 3.0, 1e7], dtype=torch.float64)
        >>> torch.allclose(inverse_digamma(torch.digamma(a)), a, rtol=1e-12)
        True

    """
    a = torch.where(y >= -2.22, y.exp() + 0.5, -1 / (y.clamp(max=-2.22) + 0.5772156649015329))
    for _ in range(NEWTON_STEPS):
        step = (torch.digamma(a) - y) / (a * torch.polygamma(1, a))
        a = a * (-step).clamp(-2, 2).exp()
    return a


def log_gamma_ratio(a: Tensor, step: Tensor) -> Tensor:
    """Log Γ(a + step) − log Γ(a) for step ≥ 0, with all its digits where a is large.

    Example:
        >>> log_gamma_ratio(torch.tensor([2.5, 1e9], dtype=torch.float64), torch.ones(())).exp()
        tensor([2.5000e+00, 1.0000e+09], dtype=torch.float64)

    """
    far = 1e4
    big = a.clamp(min=far)
    end = big + step
    stirling = step * big.log() + (end - 0.5) * torch.log1p(step / big) - step
    stirling = stirling + (1 / end - 1 / big) / 12
    near = a.clamp(max=far)
    return torch.where(a > far, stirling, torch.lgamma(near + step) - torch.lgamma(near))
