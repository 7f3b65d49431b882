"""EM's lowered steps over the blocks of one table."""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
from torch import Tensor
from torch.nn.functional import pad

from ppl_gen.data.table import Table
from ppl_gen.infer.enumeration import State, expectation_step, maximisation_step
from ppl_gen.infer.restarts import side_by_side
from ppl_gen.infer.standard import Standard
from ppl_gen.infer.starts import Starts
from ppl_gen.program.lowering import How, Lowered, pyro_scope
from ppl_gen.program.program import Program

BLOCK_BYTES = 6_000_000  # features and responsibilities of one block: what stays in cache
EAGER_M_STEPS = 25  # recording the M-step costs about as much as this many of them

Statistics = dict[str, Tensor]


class Engine:
    """E-steps block by block, their statistics summed, and M-steps, all restarts side by side.

    The rows are kept once, in standard units and column by column, in blocks of one size: the last one is filled
    up with rows of weight 0, so that one graph serves them all.
    """

    def __init__(self, program: Program, table: Table, state: State, restarts: int, how: How) -> None:
        self.standard = Standard(program, table, state)
        self.bounds = self.standard.bounds(table)
        size = block_rows(program, table.n_units, restarts)
        self.spans = [(a, min(a + size, table.n_units)) for a in range(0, table.n_units, size)]
        self.blocks = [_filled(self.standard.block(table, *span), size) for span in self.spans]
        weights = torch.ones(size, dtype=program.dtype, device=program.device)
        self.weights = [torch.where(torch.arange(size) < b - a, weights, 0) for a, b in self.spans]
        self._begin = side_by_side(expectation_step(program), (0, None, None, 0))
        self._expect = Lowered(side_by_side(expectation_step(program), (0, None, None)), how, steady=(1, 2))
        self._maximise = Lowered(
            side_by_side(maximisation_step(program), (0, 0, None)),
            how,
            steady=(2,),
            eager_first=EAGER_M_STEPS,
        )

    @property
    def executed(self) -> str:
        """What ran the steps."""
        return self._expect.executed

    def e_step(self, state: State) -> tuple[Tensor, Statistics]:
        """Log-likelihoods (R,) and expected statistics of all rows."""
        blocks = zip(self.blocks, self.weights, strict=True)
        return _summed(self._expect(state, rows, weights) for rows, weights in blocks)

    def first_m_step(self, state: State, starts: Starts) -> tuple[State, Tensor]:
        """States from starting responsibilities."""
        with pyro_scope():
            _, statistics = _summed(
                self._begin(state, rows, weights, pad(starts.block(a, b), (0, len(weights) - (b - a))))
                for (a, b), rows, weights in zip(self.spans, self.blocks, self.weights, strict=True)
            )
        return self.m_step(state, statistics)

    def m_step(self, state: State, statistics: Statistics) -> tuple[State, Tensor]:
        """New states, and which of them are regular."""
        new, regular = self._maximise(state, statistics, self.bounds)
        return new, regular.cpu()


def sizes(program: Program) -> tuple[int, int]:
    """Joint states of the latents, and features of a row."""
    draws = program.generative.draws
    joint = math.prod(math.prod(draws[name].sizes.levels) for name in program.enumerated)
    slots = [slot for name in program.schema.roles.observed for slot in draws[name].slots.values()]
    return joint, 1 + sum(math.prod(slot.target.axes) for slot in slots)


def block_rows(program: Program, n_units: int, restarts: int) -> int:
    """Rows a block: what stays in cache, from 512 to 65 536, and the blocks as equal as can be."""
    joint, features = sizes(program)
    most = min(max(int(BLOCK_BYTES / (8 * (features + restarts * joint))), 512), 65_536)
    return math.ceil(n_units / math.ceil(n_units / most))


def _filled(block: dict[str, Tensor], size: int) -> dict[str, Tensor]:
    """Rows of zeros appended up to `size`, in the block's own column-major layout."""
    missing = size - len(next(iter(block.values())))
    if missing == 0:
        return block
    return {name: pad(rows.movedim(0, -1), (0, missing)).movedim(-1, 0) for name, rows in block.items()}


def _summed(parts: Iterable[tuple[Tensor, Statistics]]) -> tuple[Tensor, Statistics]:
    total: tuple[Tensor, Statistics] | None = None
    for value, statistics in parts:
        if total is None:
            total = value, statistics
        else:
            total = total[0] + value, {name: total[1][name] + s for name, s in statistics.items()}
    assert total is not None
    return total
