"""EM: blocks of rows through the E-step, statistics summed, one M-step; all restarts side by side."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from ppl_gen.data.table import Table
from ppl_gen.errors import FitError
from ppl_gen.infer.algorithms import EM
from ppl_gen.infer.enumeration import State, expectation_step, maximisation_step
from ppl_gen.infer.ordering import by_decreasing_weight
from ppl_gen.infer.run import Mode, Run
from ppl_gen.infer.standard import Standard
from ppl_gen.infer.starts import Starts, given_state
from ppl_gen.infer.status import Status, interruptible
from ppl_gen.program.lowering import Lowered, pyro_scope
from ppl_gen.program.program import Program

BLOCK_BYTES = 6_000_000  # features and responsibilities of one block: what stays in cache
SAME_MODE = 1e-5  # nats per row by which two restarts may differ and be at one maximum


class Restarts:
    """The restarts of one fit: their states side by side, and what became of each."""

    def __init__(self, state: State, count: int) -> None:
        self.state = state  # every leaf (R, …), of the restarts still in the batch
        self.members = list(range(count))  # which restart each row of the batch is
        self.active = torch.ones(count, dtype=torch.bool)
        self.history: list[list[float]] = [[] for _ in range(count)]
        self.converged, self.collapsed = [False] * count, [False] * count
        self.finished: dict[int, State] = {}

    def record(self, log_likelihoods: list[float], tolerance: float) -> None:
        """Note each active restart's log-likelihood, and whether it has converged or gone astray."""
        for row, restart in enumerate(self.members):
            if not self.active[row]:
                continue
            history, value = self.history[restart], log_likelihoods[row]
            if not math.isfinite(value):
                self.collapsed[restart] = True
            else:
                self.converged[restart] = bool(history) and value - history[-1] <= tolerance
                history.append(value)
            self.active[row] = not (self.converged[restart] or self.collapsed[restart])

    def advance(self, state: State, regular: Tensor) -> None:
        """Take the new states of active restarts whose components are all regular."""
        for row in torch.nonzero(self.active & ~regular).flatten().tolist():
            self.collapsed[self.members[row]] = True
        moving = self.active & regular
        self.active = moving
        self.state = {
            path: torch.where(moving.reshape(-1, *(1,) * (new.ndim - 1)).to(new.device), new, self.state[path])
            for path, new in state.items()
        }

    def retire(self) -> None:
        """Take finished restarts out of the batch once half of it has finished: each size is a graph."""
        left = torch.nonzero(self.active).flatten().tolist()
        if len(left) * 2 > len(self.members):
            return
        for row, restart in enumerate(self.members):
            self.finished[restart] = {path: value[row] for path, value in self.state.items()}
        self.state = {path: value[left] for path, value in self.state.items()}
        self.members = [self.members[row] for row in left]
        self.active = torch.ones(len(left), dtype=torch.bool)

    def states(self) -> dict[int, State]:
        """The state of every restart."""
        batch = {m: {p: v[row] for p, v in self.state.items()} for row, m in enumerate(self.members)}
        return self.finished | batch


class Engine:
    """The lowered steps of one program over one table's blocks."""

    def __init__(self, program: Program, table: Table, algorithm: EM, restarts: int, state: State) -> None:
        self.standard = Standard(program, table, state)
        self.bounds = self.standard.bounds(table)
        columns = self.standard.columns(table)
        size = block_rows(program, restarts)
        self.spans = [(a, min(a + size, table.n_units)) for a in range(0, table.n_units, size)]
        self.blocks = [
            {name: _span(column, a, b) for name, column in columns.items()} for a, b in self.spans
        ]
        how = "traced" if algorithm.lowering == "auto" else algorithm.lowering
        expect, maximise = expectation_step(program), maximisation_step(program)
        self.expect = Lowered(torch.func.vmap(expect, in_dims=(0, None)), how)  # type: ignore[arg-type]
        self.begin = torch.func.vmap(expect, in_dims=(0, None, 0))
        self.maximise = Lowered(torch.func.vmap(maximise, in_dims=(0, 0, None)), how)  # type: ignore[arg-type]
        self.how = how

    def e_step(self, state: State) -> tuple[Tensor, dict[str, Tensor]]:
        """Log-likelihoods (R,) and expected statistics of all rows."""
        return _summed(self.expect(state, block) for block in self.blocks)

    def first_m_step(self, state: State, starts: Starts) -> tuple[State, Tensor]:
        """States from starting responsibilities."""
        with pyro_scope():
            parts = (
                self.begin(state, block, starts.block(*span))
                for span, block in zip(self.spans, self.blocks, strict=True)
            )
            _, statistics = _summed(parts)
        return self.m_step(state, statistics)

    def m_step(self, state: State, statistics: dict[str, Tensor]) -> tuple[State, Tensor]:
        """New states, and which of them are regular."""
        new, regular = self.maximise(state, statistics, self.bounds)
        return new, regular.cpu()


def run_em(program: Program, table: Table, algorithm: EM, *, seed: int = 0) -> Run:
    """Fit a program whose latents are all discrete and whose parameters have closed-form M-steps.

    The log-likelihood never falls from one step to the next (F6). Returns the best restart, its classes in
    order of decreasing weight.
    """
    original = {path: value.clone() for path, value in program.state_dict().items()}
    given = start_given(program, algorithm.init)
    count = 1 if given is not None or not program.enumerated else algorithm.restarts
    _validate(program, table, original)
    with torch.no_grad(), interruptible() as interrupt:
        engine = Engine(program, table, algorithm, count, original)
        state = engine.standard.enter(given or original)
        batch = {path: value.expand(count, *value.shape).clone() for path, value in state.items()}
        restarts = Restarts(batch, count)
        if given is None:
            starts = Starts(program, table, algorithm.init, count, seed)
            restarts.advance(*engine.first_m_step(batch, starts))
        for step in range(algorithm.max_steps + 1):
            log_likelihoods, statistics = engine.e_step(restarts.state)
            restarts.record(log_likelihoods.tolist(), algorithm.tol * table.n_units)
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
    offset = table.n_units * engine.standard.log_unit()
    ended = [h[-1] - offset if h else -math.inf for h in restarts.history]
    regular = [not c for c in restarts.collapsed]
    best = max(range(len(ended)), key=lambda r: (regular[r], ended[r]))
    state = engine.standard.leave(restarts.states()[best], original)
    state, shares = by_decreasing_weight(program, state, table)
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
    notes = (f"{collapsed} of {len(ended)} restarts collapsed onto a singular component",) if collapsed else ()
    return Run(state, history, status, modes, len(ended), collapsed, engine.how, notes)


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


def block_rows(program: Program, restarts: int) -> int:
    """Rows a block, so that features and responsibilities stay in cache: a power of two from 512 to 65 536."""
    joint = math.prod(
        math.prod(program.generative.draws[name].sizes.levels) for name in program.enumerated
    )
    features = 0
    for name in program.schema.roles.observed:
        draw = program.generative.draws[name]
        features += 1 + sum(math.prod(slot.target.axes) for slot in draw.slots.values())
    rows = BLOCK_BYTES / (8 * (features + restarts * joint))
    return int(min(max(2 ** round(math.log2(rows)), 512), 65_536))


def _validate(program: Program, table: Table, state: State) -> None:
    """One eager step on a few rows with Pyro's own checks on: shape errors surface here, not in a graph."""
    few = {name: value[:64] for name, value in program.tensors(table.arrays).items()}
    with pyro_scope(validate=True), torch.no_grad():
        try:
            expectation_step(program)(state, few)
        except (ValueError, RuntimeError) as error:
            raise FitError(f"Pyro refuses the model on the first rows: {error}") from error


def _span(column: Tensor, start: int, stop: int) -> Tensor:
    """Rows of a column-major tensor, column-major and contiguous themselves."""
    return column.T[..., start:stop].contiguous().T if column.ndim > 1 else column[start:stop]


def _summed(parts: Any) -> tuple[Tensor, dict[str, Tensor]]:
    total: tuple[Tensor, dict[str, Tensor]] | None = None
    for value, statistics in parts:
        if total is None:
            total = value, statistics
        else:
            total = total[0] + value, {name: total[1][name] + s for name, s in statistics.items()}
    assert total is not None
    return total
