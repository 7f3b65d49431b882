"""Rows that SVI does not learn from: which they are, and their ELBO, with the same draws every time."""

from __future__ import annotations

import math
from typing import cast

import torch
from torch import Tensor

from ppl_gen.errors import FitError
from ppl_gen.infer.algorithms import SVI
from ppl_gen.infer.ascent_step import WEIGHTS, Rows, picked
from ppl_gen.infer.enumeration import State
from ppl_gen.infer.objective import Objective
from ppl_gen.infer.pair import Pair, as_pair
from ppl_gen.program.lowering import How, Lowered
from ppl_gen.program.program import Program

CHUNK = 4096  # rows evaluated at a time
APART = 1 << 62  # between the seed of the split and those of the epochs' orders


def split(n: int, share: float, seed: int) -> tuple[Tensor, Tensor]:
    """Row numbers to learn from and to hold out, both in ascending order.

    Raises:
        FitError: one of them would have no row.

    Example:
        >>> [len(part) for part in split(10, 0.2, seed=0)]
        [8, 2]

    """
    count = round(share * n)
    if not 0 < count < n:
        raise no_rows(share, n, count)
    order = torch.randperm(n, generator=torch.Generator().manual_seed(seed ^ APART))
    return order[count:].sort().values, order[:count].sort().values


def no_rows(share: float, n: int, count: int) -> FitError:
    """That one part of a split has no row."""
    return FitError(
        f"SVI: validation={share!r} of {n} rows leaves {count} held out and {n - count} to learn from"
    )


class HeldOut:
    """The ELBO of held-out rows, Σ_d w_d LB_d in nats, at any parameters.

    Args:
        program: the compiled model, or another `Pair`.
        algorithm: with its particles and its objective; β is 1 and free bits are none here.
        rows: the held-out rows.
        seed: of the draws, which are the same at every call.

    """

    def __init__(self, program: Program | Pair, algorithm: SVI, rows: Rows, seed: int) -> None:
        self.rows, self.seed, self.device = rows, seed ^ APART, program.device
        self.devices = [program.device] if program.device.type == "cuda" else []
        objective, pair = Objective.of(algorithm), as_pair(program)

        def bounds(state: State, rows: Rows) -> Tensor:
            rows = dict(rows)
            weights = rows.pop(WEIGHTS, None)
            with pair.at(state) as halves:
                bound = objective.per_row(*halves, rows)[1]
            return (bound if weights is None else bound * weights).sum()

        repays = algorithm.lowering not in ("compiled", "captured")  # with one call an epoch
        how = algorithm.lowering if repays else "traced"
        self._bounds = Lowered(bounds, cast(How, how))

    def __call__(self, state: State) -> float:
        """Their ELBO at these parameters; NaN where it has none."""
        n, total = len(next(iter(self.rows.values()))), 0.0
        with torch.no_grad(), torch.random.fork_rng(devices=self.devices):
            torch.manual_seed(self.seed)
            for start in range(0, n, CHUNK):
                index = torch.arange(start, min(start + CHUNK, n), device=self.device)
                try:
                    total += float(self._bounds(state, picked(self.rows, index)))
                except torch.linalg.LinAlgError:  # type: ignore[attr-defined]
                    return math.nan  # a matrix was not what a decomposition takes; the next step says more
        return total
