"""What is done for one candidate in one process: a fit with what it warned of, and a fit of part of the rows."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields, replace
from typing import Any

import torch

from ppl_gen.data.table import Table
from ppl_gen.declare.spec import Spec
from ppl_gen.errors import DataError, FitError, SpecError
from ppl_gen.fitting import choose
from ppl_gen.fitting import fit as fit_model
from ppl_gen.infer.algorithms import EM, Algorithm, StepwiseEM
from ppl_gen.infer.em import run_em
from ppl_gen.infer.run import Run
from ppl_gen.infer.status import Status
from ppl_gen.infer.stepwise import run_stepwise
from ppl_gen.infer.svi import run_svi
from ppl_gen.program.program import Program, compile_spec
from ppl_gen.results.fit import Fit

FEW_ROWS = 5_000  # up to here a run costs less than recording its graphs, about half a second
MISTAKES = (SpecError, DataError, FitError)


@dataclass(frozen=True)
class Shared:
    """What all tasks of one selection are given: the arguments of `fit`."""

    data: Any
    weights: Any
    algorithm: Algorithm | None
    seed: int


@dataclass(frozen=True)
class Outcome:
    """A candidate's fit, or why there is none, and what was warned of meanwhile."""

    fit: Fit | None
    problem: Exception | None = None
    messages: tuple[str, ...] = ()

    @property
    def stopped(self) -> bool:
        """Whether Ctrl-C cut it short."""
        return self.fit is not None and self.fit.status is Status.INTERRUPTED

    @property
    def answers(self) -> bool:
        """Whether there is a fit with parameters to go by."""
        return self.fit is not None and self.fit.status.usable

    def __reduce__(self) -> Any:
        """As its parts, a compiled program being none of what can be sent: it is compiled again."""
        if self.fit is None:
            return Outcome, (None, self.problem, self.messages)
        return _received, (*portable(self.fit), self.messages)


def portable(fit: Fit) -> tuple[Spec, torch.dtype, dict[str, Any]]:
    """A fit as what can be sent to another process; `received` puts it together again."""
    parts = {f.name: getattr(fit, f.name) for f in fields(fit) if f.name not in ("program", "run")}
    # As arrays: torch would share a tensor's memory between the processes, by a file each.
    state = {path: value.cpu().numpy() for path, value in fit.run.state.items()}
    schema, run = fit.program.schema, {f.name: getattr(fit.run, f.name) for f in fields(fit.run)}
    return fit.spec, fit.program.dtype, parts | {"schema": schema, "run": run | {"state": state}}


def received(spec: Spec, dtype: torch.dtype, parts: dict[str, Any]) -> Fit:
    """The inverse of `portable`."""
    parts = dict(parts)
    run = parts.pop("run")
    run = Run(**run | {"state": {path: torch.from_numpy(value) for path, value in run["state"].items()}})
    program = compile_spec(spec, parts.pop("schema"), dtype=dtype)
    program.load_state_dict(run.state)
    return Fit(program=program, run=run, **parts)


def _received(spec: Spec, dtype: torch.dtype, parts: dict[str, Any], messages: tuple[str, ...]) -> Outcome:
    return Outcome(received(spec, dtype, parts), None, messages)


def fit_candidate(shared: Shared, spec: Spec) -> Outcome:
    """Fit one candidate to all rows."""
    with _noted() as messages:
        try:
            found = fit_model(
                spec,
                shared.data,
                shared.algorithm,
                seed=shared.seed,
                weights=shared.weights,
                progress=_no_bar,
            )
        except MISTAKES as error:
            return Outcome(None, error)
    return Outcome(found, None, tuple(m for m in messages if m != found.status.value))


def fit_table(spec: Spec, table: Table, algorithm: Algorithm | None, *, seed: int) -> tuple[Program, Run]:
    """Fit rows that are a table already, and certify nothing.

    Each is fitted once and then let go of, so recording a graph of the step repays itself on many rows only.

    Raises:
        FitError: the fit is no answer: every restart collapsed, or the objective diverged.

    """
    program = compile_spec(spec, table.schema, seed=seed)
    algorithm, _ = choose(program, algorithm)
    if isinstance(algorithm, EM):
        if algorithm.lowering == "auto" and table.n_units <= FEW_ROWS:
            algorithm = replace(algorithm, lowering="eager")  # the same numbers, bit by bit
        run = run_em(program, table, algorithm, seed=seed)
    elif isinstance(algorithm, StepwiseEM):
        run = run_stepwise(program, table, algorithm, seed=seed, progress=_no_bar)
    else:
        run = run_svi(program, table, algorithm, seed=seed, progress=_no_bar)
    if not run.status.usable:
        raise FitError(run.status.value)
    program.load_state_dict(run.state)
    return program, run


def sent(fit: Fit) -> Outcome:
    """A fit for the arguments of a task; its rows stay behind."""
    return Outcome(replace(fit, data=None))


def _no_bar(done: int, epochs: int, elbo: float) -> None:
    """A bar for each of many fits says nothing."""


@contextmanager
def _noted() -> Iterator[list[str]]:
    """What the library warns of, kept instead of said; it goes into the candidate's row."""
    messages: list[str] = []
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            yield messages
        finally:
            messages += [str(own.message) for own in caught if own.category is UserWarning]
