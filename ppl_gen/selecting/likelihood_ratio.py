"""How many classes: bootstrap likelihood-ratio tests along a grid of sizes.

Twice the log-likelihood ratio of k and k+1 classes is not χ²-distributed: the smaller model lies on the edge
of the larger one. McLachlan (1987, Applied Statistics 36, 318–324) simulates its distribution instead: samples
are drawn from the fit with k classes, and both models are fitted to each.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

import numpy as np

from ppl_gen.data.table import Table
from ppl_gen.declare.spec import Spec
from ppl_gen.errors import FitError
from ppl_gen.infer.algorithms import EM
from ppl_gen.infer.replicates import drawn_tables
from ppl_gen.infer.status import Status
from ppl_gen.results.fit import Fit
from ppl_gen.selecting.rows import drawn, units
from ppl_gen.selecting.tasks import MISTAKES, Outcome, Shared, fit_table
from ppl_gen.selecting.workers import Workers

LEVEL = 0.05  # a p-value up to here asks for the larger size
# On a sample the smaller model starts where the sample came from, the larger one from the best of some short runs.
RESTARTS, KEPT = 10, 3
STEPS = 500  # parameters may go on moving for long where a class too many has nothing to hold on to
# Nats by which a fit of a sample may still rise; the statistic differs by one or two from sample to sample.
PRECISION = 1e-3


@dataclass(frozen=True)
class Comparison:
    """One size against the next: 2 (ll₁ − ll₀), its p-value, and what to know of it."""

    statistic: float
    p: float
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True)
class Replicate:
    """The statistic of one sample; NaN where a fit of it is no answer."""

    statistic: float
    stopped: bool = False


def replicate(
    shared: Shared, null: Outcome, larger: Spec, tables: tuple[Table, Table], key: tuple[int, int]
) -> Replicate:
    """Draw as many units as the data have from the null fit, and fit both models to them."""
    fit = null.fit
    assert fit is not None
    seed = int(np.random.SeedSequence((shared.seed, *key)).generate_state(1)[0])
    (sample,) = drawn_tables(fit.program, tables[0], 1, seed)
    algorithm = shared.algorithm if isinstance(shared.algorithm, EM) else EM()
    few = replace(
        algorithm,
        restarts=min(RESTARTS, algorithm.restarts),
        keep=min(KEPT, algorithm.keep),
        tol=max(PRECISION / sample.n_units, algorithm.tol),
        max_steps=min(STEPS, algorithm.max_steps),
    )
    begun = replace(few, init=fit.parameters)
    try:
        fits = [
            fit_table(fit.spec, drawn(tables[0], sample.arrays), begun, seed=seed),
            fit_table(larger, drawn(tables[1], sample.arrays), few, seed=seed),
        ]
    except MISTAKES:
        return Replicate(math.nan)
    # A run's objective counts priors, and a likelihood ratio does not.
    below, above = (run.history[-1] - float(program.log_prior()) for program, run in fits)
    return Replicate(2 * (above - below), any(run.status is Status.INTERRUPTED for _, run in fits))


def sizes_in_order(settings: Sequence[Mapping[str, Any]]) -> list[int]:
    """The candidates by increasing size.

    Raises:
        FitError: the grid is not one path with whole numbers.

    """
    paths = {path for own in settings for path in own}
    values = [value for own in settings for value in own.values()]
    if len(paths) != 1 or len(values) < 2 or not all(isinstance(value, int) for value in values):
        raise FitError(
            'the bootstrap test needs a grid of one size, as {"z.k": range(1, 6)}: each size is tested against '
            f"the next; here the grid is over {', '.join(sorted(paths)) or 'nothing'}"
        )
    return sorted(range(len(values)), key=lambda i: values[i])


def tested(
    pool: Workers, order: Sequence[int], outcomes: Sequence[Outcome | None], draws: int
) -> tuple[dict[int, Comparison], int | None, tuple[str, ...]]:
    """Test size after size until the next one is not asked for.

    Returns:
        By candidate, the test that the size before it is enough; the candidate that the tests stop at, None where
        Ctrl-C came first or the smallest size has no fit; and why they stopped there, where that is not a verdict.

    Raises:
        FitError: the fits are SVI's, or the weights are no whole numbers.

    """
    found: dict[int, Comparison] = {}
    for below, above in pairwise(order):
        null, larger = _fit_of(outcomes[below]), _fit_of(outcomes[above])
        if null is None:
            return found, None, ("the smallest size has no fit, so that nothing can be tested against it",)
        if larger is None:
            return (
                found,
                below,
                ("the next size has no fit, so that the chosen one was not tested against it",),
            )
        tables = _tables(null, larger)
        bare = Outcome(replace(null, data=None))
        tasks = [(bare, larger.spec, tables, (above, s)) for s in range(draws)]
        done = pool.map(replicate, tasks, f"bootstrap test {len(found) + 1}, {draws} samples")
        if pool.interrupted:
            return found, None, ()
        found[above] = judged(2 * (larger.log_likelihood - null.log_likelihood), done)
        if math.isnan(found[above].p):
            return found, below, ("too few samples could be fitted to test the chosen size against the next",)
        if found[above].p > LEVEL:
            return found, below, ()
    return (
        found,
        order[-1],
        ("every test asks for a larger size, up to the largest of the grid: try larger ones",),
    )


def _tables(null: Fit, larger: Fit) -> tuple[Table, Table]:
    """The rows of both, which samples can be drawn like."""
    if {null.algorithm["name"], larger.algorithm["name"]} != {"EM"}:
        raise FitError(
            "the bootstrap test needs exact log-likelihoods, which EM gives and other algorithms do not"
        )
    assert null.data is not None
    assert larger.data is not None
    if units(null.data) is None:
        raise FitError(
            "a bootstrap sample is of units, and weights that are no whole numbers do not say how many there are; "
            "choose another criterion"
        )
    return null.data, larger.data


def judged(statistic: float, samples: Sequence[Replicate]) -> Comparison:
    """The p-value (b + 1)/(S + 1), where b of S samples have a statistic at least as large."""
    values = np.array([own.statistic for own in samples])
    sound = values[np.isfinite(values)]
    failed = len(values) - len(sound)
    lost = f"{failed} of {len(values)} bootstrap samples could not be fitted"
    if 2 * failed > len(values):
        return Comparison(statistic, math.nan, (lost,))
    notes = [lost] if failed else []
    if statistic < 0:
        notes.append("the larger size has the lower log-likelihood: it ended in a local mode")
    return Comparison(statistic, float((sound >= statistic).sum() + 1) / (len(sound) + 1), tuple(notes))


def _fit_of(outcome: Outcome | None) -> Fit | None:
    usable = outcome is not None and outcome.fit is not None and outcome.fit.status.usable
    return outcome.fit if usable and outcome is not None else None
