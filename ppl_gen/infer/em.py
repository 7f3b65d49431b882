"""EM: E-steps over blocks of rows, statistics summed, one M-step; the best of several restarts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, cast

import torch

from ppl_gen.data.stream import StreamedTable
from ppl_gen.data.table import Table
from ppl_gen.errors import FitError
from ppl_gen.infer import networks
from ppl_gen.infer.algorithms import EM
from ppl_gen.infer.ending import conclude
from ppl_gen.infer.enumeration import State, log_marginal
from ppl_gen.infer.given import given_state
from ppl_gen.infer.linear_gaussian import exact
from ppl_gen.infer.linear_gaussian_run import run_linear_gaussian
from ppl_gen.infer.run import Run
from ppl_gen.infer.search import Search, work_of
from ppl_gen.infer.status import interruptible
from ppl_gen.infer.streaming import start_on_sample
from ppl_gen.program.lowering import How, pyro_scope, threads_for
from ppl_gen.program.program import Program


def run_em(program: Program, table: Table, algorithm: EM, *, seed: int = 0) -> Run:
    """Fit a program whose latents are all discrete, or all linear-Gaussian.

    The objective, log-likelihood plus log prior, never falls from one step to the next (F6). Returns the best
    restart, its classes in order of decreasing weight.
    """
    if exact(program):
        return run_linear_gaussian(program, table, algorithm, start_given(program, algorithm.init))
    original = {path: value.clone() for path, value in program.state_dict().items()}
    given, notes = start_given(program, algorithm.init), []
    if isinstance(table, StreamedTable) and (reason := networks.obstacle(program)) is not None:
        raise FitError(
            f"rows that stay in their files do not serve this model: {reason}. Load them, or use SVI(…)"
        )
    if given is None and isinstance(table, StreamedTable):
        given, note = start_on_sample(table, lambda sample: run_em(program, sample, algorithm, seed=seed))
        notes.append(note)
    _validate(program, table, original)
    how = cast(How, algorithm.lowering)
    count = 1 if given is not None or not program.enumerated else algorithm.restarts
    work = count * work_of(program, table)
    with torch.no_grad(), threads_for(work), interruptible() as interrupt:
        search = Search(program, table, algorithm, original, given, how, seed, interrupt)
        search.run()
        run = conclude(search)
        return replace(run, notes=(*notes, *run.notes))


def start_given(program: Program, init: Any) -> State | None:
    """The state that given parameters or another fit describe, or None where `init` names a method."""
    if isinstance(init, str):
        return None
    parameters = init if isinstance(init, Mapping) else getattr(init, "parameters", None)
    if not isinstance(parameters, Mapping):
        raise FitError(f"EM: init must be a method's name, parameters or a Fit, not {type(init).__name__}")
    return given_state(program, parameters)


def _validate(program: Program, table: Table, state: State) -> None:
    """One eager evaluation of a few rows with Pyro's own checks on: shape errors surface here, not in a graph."""
    few = program.tensors({name: array[:64] for name, array in table.arrays.items()})
    with pyro_scope(validate=True), torch.no_grad():
        try:
            log_marginal(program, state, few)
        except (ValueError, RuntimeError) as error:
            raise FitError(f"Pyro refuses the model on the first rows: {error}") from error
