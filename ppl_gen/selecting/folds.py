"""The held-out log-likelihood by K-fold cross-validation, the same folds for every candidate."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ppl_gen.data.table import Table
from ppl_gen.declare.spec import Spec
from ppl_gen.infer.status import Status
from ppl_gen.results.fit import DRAWS
from ppl_gen.results.queries import log_densities
from ppl_gen.selecting.rows import held_out, weighted
from ppl_gen.selecting.tasks import MISTAKES, Outcome, Shared, fit_table
from ppl_gen.selecting.workers import Workers


@dataclass(frozen=True)
class Fold:
    """How a candidate fitted without one fold's rows does on them.

    Args:
        log_densities: of the rows held out, in nats.
        weights: how often each counts.
        status: of the fit; None where there is none.
        problem: why there is none.

    """

    log_densities: NDArray[np.float64]
    weights: NDArray[np.float64]
    status: Status | None
    problem: Exception | None = None

    @property
    def stopped(self) -> bool:
        """Whether Ctrl-C cut it short."""
        return self.status is Status.INTERRUPTED


@dataclass(frozen=True)
class HeldOut:
    """A candidate's mean log-density per unit held out, in nats, and its standard error over the units."""

    mean: float
    error: float
    warnings: tuple[str, ...] = ()


def score_fold(shared: Shared, spec: Spec, table: Table, folds: int, fold: int) -> Fold:
    """Fit a candidate to the rows outside one fold and score those inside."""
    out = held_out(table, folds, shared.seed)  # (folds, N)
    empty = np.zeros(0)
    try:
        outside = weighted(table, out.sum(0) - out[fold])
        program, run = fit_table(spec, outside, shared.algorithm, seed=shared.seed)
        inside = weighted(table, out[fold])
        values, _ = log_densities(program, inside, draws=DRAWS, seed=shared.seed)
    except MISTAKES as error:
        return Fold(empty, empty, None, error)
    return Fold(values, out[fold][out[fold] > 0], run.status)


def cross_validated(pool: Workers, outcomes: Sequence[Outcome | None], folds: int) -> list[HeldOut | None]:
    """Every candidate that has an answer, on every fold; None for the others, and where Ctrl-C came first."""
    fits = {i: own.fit for i, own in enumerate(outcomes) if own is not None and own.fit and own.answers}
    tasks = [(fit.spec, fit.data, folds, fold) for fit in fits.values() for fold in range(folds)]
    done = pool.map(score_fold, tasks, f"{folds}-fold cross-validation")
    found: list[HeldOut | None] = [None] * len(outcomes)
    for place, i in enumerate(fits):
        own = done[place * folds : (place + 1) * folds]
        if all(fold is not None and not fold.stopped for fold in own):
            found[i] = joined(own)
    return found


def joined(folds: Sequence[Fold]) -> HeldOut:
    """All folds together: Σ w log p / Σ w over the units, and the error of that mean.

    Where the fit without a fold is no answer there is no mean over all rows, and none over the others is put
    in its place: the rows it fails on are the ones that matter.
    """
    failed: dict[str, list[str]] = {}
    for number, fold in enumerate(folds, 1):
        if fold.problem is not None:
            failed.setdefault(str(fold.problem), []).append(str(number))
    if failed:
        said = (
            f"without fold {', '.join(own)} of {len(folds)}: {problem}" for problem, own in failed.items()
        )
        return HeldOut(math.nan, math.nan, tuple(said))
    values = np.concatenate([fold.log_densities for fold in folds])
    weights = np.concatenate([fold.weights for fold in folds])
    n = float(weights.sum())
    mean = float(values @ weights) / n
    variance = float((values - mean) ** 2 @ weights) / max(n - 1, 1.0) if np.isfinite(mean) else math.nan
    early: dict[Status, list[str]] = {}
    for number, fold in enumerate(folds, 1):
        if fold.status is not None and not fold.status.converged and fold.status is not Status.EPOCHS_DONE:
            early.setdefault(fold.status, []).append(str(number))
    notes = tuple(f"without fold {', '.join(own)}: {status.brief}" for status, own in early.items())
    if not np.isfinite(mean):
        notes = (*notes, f"{int((~np.isfinite(values)).sum())} rows held out have density 0")
    return HeldOut(mean, math.sqrt(variance / n) if variance >= 0 else math.nan, notes)
