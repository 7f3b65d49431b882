"""The table of a selection: a row for each candidate, what is doubtful, which is best."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from ppl_gen.declare.node import Node
from ppl_gen.errors import SpecError
from ppl_gen.infer.status import Status
from ppl_gen.results.fit import Fit
from ppl_gen.selecting.candidates import Candidate
from ppl_gen.selecting.criteria import doubts, summary
from ppl_gen.selecting.tasks import Outcome

Row = dict[str, Any]

NUMBERS = ("log_likelihood", "parameters", "aic", "bic", "icl")
EXTRA = {"cv": ("cv", "cv_se"), "blrt": ("blrt", "blrt_p")}
LAST = ("status", "hits", "restarts", "warnings")
LARGER_IS_BETTER = ("cv",)


def check_settings(found: Sequence[Candidate]) -> None:
    """A node that is replaced as a whole must not be called like a column of the table.

    Raises:
        SpecError: it is.

    """
    columns = {*NUMBERS, *LAST, *(name for names in EXTRA.values() for name in names)}
    for path in dict.fromkeys(path for one in found for path in one.settings):
        if path in columns:
            raise SpecError(f"grid: {path!r} is a column of the table of results; give the node another name")


def table_rows(outcomes: Sequence[Outcome | None]) -> list[Row]:
    """What each outcome puts into the table; `warnings` as a list."""
    common = about_the_data([own for own in outcomes if own is not None and own.fit is not None])
    return [_row(outcome, common) for outcome in outcomes]


def _row(outcome: Outcome | None, common: Sequence[str]) -> Row:
    if outcome is None:
        return {"status": "not run", "hits": 0, "restarts": 0, "warnings": ["Ctrl-C came first"]}
    if outcome.fit is None:
        reason = f"{type(outcome.problem).__name__}: {outcome.problem}"
        return {"status": "failed", "hits": 0, "restarts": 0, "warnings": [reason]}
    own = [message for message in outcome.messages if message not in common]
    return summary(outcome.fit) | {"warnings": doubts(outcome.fit) + own}


def best_row(rows: Sequence[Row], criterion: str) -> int | None:
    """The candidate that the criterion prefers; the earlier one of equals. None where no row has a number."""
    sign = -1 if criterion in LARGER_IS_BETTER else 1
    interrupted = Status.INTERRUPTED.name.lower()
    values = [
        math.inf if row["status"] == interrupted else sign * row.get(criterion, math.nan) for row in rows
    ]
    sound = [i for i, value in enumerate(values) if math.isfinite(value)]
    return min(sound, key=lambda i: values[i]) if sound else None


def table(
    found: Sequence[Candidate], rows: Sequence[Row], paths: Sequence[str], criterion: str
) -> pd.DataFrame:
    """Everything as a frame."""
    columns: dict[str, Any] = {path: [one.settings[path] for one in found] for path in paths}
    for name in (*NUMBERS, *EXTRA.get(criterion, ())):
        columns[name] = np.array([row.get(name, math.nan) for row in rows], dtype=np.float64)
    for name in LAST:
        columns[name] = [row[name] for row in rows]
    columns["warnings"] = ["; ".join(row["warnings"]) for row in rows]
    return pd.DataFrame(columns)


def about_the_data(outcomes: Sequence[Outcome]) -> list[str]:
    """Messages that every fit gave: they are about the data, and are said once."""
    every = [set(own.messages) for own in outcomes]
    return [
        message for message in dict.fromkeys(outcomes[0].messages) if all(message in own for own in every)
    ]


def incomparable(fits: Sequence[Fit]) -> list[str]:
    """Why the likelihoods of these fits are of different things, where they are."""
    found = []
    observed = {frozenset(fit.program.schema.roles.observed): fit for fit in fits}
    if len(observed) > 1:
        listed = "; ".join(", ".join(sorted(names)) for names in observed)
        found.append(
            f"the candidates do not model the same columns ({listed}): their log-likelihoods do not compare"
        )
    for name in dict.fromkeys(name for names in observed for name in sorted(names)):
        nodes = [fit.spec.nodes[name] for fit in fits if name in fit.program.schema.roles.observed]
        if len({_density(node) for node in nodes}) > 1:
            found.append(
                f"{name!r} has a density in some candidates and probabilities in others: "
                "their log-likelihoods do not compare"
            )
    return found


def _density(node: Node) -> bool:
    return not node.discrete
