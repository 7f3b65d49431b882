"""EM: E-steps over blocks of rows, statistics summed, one M-step; the best of several restarts."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch

from ppl_gen.data.table import Table
from ppl_gen.errors import FitError
from ppl_gen.infer.algorithms import EM
from ppl_gen.infer.engine import Engine, sizes
from ppl_gen.infer.enumeration import State, log_marginal
from ppl_gen.infer.ordering import by_decreasing_weight
from ppl_gen.infer.restarts import Restarts
from ppl_gen.infer.run import Mode, Run
from ppl_gen.infer.starts import Starts, given_state
from ppl_gen.infer.status import Status, interruptible
from ppl_gen.program.lowering import pyro_scope, threads_for
from ppl_gen.program.program import Program

SAME_MODE = 1e-5  # nats per row by which two restarts may differ and be at one maximum


def run_em(program: Program, table: Table, algorithm: EM, *, seed: int = 0) -> Run:
    """Fit a program whose latents are all discrete and whose parameters have closed-form M-steps.

    The log-likelihood never falls from one step to the next (F6). Returns the best restart, its classes in
    order of decreasing weight.
    """
    original = {path: value.clone() for path, value in program.state_dict().items()}
    given = start_given(program, algorithm.init)
    count = 1 if given is not None or not program.enumerated else algorithm.restarts
    _validate(program, table, original)
    how = "traced" if algorithm.lowering == "auto" else algorithm.lowering
    joint, features = sizes(program, table)
    work = 2.0 * table.n_units * count * joint * features
    with torch.no_grad(), threads_for(work), interruptible() as interrupt:
        engine = Engine(program, table, original, count, how)  # type: ignore[arg-type]
        state = engine.standard.enter(given or original)
        restarts = Restarts({p: v.expand(count, *v.shape).clone() for p, v in state.items()}, count)
        if given is None:
            starts = Starts(program, table, algorithm.init, count, seed)
            restarts.advance(*engine.first_m_step(restarts.state, starts))
        for step in range(algorithm.max_steps + 1):
            log_likelihoods, statistics = engine.e_step(restarts.state)
            restarts.record(log_likelihoods.tolist(), statistics, algorithm.tol * table.n_units)
            if interrupt or step == algorithm.max_steps or not restarts.active.any():
                break
            restarts.advance(*engine.m_step(restarts.state, statistics))
            restarts.retire()
            if not restarts.members:
                break
        return _conclude(program, table, engine, restarts, original, bool(interrupt))


def _conclude(
    program: Program, table: Table, engine: Engine, restarts: Restarts, original: State, interrupted: bool
) -> Run:
    """The best restart on the data's own scale, and the modes."""
    offset = engine.offset
    ended = [h[-1] - offset if h else -math.inf for h in restarts.history]
    regular = [not c for c in restarts.collapsed]
    best = max(range(len(ended)), key=lambda r: (regular[r], ended[r]))
    state = engine.standard.leave(restarts.states()[best], original)
    counts = restarts.statistics.get(best, {})
    state, shares = by_decreasing_weight(
        program, state, {name: counts[name] for name in program.enumerated if name in counts}
    )
    modes = _modes([v for v, ok in zip(ended, regular, strict=True) if ok], table.n_units, shares)
    status = Status.MAX_STEPS
    if interrupted:
        status = Status.INTERRUPTED
    elif not any(regular):
        status = Status.COLLAPSED
    elif restarts.converged[best]:
        status = Status.CONVERGED
    history = tuple(value - offset for value in restarts.history[best])
    collapsed = sum(restarts.collapsed)
    notes = (f"{collapsed} of {len(ended)} restarts collapsed onto a singular component",) * bool(collapsed)
    return Run(state, history, status, modes, len(ended), collapsed, engine.executed, notes)


def _modes(ended: list[float], n_units: int, shares: tuple[float, ...]) -> tuple[Mode, ...]:
    modes: list[Mode] = []
    for value in sorted(ended, reverse=True):
        if modes and modes[-1].log_likelihood - value <= SAME_MODE * n_units:
            modes[-1] = Mode(modes[-1].log_likelihood, modes[-1].hits + 1, modes[-1].shares)
        else:
            modes.append(Mode(value, 1, () if modes else shares))
    return tuple(modes)


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
