"""What a batch of restarts knows of each: one row a restart."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Flags = NDArray[np.bool_]
Numbers = NDArray[Any]


@dataclass
class Lanes:
    """One row a restart: `base` is the last accepted point, of objective `value`, and `point` is tried next.

    Vectors are tensors (R, P); what there is one of for a restart is a NumPy array (R,), which a loop of small
    decisions handles several times faster.
    """

    point: Tensor
    base: Tensor
    fallback: Tensor  # the plain step to take where an extrapolation is refused
    value: Numbers
    phase: Numbers
    used: Numbers  # EM-map evaluations
    fast: Flags  # whether it is accelerated
    longest: Numbers  # extrapolation allowed
    length: Numbers  # of the extrapolation under trial
    rate: Numbers
    rise: Numbers
    remaining: Numbers
    distance: Numbers
    halved: Numbers
    level: Numbers  # steps in a row without a rise
    active: Flags
    converged: Flags
    collapsed: Flags
    pruned: Flags

    @staticmethod
    def at(points: Tensor) -> Lanes:
        """Restarts that begin at these points."""
        R = len(points)
        whole = {name: np.zeros(R, dtype=int) for name in ("phase", "used", "halved", "level")}
        flags = {name: np.zeros(R, dtype=bool) for name in ("fast", "converged", "collapsed", "pruned")}
        unknown = {name: np.full(R, np.inf) for name in ("rise", "remaining", "distance")}
        return Lanes(
            point=points, base=points, fallback=points, value=np.full(R, -np.inf), longest=np.ones(R),
            length=np.ones(R), rate=np.zeros(R), active=np.ones(R, dtype=bool), **whole, **flags, **unknown,
        )  # fmt: skip

    def take(self, rows: Sequence[int]) -> Lanes:
        """Some of the rows."""
        return Lanes(**{f.name: getattr(self, f.name)[list(rows)] for f in fields(self)})

    def put(self, rows: Flags, other: Lanes) -> None:
        """The other's rows where marked."""
        for f in fields(self):
            old, new = getattr(self, f.name), getattr(other, f.name)
            chosen = pick(rows, new, old) if isinstance(old, Tensor) else np.where(rows, new, old)
            setattr(self, f.name, chosen)

    @staticmethod
    def joined(parts: Sequence[Lanes]) -> Lanes:
        """All rows of several."""
        columns: dict[str, Any] = {f.name: [getattr(part, f.name) for part in parts] for f in fields(Lanes)}
        for name, column in columns.items():
            columns[name] = torch.cat(column) if isinstance(column[0], Tensor) else np.concatenate(column)
        return Lanes(**columns)


def pick(rows: Flags, new: Tensor, old: Tensor) -> Tensor:
    """(R, P): the new rows where marked."""
    if rows.all():
        return new
    return torch.where(torch.from_numpy(rows).unsqueeze(1).to(new.device), new, old)
