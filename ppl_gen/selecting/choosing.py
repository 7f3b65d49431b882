"""select: fit every candidate of a grid, compare them, choose."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Never

from ppl_gen.errors import FitError
from ppl_gen.infer.algorithms import Algorithm
from ppl_gen.results.rows import at_least_one
from ppl_gen.selecting.candidates import Candidate, SpecLike, candidates
from ppl_gen.selecting.folds import cross_validated
from ppl_gen.selecting.likelihood_ratio import sizes_in_order, tested
from ppl_gen.selecting.selection import CRITERIA, Selection
from ppl_gen.selecting.tabulating import (
    about_the_data,
    best_row,
    check_settings,
    incomparable,
    table,
    table_rows,
)
from ppl_gen.selecting.tasks import MISTAKES, Outcome, Shared, fit_candidate
from ppl_gen.selecting.workers import Workers


def select(
    spec: SpecLike | Sequence[SpecLike] | Mapping[str, SpecLike],
    data: Any,
    grid: Mapping[str, Iterable[Any]] | None = None,
    *,
    criterion: str = "bic",
    algorithm: Algorithm | None = None,
    folds: int = 5,
    draws: int = 99,
    seed: int = 0,
    weights: Any = None,
    workers: int | None = None,
) -> Selection:
    """Fit a grid of declarations to the same data and choose one of them.

    Args:
        spec: a declaration, as `fit` takes it; or several, in a list or under names in a dictionary, as for
            families and structures that no one path changes.
        data: as `fit` takes them.
        grid: path → values, as `Spec.replace` takes them: {"z.k": range(1, 9), "x.cov": ["By(z)", "Free()"]},
            or {"x": ["Normal(loc=By(z))", …]} for another family. Every combination is a candidate.
        criterion: "aic" −2ℓ + 2p; "bic" −2ℓ + p log n; "icl" BIC + 2 Σ_d H(p(z | x_d)) (the smaller, the
            better; Biernacki, Celeux & Govaert 2000); "cv" the mean log-density of units held out (the
            larger, the better); "blrt" the smallest size that a bootstrap likelihood-ratio test does not
            reject against the next at 0.05 (McLachlan 1987), for a grid of one size.
        algorithm: of every fit; left out, the route of each candidate.
        folds: of the cross-validation; the same for all candidates, those of scikit-learn's
            `KFold(folds, shuffle=True, random_state=seed)`.
        draws: samples S of each bootstrap test; p = (b + 1)/(S + 1).
        seed: of all of it.
        weights: how often each row counts, as `fit` takes them. Folds and bootstrap samples are then of units.
        workers: processes; left out, as many as repay the seconds that each takes to start. The numbers do
            not depend on it.

    Returns:
        A Selection. A candidate that cannot be declared or fitted is a row that says why. After Ctrl-C it
        holds what was done until then.

    Raises:
        SpecError, DataError, FitError: every candidate fails, with the first one's reason; or an argument is
            wrong.

    Example:
        >>> import numpy as np
        >>> from ppl_gen import EM, gaussian_mixture
        >>> random = np.random.default_rng(0)
        >>> x = np.concatenate([random.normal(9, 1, (60, 1)), random.normal(0, 1, (40, 1))])
        >>> chosen = select(gaussian_mixture(1), {"x": x}, {"z.k": [1, 2]}, algorithm=EM(restarts=2))
        >>> chosen.best.spec.model["z"], chosen.table["bic"].round(1).tolist()
        (Categorical(2), [594.2, 432.5])

    """
    _check(criterion, folds)
    found = candidates(spec, grid)
    check_settings(found)
    order = sizes_in_order([one.settings for one in found]) if criterion == "blrt" else []
    shared, draws = Shared(data, weights, algorithm, seed), at_least_one(draws, "draws")
    with Workers(workers, shared) as pool:
        outcomes = _fitted(pool, found)
        rows = table_rows(outcomes)
        chosen, notes = None, tuple[str, ...]()
        if criterion == "cv" and not pool.interrupted:
            for row, held in zip(rows, cross_validated(pool, outcomes, folds), strict=True):
                if held is not None:
                    row |= {"cv": held.mean, "cv_se": held.error}
                    row["warnings"] += held.warnings
        if criterion == "blrt" and not pool.interrupted:
            tests, chosen, notes = tested(pool, order, outcomes, draws)
            for i, test in tests.items():
                rows[i] |= {"blrt": test.statistic, "blrt_p": test.p}
                rows[i]["warnings"] += test.warnings
    if criterion != "blrt":
        chosen = best_row(rows, criterion)
    if pool.interrupted:
        notes += ("interrupted: what was not done is missing",)
    elif chosen is None:
        why = ": none of them has classes" if criterion == "icl" else ""
        notes += (f"{CRITERIA[criterion][1]} could be computed for no candidate{why}",)
        warnings.warn(notes[-1], stacklevel=2)
    paths = tuple(dict.fromkeys(path for one in found for path in one.settings))
    fits = tuple(None if own is None else own.fit for own in outcomes)
    return Selection(table(found, rows, paths, criterion), fits, criterion, paths, chosen, notes)


def _check(criterion: Any, folds: Any) -> None:
    if criterion not in CRITERIA:
        raise FitError(f"criterion must be one of {', '.join(CRITERIA)}, not {criterion!r}")
    if at_least_one(folds, "folds") < 2:
        raise FitError("folds must be a whole number from 2, not 1")


def _fitted(pool: Workers, found: Sequence[Candidate]) -> list[Outcome | None]:
    """The outcome of every candidate; None where Ctrl-C came first.

    Raises the first problem where every candidate has one.
    """
    sound = [i for i, one in enumerate(found) if one.spec is not None]
    done = pool.map(fit_candidate, [(found[i].spec,) for i in sound], f"{len(found)} candidates")
    outcomes: list[Outcome | None] = [Outcome(None, one.problem) for one in found]
    for i, outcome in zip(sound, done, strict=True):
        outcomes[i] = outcome
    fits = [own for own in outcomes if own is not None and own.fit is not None]
    if not fits and None in outcomes:
        raise KeyboardInterrupt
    if not any(own is None or own.answers for own in outcomes):
        _raise_first(found, [own for own in outcomes if own is not None])
    for message in (*about_the_data(fits), *incomparable([own.fit for own in fits if own.fit is not None])):
        warnings.warn(message, stacklevel=3)
    return outcomes


def _raise_first(found: Sequence[Candidate], outcomes: Sequence[Outcome]) -> Never:
    problems = [own.problem or FitError(own.fit.status.value if own.fit else "") for own in outcomes]
    kind = next(kind for kind in MISTAKES if isinstance(problems[0], kind))
    same = len({str(problem) for problem in problems}) == 1
    raise kind(str(problems[0]) if same else f"every candidate fails; the first, {found[0]}: {problems[0]}")
