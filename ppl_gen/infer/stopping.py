"""When a restart has arrived: its rise, its change, and Aitken's estimate of what is left of both.

One small step proves nothing about slow EM: with a rate of 0.999 a thousand more of them follow. Where steps shrink
by the rate ρ, what is left of the parameters' way is ‖s‖/(1−ρ) for the last change s, and what is left of the
log-likelihood is its last rise times ρ²/(1−ρ²), since near a maximum the rise goes with the square of the change.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

FASTEST_SLOW = 1 - 1e-6  # rates are taken as this at most: beyond, rounding decides
FORGET = 4.0  # by which 1 − ρ may grow from one step to the next
ROUNDING = 8.0  # units in the last place by which a sum of log-densities may fall


@dataclass(frozen=True)
class Assessment:
    """What one plain EM step says about each restart; all (R,).

    Args:
        rise: of the log-likelihood, in nats.
        remaining: Aitken's estimate of what is left of it, in nats.
        distance: the same for the parameters, in measured coordinates.
        rate: by which steps shrink.

    """

    rise: Tensor
    remaining: Tensor
    distance: Tensor
    rate: Tensor

    def arrived(self, tolerance: float, apart: float) -> Tensor:
        """Where the rise, what is left of it, and the parameters' way left are all within the tolerances."""
        return (self.rise <= tolerance) & (self.remaining <= tolerance) & (self.distance <= apart)

    def steps_left(self, tolerance: float) -> Tensor:
        """Plain steps until what is left of the log-likelihood is within the tolerance."""
        ratio = (self.remaining / max(tolerance, 1e-300)).clamp(min=1e-300).log()
        return (ratio / (-2 * self.rate.clamp(min=1e-300).log())).clamp(min=0)


def assess(rise: Tensor, first: Tensor, second: Tensor, earlier_rate: Tensor, value: Tensor) -> Assessment:
    """What the changes (R, P) of two steps in a row say, the first of which brought `rise`.

    `earlier_rate` is the one believed before. A long step may hide the slow direction for a while, so that one is
    forgotten by degrees only. A rise within rounding of `value` counts as none.
    """
    before, after = first.norm(dim=1).double().cpu(), second.norm(dim=1).double().cpu()
    still = after <= rounding(first.dtype) * math.sqrt(max(first.shape[1], 1))
    rate = torch.where(before > 0, after / before.clamp(min=1e-300), 0.0)
    believed = torch.maximum(rate, 1 - FORGET * (1 - earlier_rate)).clamp(max=FASTEST_SLOW)
    most = second.abs().amax(1).double().cpu() if second.shape[1] else torch.zeros_like(after)
    distance = torch.where(still, most, most / (1 - believed))
    rise = torch.where(rise <= rounding(first.dtype) * value.abs().clamp(min=1), 0.0, rise)
    remaining = rise * believed**2 / (1 - believed**2)
    return Assessment(rise, remaining, distance, believed)


def rounding(dtype: torch.dtype) -> float:
    """The relative error that a sum of log-densities may have."""
    return ROUNDING * torch.finfo(dtype).eps
