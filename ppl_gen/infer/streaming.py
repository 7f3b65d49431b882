"""EM over rows that stay in their files: every E-step is a pass over them, and no block is kept."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import pad

from ppl_gen.data.stream import Block, StreamedTable
from ppl_gen.data.table import Table
from ppl_gen.infer import newton
from ppl_gen.infer.engine import (
    EAGER_M_STEPS,
    Engine,
    Statistics,
    block_rows,
    filled,
    log_prior_of,
    summed,
    weights_of,
)
from ppl_gen.infer.enumeration import State
from ppl_gen.infer.restarts import side_by_side
from ppl_gen.infer.run import Run
from ppl_gen.infer.standard import Standard
from ppl_gen.infer.starts import Starts
from ppl_gen.infer.steps import expectation_step, maximisation_step
from ppl_gen.program.lowering import CACHE_BYTES, How, Lowered
from ppl_gen.program.program import Program


class StreamedEngine(Engine):
    """`Engine` over a streamed table: the same steps and the same blocks, each read when it is its turn."""

    def __init__(self, program: Program, table: StreamedTable, state: State, restarts: int, how: How) -> None:
        self.program, self.table, self.how = program, table, how
        self.standard = Standard(program, table, state)
        self.bounds = bounds_of(self.standard, table)
        self.offset = log_units_of(self.standard, table) + self.standard.prior_units(state)
        self._log_prior = log_prior_of(program, how)
        self.monotone = not newton.groups(program)
        self.size = block_rows(program, table, restarts)
        self._expect = unkept(
            Lowered(side_by_side(expectation_step(program), (0, None, None)), how, steady=(1, 2))
        )
        self._maximise = Lowered(
            side_by_side(maximisation_step(program), (0, 0, None)),
            how,
            steady=(2,),
            eager_first=EAGER_M_STEPS,
        )

    def e_step(self, state: State) -> tuple[Tensor, Statistics]:
        """The objective (R,) and expected statistics of all rows, in one pass over them."""
        total, statistics = summed(self._expect(state, rows, weights) for rows, weights in self._pass())
        return total + self._log_prior(state), statistics

    def first_m_step(self, state: State, starts: Starts) -> tuple[State, Tensor]:
        """States from starting responsibilities of the sample's rows."""
        restarts = len(next(iter(state.values())))
        first = Engine(self.program, self.table.sample, state, restarts, self.how)
        first.bounds = self.bounds  # what is constant in the sample may vary in the file
        return first.first_m_step(state, starts)

    def _pass(self) -> Iterator[tuple[dict[str, Tensor], Tensor]]:
        for block in self.table.blocks(self.size):
            yield in_standard_units(self.standard, block, self.table.holes, self.size)


def engine_for(program: Program, table: Table, state: State, restarts: int, how: How) -> Engine:
    """The engine for a table, in memory or streamed."""
    if isinstance(table, StreamedTable):
        return StreamedEngine(program, table, state, restarts, how)
    return Engine(program, table, state, restarts, how)


def in_standard_units(
    standard: Standard, block: Block, holes: frozenset[str], size: int
) -> tuple[dict[str, Tensor], Tensor]:
    """A block's rows, filled up to `size`, and their weights, 0 for those that only fill it."""
    program = standard.program
    own = np.ones(block.n_rows) if block.weights is None else block.weights
    weights = pad(torch.tensor(own, dtype=program.dtype), (0, size - block.n_rows)).to(program.device)
    return filled(standard.rows(block.arrays, holes), size), weights


def unkept(step: Lowered) -> Lowered:
    """A lowered step that keeps nothing of its steady arguments: each block is met once and let go."""
    step.cached = CACHE_BYTES
    return step


def equal_blocks(standard: Standard, table: Table, size: int) -> Iterator[tuple[dict[str, Tensor], Tensor]]:
    """The rows of any table in standard units, in blocks of `size`, the last one filled up, and weights."""
    if isinstance(table, StreamedTable):
        for block in table.blocks(size):
            yield in_standard_units(standard, block, table.holes, size)
        return
    for start in range(0, table.n_units, size):
        stop = min(start + size, table.n_units)
        rows = filled(standard.block(table, start, stop), size)
        yield rows, weights_of(standard.program, table, start, stop, size)


def bounds_of(standard: Standard, table: Table) -> dict[str, tuple[Tensor, Tensor]]:
    """`Standard.bounds` of all rows."""
    return standard.bounds(table.extremes if isinstance(table, StreamedTable) else table)


def log_units_of(standard: Standard, table: Table) -> float:
    """`Standard.log_units` of all rows; of a streamed table from the counts of the first pass."""
    if not isinstance(table, StreamedTable):
        return standard.log_units(table)
    random = [name for name in standard.program.generative.draws if name in standard.unit]
    return float(sum((table.seen[name] * np.log(standard.unit[name].numpy())).sum() for name in random))


def start_on_sample(table: StreamedTable, run: Callable[[Table], Run]) -> tuple[State, str]:
    """Where the restarts on a streamed table's sample ended best, and a note of it.

    Args:
        table: the rows.
        run: what fits rows in memory.

    """
    sample = table.sample
    found = run(sample)
    begun = "1 start was" if found.restarts == 1 else f"{found.restarts} starts were"
    note = f"{begun} tried on {sample.n_units} rows of the {table.n_units}; the best one went on over all of them"
    return found.state, note
