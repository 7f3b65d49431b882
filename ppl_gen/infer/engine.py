"""EM's lowered steps over the blocks of one table."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad
from torch.utils import _pytree as pytree

from ppl_gen.data.table import Table
from ppl_gen.infer import newton
from ppl_gen.infer.enumeration import State
from ppl_gen.infer.moments import at_moments
from ppl_gen.infer.networks import Networks
from ppl_gen.infer.restarts import side_by_side
from ppl_gen.infer.standard import Standard
from ppl_gen.infer.starts import Starts
from ppl_gen.infer.steps import expectation_step, maximisation_step, prior_step
from ppl_gen.program.lowering import How, Lowered, pyro_scope
from ppl_gen.program.piles import Crew, one_thread, piles
from ppl_gen.program.program import Program

BLOCK_BYTES = 6_000_000  # features and responsibilities of one block: what stays in cache
EAGER_M_STEPS = 40  # recording the M-step costs about as much as this many of them
FIRST_STEPS = 12  # of Newton's method from starting responsibilities

Statistics = dict[str, Any]


class Engine:
    """E-steps block by block, their statistics summed, and M-steps, all restarts side by side.

    The rows are kept once, in standard units and column by column, in blocks of one size: the last one is filled
    up with rows of weight 0, so that one graph serves them all.

    Attributes:
        monotone: whether no step can lower the log-likelihood: every M-step has a closed form.
        offset: what to take from an objective here for that of the data in their own units, in nats.

    """

    _networks: Networks | None = None

    def __init__(self, program: Program, table: Table, state: State, restarts: int, how: How) -> None:
        self.program = program
        self.standard = Standard(program, table, state)
        self.bounds = self.standard.bounds(table)
        self.offset = self.standard.log_units(table) + self.standard.prior_units(state)
        self.monotone = not newton.small_groups(program)
        size = block_rows(program, table, restarts)
        self.spans = [(a, min(a + size, table.n_units)) for a in range(0, table.n_units, size)]
        self.blocks = [filled(self.standard.block(table, *span), size) for span in self.spans]
        self.weights = [weights_of(program, table, *span, size) for span in self.spans]
        self._log_prior = log_prior_of(program, how)
        if newton.large_groups(program):
            self._networks = Networks(program, self.blocks, self.weights, how)
        self._crew = Crew()
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
        """The objective (R,), log-likelihood plus log prior, and expected statistics of all rows."""
        if len(self.blocks) == 1:
            total, statistics = self._expect(state, self.blocks[0], self.weights[0])
        else:
            each = self._crew.each if self.executed == "traced" else map
            total, statistics = summed(each(partial(self._summed, state), piles(len(self.blocks))))
        return total + self._log_prior(state), statistics

    def _summed(self, state: State, pile: Iterable[int]) -> tuple[Tensor, Statistics]:
        return summed(self._expect(state, self.blocks[i], self.weights[i]) for i in pile)

    def first_m_step(self, state: State, starts: Starts) -> tuple[State, Tensor]:
        """States from starting responsibilities."""
        state = at_moments(self.program, state, self.standard.shift, self.standard.unit)
        regular = torch.ones(len(next(iter(state.values()))), dtype=torch.bool)
        spare = [len(own) - (b - a) for own, (a, b) in zip(self.weights, self.spans, strict=True)]
        padded = [pad(starts.block(*span), (0, n)) for span, n in zip(self.spans, spare, strict=True)]
        shares = [starts.shares(*span) for span in self.spans]
        counts, begin = self.weights, self._begin
        if starts.inside is not None:  # rows far out in the tails count less in some restarts
            counts = [
                own if share is None else own * pad(share, (0, n)).to(own)
                for own, share, n in zip(self.weights, shares, spare, strict=True)
            ]
            begin = side_by_side(expectation_step(self.program), (0, None, 0, 0))
        groups = newton.small_groups(self.program)
        base, best = state, torch.full_like(regular, -torch.inf, dtype=self.program.dtype)
        for _ in range(FIRST_STEPS if groups else 1):
            with pyro_scope():
                _, statistics = summed(
                    begin(state, rows, weights, start)
                    for start, rows, weights in zip(padded, self.blocks, counts, strict=True)
                )
            new, regular = self._moved(state, statistics, padded)
            if groups:  # a step that is too long may empty a class before the likelihood is looked at
                value = torch.stack([statistics[f"{group.name}.value"] for group in groups]).sum(0)
                rose = value >= best.to(value)
                base = newton.mixed(groups, rose, state, base)
                best = torch.where(rose, value, best.to(value))
                halfway = {path: (base[path] + state[path]) / 2 for path in base}
                new |= newton.mixed(groups, rose, new, halfway)
            state = new
        return state | (base if groups else {}), regular

    def m_step(self, state: State, statistics: Statistics) -> tuple[State, Tensor]:
        """New states, and which of them are regular."""
        return self._moved(state, statistics)

    def _moved(
        self, state: State, statistics: Statistics, starts: Sequence[Tensor] | None = None
    ) -> tuple[State, Tensor]:
        with one_thread():
            new, regular = self._maximise(state, statistics, self.bounds)
        if self._networks is None:
            return new, regular.cpu()
        new, sound = self._networks.maximise(state, new, self.bounds, starts)
        return new, regular.cpu() & sound


def log_prior_of(program: Program, how: How) -> Callable[[State], Tensor | float]:
    """States side by side → Σ log p of their priors (R,); plainly 0 for a model without."""
    if not any(True for _ in program.priors):
        return lambda state: 0.0  # noqa: ARG005
    return Lowered(side_by_side(prior_step(program), (0,)), how)


def sizes(program: Program, table: Table) -> tuple[int, int]:
    """Joint states of the latents, and features of a row."""
    draws = program.generative.draws
    joint = math.prod(math.prod(draws[name].sizes.levels) for name in program.enumerated)
    slots = [slot for name in program.schema.roles.observed for slot in draws[name].slots.values()]
    # A row with missing cells has a factor of its own under every class.
    parts = [
        draws[name].sizes.width ** 2 for name in table.holes if name in draws and draws[name].family.joined
    ]
    directions = sum(group.size for group in newton.small_groups(program))  # a Hessian is as many gradients
    return joint * max(1, directions, *parts), 1 + sum(math.prod(slot.target.axes) for slot in slots)


def block_rows(program: Program, table: Table, restarts: int) -> int:
    """Rows a block: what stays in cache, from 512 to 65 536, and the blocks as equal as can be."""
    joint, features = sizes(program, table)
    n_units = table.n_units
    most = min(max(int(BLOCK_BYTES / (8 * (features + restarts * joint))), 512), 65_536)
    return math.ceil(n_units / math.ceil(n_units / most))


def weights_of(program: Program, table: Table, start: int, stop: int, size: int) -> Tensor:
    """The rows' weights, (size,), 0 for those that only fill the block."""
    if table.weights is None:
        own = torch.ones(stop - start, dtype=program.dtype)
    else:
        own = torch.tensor(table.weights[start:stop], dtype=program.dtype)
    return pad(own, (0, size - (stop - start))).to(program.device)


def filled(block: dict[str, Tensor], size: int) -> dict[str, Tensor]:
    """The block's last row repeated up to `size` rows, in the block's own column-major layout."""
    rows = len(next(iter(block.values())))
    if rows == size:
        return block
    again = torch.arange(size, device=next(iter(block.values())).device).clamp(max=rows - 1)
    return {
        name: own if name.endswith(".patterns") else own.movedim(0, -1).index_select(-1, again).movedim(-1, 0)
        for name, own in block.items()
    }


def summed(parts: Iterable[tuple[Tensor, Statistics]]) -> tuple[Tensor, Statistics]:
    """Blocks' log-likelihoods and statistics, added up."""
    total: Any = None
    for part in parts:
        total = part if total is None else pytree.tree_map(torch.add, total, part)
    assert total is not None
    return total
