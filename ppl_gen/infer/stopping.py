"""When a restart has arrived: its rise, its change, and Aitken's estimate of what is left of both.

One small step proves nothing about slow EM: with a rate of 0.999 a thousand more of them follow. Where steps shrink
by the rate ρ, what is left of the parameters' way is ‖s‖/(1−ρ) for the last change s, and what is left of the
log-likelihood is its last rise times ρ²/(1−ρ²), since near a maximum the rise goes with the square of the change.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

Numbers = NDArray[Any]

TINY = 1e-300
FASTEST_SLOW = 1 - 1e-6  # rates are taken as this at most: beyond, rounding decides
FORGET = 1.2  # by which 1 − ρ may grow from one step to the next
ROUNDING = 8.0  # units in the last place by which a sum of log-densities may fall


@dataclass(frozen=True)
class Assessment:
    """What one plain EM step says about each restart; all (R,).

    Args:
        rise: of the objective, in nats.
        remaining: Aitken's estimate of what is left of it, in nats.
        distance: the same for the parameters, in measured coordinates.
        rate: by which steps shrink.

    """

    rise: Numbers
    remaining: Numbers
    distance: Numbers
    rate: Numbers

    def arrived(self, tolerance: float, apart: float) -> NDArray[np.bool_]:
        """Where the rise, what is left of it, and the parameters' way left are all within the tolerances."""
        return (self.rise <= tolerance) & (self.remaining <= tolerance) & (self.distance <= apart)

    def steps_left(self, tolerance: float, apart: float) -> Numbers:
        """Plain steps until what is left of the objective and of the parameters' way is within the tolerances."""
        shrinks = -np.log(np.maximum(self.rate, TINY))  # of the way, a step; of the objective twice that
        rise = np.log(np.maximum(self.remaining / max(tolerance, TINY), TINY)) / 2
        way = np.log(np.maximum(self.distance / max(apart, TINY), TINY))
        return np.maximum(np.maximum(rise, way) / shrinks, 0.0)


def assess(
    value: Numbers, earlier: Numbers, changes: tuple[Numbers, Numbers], earlier_rate: Numbers, exact: float
) -> Assessment:
    """What the changes (R, P) of two steps in a row say, the first of which led from `earlier` to `value`.

    `earlier_rate` is the one believed before. A long step may hide the slow direction for a while, so that one is
    forgotten by degrees only. A rise within rounding, `exact` of the value, counts as none.
    """
    before, after = (np.sqrt(np.vecdot(change, change)) for change in changes)
    with np.errstate(invalid="ignore"):  # ∞·0 and ∞ − ∞ at a start, which has risen from nothing
        rise = value - earlier
        rate = np.where(before > 0, after / np.maximum(before, TINY), 0.0)
        believed = np.minimum(np.maximum(rate, 1 - FORGET * (1 - earlier_rate)), FASTEST_SLOW)
        believed = np.maximum(believed, 0.0)
        still = after <= exact * math.sqrt(max(changes[0].shape[1], 1))
        distance = np.where(still, after, after / (1 - believed))
        rise = np.where(rise <= exact * np.maximum(np.abs(value), 1.0), 0.0, rise)
        squared = believed * believed
        remaining = rise * (squared / (1 - squared))
    return Assessment(rise, remaining, distance, believed)


@cache
def rounding(dtype: torch.dtype) -> float:
    """The relative error that a sum of log-densities may have."""
    return ROUNDING * torch.finfo(dtype).eps
