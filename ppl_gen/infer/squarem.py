"""SQUAREM: the steps of a slow EM extrapolated (Varadhan & Roland 2008, scheme S3).

With θ₁ = M(θ₀), θ₂ = M(θ₁), r = θ₁ − θ₀ and v = (θ₂ − θ₁) − r, the next point is θ₀ − 2α r + α² v at
α = −‖r‖/‖v‖. At α = −1 that is θ₂, a plain step. It is a proposal: whoever evaluates it takes it only where the
log-likelihood has not fallen, and θ₂ otherwise.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from ppl_gen.infer.coordinates import Coordinates
from ppl_gen.infer.lanes import Numbers

LONGER = (
    4.0  # by which the longest step allowed grows when it was reached and taken, and shrinks when refused
)


def extrapolate(
    coordinates: Coordinates,
    points: tuple[Tensor, Tensor, Tensor],
    measured: tuple[Numbers, Numbers, Numbers],
    longest: Numbers,
) -> tuple[Tensor, Numbers]:
    """The proposal of every restart, (R, P), and its step length |α| from 1 to `longest`, (R,).

    `points` are θ₀, θ₁ and θ₂, `measured` the same in measured coordinates. The step length is found in those,
    where a probability on its way to 0 is as good as there; the step itself is taken in the predictor's, which
    have no edge to fall over.

    Reference: Varadhan & Roland (2008), https://doi.org/10.1111/j.1467-9469.2007.00585.x
    """
    (base, first, second), (start, middle, end) = points, measured
    r, v = middle - start, end - 2 * middle + start
    with np.errstate(invalid="ignore"):
        ratio = np.sqrt(np.vecdot(r, r)) / np.maximum(np.sqrt(np.vecdot(v, v)), np.finfo(r.dtype).tiny)
    length = np.minimum(np.maximum(np.nan_to_num(ratio, nan=1.0), 1.0), longest)
    step = torch.as_tensor(length, dtype=base.dtype, device=base.device)[:, None]
    proposal = base + 2 * step * (first - base) + step**2 * (second - 2 * first + base)
    return torch.where(step > 1, coordinates.inside(proposal), second), length
