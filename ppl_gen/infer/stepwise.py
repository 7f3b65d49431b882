"""Stepwise EM: an M-step after every minibatch, from a running average of the expected statistics.

Where a pass over the rows is long, EM spends it on one step. Here every batch moves the parameters, and what was
learned from earlier ones fades at a rate that lets the noise die out (Cappé & Moulines 2009).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from ppl_gen.data.stream import Block, StreamedTable, blocks_of, held, with_arrays
from ppl_gen.data.table import Table
from ppl_gen.errors import FitError
from ppl_gen.infer.algorithms import EM, StepwiseEM
from ppl_gen.infer.em import run_em, start_given
from ppl_gen.infer.engine import Statistics, block_rows, log_prior_of, sizes, summed
from ppl_gen.infer.enumeration import State
from ppl_gen.infer.ordering import by_decreasing_weight
from ppl_gen.infer.progress import Progress
from ppl_gen.infer.route import em_obstacle, newton_reason
from ppl_gen.infer.run import Run
from ppl_gen.infer.standard import Standard
from ppl_gen.infer.status import Interrupt, Status, interruptible
from ppl_gen.infer.steps import expectation_step, maximisation_step
from ppl_gen.infer.streaming import bounds_of, in_standard_units, log_units_of, unkept
from ppl_gen.program.lowering import How, Lowered, threads_for
from ppl_gen.program.program import Program

START_ROWS = 20_000  # of the sample that the starts are tried on, where the rows are in memory
START_STEPS = 100  # of EM on the sample
GATHERED = 0.5  # the last share of all batches that the parameters at the end are made of


def stepwise_obstacle(program: Program) -> str | None:
    """Why stepwise EM cannot fit this program, or None."""
    return em_obstacle(program) or newton_reason(program)


def run_stepwise(
    program: Program, table: Table, algorithm: StepwiseEM, *, seed: int = 0, progress: Progress | None = None
) -> Run:
    """Fit a program whose latents are all discrete and whose M-steps are all closed, in minibatches.

    The history holds, for each epoch, the log-likelihood of its batches as the parameters were when they were met,
    and at its end the log-likelihood of all rows at the parameters that are returned.

    Raises FitError where an M-step has no closed form.
    """
    if (reason := stepwise_obstacle(program)) is not None:
        raise FitError(f"StepwiseEM cannot fit this model: {reason}. Use EM(…) or SVI(…)")
    original = {path: value.clone() for path, value in program.state_dict().items()}
    start = start_given(program, algorithm.init)
    notes: tuple[str, ...] = ()
    sample = held(table) if isinstance(table, StreamedTable) else _few(table, seed)
    if start is None:
        tried = EM(
            max_steps=START_STEPS,
            restarts=algorithm.restarts,
            init=algorithm.init,
            lowering=algorithm.lowering,
        )
        found = run_em(program, sample, tried, seed=seed)
        start, notes = found.state, (f"{found.restarts} starts were tried on {sample.n_units} rows",)
    joint, features = sizes(program, table)
    with (
        torch.no_grad(),
        threads_for(2.0 * algorithm.batch_size * joint * features),
        interruptible() as interrupt,
    ):
        ascent = Ascent(program, table, algorithm, start, sample)
        history, status = ascent.climb(table, seed, interrupt, progress)
        state, statistics = ascent.state, ascent.running
        if status is Status.EPOCHS_DONE:
            ascent.state = state = ascent.ended()
            value, statistics = one_pass(program, ascent.standard, table, state, ascent.how)
            history.append(ascent.objective(value))
        state = ascent.standard.leave(state, original)
        counts = {name: statistics[name] for name in program.enumerated if name in statistics}
        state, _ = by_decreasing_weight(program, state, counts)
    return Run(state, tuple(history), status, lowering=ascent.executed, notes=notes, algorithm="StepwiseEM")


class Ascent:
    """The parameters, and the running statistics of a row on average, in standard units."""

    def __init__(
        self, program: Program, table: Table, algorithm: StepwiseEM, start: State, sample: Table
    ) -> None:
        self.program, self.algorithm = program, algorithm
        self.how = cast(How, algorithm.lowering)
        self.standard = Standard(program, table, start)
        self.bounds = bounds_of(self.standard, table)
        self.offset = log_units_of(self.standard, table) + self.standard.prior_units(start)
        self._log_prior = log_prior_of(program, self.how)
        self.total = torch.tensor(table.total, dtype=program.dtype, device=program.device)
        self.holes = table.holes
        self.size = min(algorithm.batch_size, table.n_units)
        self.planned = algorithm.epochs * math.ceil(table.n_units / self.size)
        self.state = self.standard.enter(start)
        _, statistics = one_pass(program, self.standard, sample, self.state, self.how)
        self.running: Statistics = pytree.tree_map(lambda s: s / sample.total, statistics)
        self.gathered: Statistics = pytree.tree_map(torch.zeros_like, self.running)
        self._gathered_weight = torch.zeros_like(self.total)
        self._step = Lowered(batch_step(program), self.how)
        self.steps = self.moved = 0

    @property
    def executed(self) -> str:
        """What ran the steps."""
        return self._step.executed

    def climb(
        self, table: Table, seed: int, interrupt: Interrupt, progress: Progress | None
    ) -> tuple[list[float], Status]:
        """All epochs; the log-likelihood that each one's batches had, and how it ended."""
        history: list[float] = []
        for epoch in range(self.algorithm.epochs):
            self.moved, values = 0, []
            for block in _batches(table, self.size, seed + epoch):
                values.append(self._advance(block))
                if interrupt:
                    return history, Status.INTERRUPTED
            value = self.objective(torch.stack(values).sum())
            if not math.isfinite(value):
                return history, Status.DIVERGED
            history.append(value)
            if self.moved == 0:
                return history, Status.COLLAPSED
            if progress is not None:
                progress(epoch + 1, self.algorithm.epochs, value)
        return history, Status.EPOCHS_DONE

    def objective(self, log_likelihood: Tensor) -> float:
        """The log-likelihood of all rows in standard units → in the data's, plus the log prior of the state."""
        alone = {path: value.unsqueeze(0) for path, value in self.state.items()}
        return float(log_likelihood + self._log_prior(alone)) - self.offset

    def ended(self) -> State:
        """The parameters that the batches of the second half give together."""
        scale = self.total / self._gathered_weight
        gathered = pytree.tree_map(lambda s: s * scale, self.gathered)
        state, regular = maximisation_step(self.program)(self.state, gathered, self.bounds)
        ended: State = state if bool(regular) else self.state
        return ended

    def _advance(self, block: Block) -> Tensor:
        """One batch; its log-likelihood before the step. A step onto a singular component is not taken."""
        self.steps += 1
        rows, weights = in_standard_units(self.standard, block, self.holes, self.size)
        rate = (self.steps + self.algorithm.offset) ** -self.algorithm.decay * block.n_rows / self.size
        numbers = torch.tensor([rate, float(self.steps > (1 - GATHERED) * self.planned)]).to(self.total)
        memory = (self.running, self.gathered, self._gathered_weight)
        value, regular, self.state, memory = self._step(
            self.state, memory, rows, weights, numbers, self.total, self.bounds
        )
        self.running, self.gathered, self._gathered_weight = memory
        self.moved += int(regular)
        return value


def batch_step(program: Program) -> Callable[..., Any]:
    """(state, memory, rows, weights, (rate, whether to gather), total, bounds) → value, regular, state, memory.

    s ← (1 − γ) s + γ ŝ, ŝ the batch's expected statistics of a row on average, then the M-step of `total` rows.
    """
    expect, maximise = expectation_step(program), maximisation_step(program)

    def step(
        state: State, memory: Any, rows: Any, weights: Tensor, numbers: Tensor, total: Tensor, bounds: Any
    ) -> tuple[Tensor, Tensor, State, Any]:
        running, gathered, gathered_weight = memory
        value, statistics = expect(state, rows, weights)
        counted = weights.sum()
        rate, gathers = numbers[0], numbers[1]
        share = torch.where(counted > 0, rate, 0 * rate)
        batch = pytree.tree_map(lambda s: s / counted.clamp(min=torch.finfo(counted.dtype).tiny), statistics)
        moved = pytree.tree_map(lambda old, new: old + share * (new - old), running, batch)
        new, regular = maximise(state, pytree.tree_map(lambda s: s * total, moved), bounds)
        regular = regular & torch.isfinite(value)

        def taken(after: Any, before: Any) -> Any:
            return pytree.tree_map(lambda a, b: torch.where(regular, a, b), after, before)

        gathered = pytree.tree_map(lambda old, s: old + gathers * s, gathered, statistics)
        memory = (taken(moved, running), gathered, gathered_weight + gathers * counted)
        return value, regular, taken(new, state), memory

    return step


def one_pass(
    program: Program, standard: Standard, table: Table, state: State, how: How
) -> tuple[Tensor, Statistics]:
    """The log-likelihood of all rows in standard units, and their expected statistics; no block is kept."""
    size = block_rows(program, table, 1)
    step = unkept(Lowered(expectation_step(program), how, steady=(1, 2)))
    return summed(
        step(state, *in_standard_units(standard, block, table.holes, size))
        for block in blocks_of(table, size)
    )


def _batches(table: Table, size: int, seed: int) -> Iterator[Block]:
    """All rows in a random order, `size` at a time."""
    if isinstance(table, StreamedTable):
        yield from table.blocks(size, seed=seed)
        return
    order = np.random.default_rng(seed).permutation(table.n_units)
    for start in range(0, table.n_units, size):
        yield _picked(table, order[start : start + size])


def _few(table: Table, seed: int) -> Table:
    if table.n_units <= START_ROWS:
        return table
    drawn = np.random.default_rng(seed).choice(table.n_units, START_ROWS, replace=False)
    return with_arrays(table, _picked(table, np.sort(drawn)))


def _picked(table: Table, index: Any) -> Block:
    weights = None if table.weights is None else table.weights[index]
    return Block({name: array[index] for name, array in table.arrays.items()}, weights)
