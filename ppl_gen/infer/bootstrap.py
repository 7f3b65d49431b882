"""Refits side by side: EM on S replicates of one data set, each with row weights or rows of its own.

Replicates are one more batch axis of the same two steps, as restarts are. All begin at the fit's own parameters.

Reference: Efron (1979), https://doi.org/10.1214/aos/1176344552; Rubin (1981), The Bayesian bootstrap,
https://doi.org/10.1214/aos/1176345338
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import pad
from torch.utils import _pytree as pytree

from ppl_gen.data.table import Table
from ppl_gen.infer import newton
from ppl_gen.infer.engine import Statistics, block_rows, filled, summed
from ppl_gen.infer.enumeration import Rows, State, Step
from ppl_gen.infer.replicates import Weights
from ppl_gen.infer.restarts import side_by_side
from ppl_gen.infer.standard import Standard
from ppl_gen.infer.steps import expectation_step, maximisation_step
from ppl_gen.program.lowering import Lowered, pyro_scope, threads_for, trace
from ppl_gen.program.program import Program

CELLS = 16_000_000  # numbers of rows and responsibilities held at a time
EAGER_STEPS = 25  # most refits need no more, and recording the steps costs as much
HALVINGS = 12  # of a step that lowered the objective


@dataclass(frozen=True)
class Refits:
    """S refitted states, and how each run ended.

    Args:
        states: in the data's own units, in the order of the replicates; those that collapsed are left out.
        log_likelihoods: Σ w log p(x) (+ log prior) of each on its own replicate.
        converged: whether each met the tolerance.
        collapsed: how many became singular.

    """

    states: tuple[State, ...]
    log_likelihoods: tuple[float, ...]
    converged: tuple[bool, ...]
    collapsed: int


def weighted_refits(
    program: Program, state: State, table: Table, weights: Weights, *, tol: float, max_steps: int
) -> Refits:
    """Refit the same rows under other weights, (S, N)."""
    standard = Standard(program, table, state)
    parts = []
    for group in _groups(len(weights), program, table):
        size = block_rows(program, table, len(group))
        spans = [(a, min(a + size, table.n_units)) for a in range(0, table.n_units, size)]
        blocks = [filled(standard.block(table, *span), size) for span in spans]
        own = torch.as_tensor(weights[group]).to(program.device, program.dtype)
        padded = [pad(own[:, a:b], (0, size - (b - a))) for a, b in spans]
        climb = _Climb(program, standard, table, blocks, padded, rows_differ=False)
        parts.append(climb.run(state, len(group), tol * table.total, max_steps))
    return _joined(parts)


def parametric_refits(
    program: Program, state: State, table: Table, replicates: Sequence[Table], *, tol: float, max_steps: int
) -> Refits:
    """Refit S tables of the same shape, whose rows the model has drawn."""
    standard = Standard(program, table, state)
    parts = []
    for group in _groups(len(replicates), program, replicates[0]):
        some = [replicates[s] for s in group]
        n = some[0].n_units
        size = block_rows(program, some[0], len(group))
        spans = [(a, min(a + size, n)) for a in range(0, n, size)]
        blocks, weights = [], []
        for a, b in spans:
            each = [filled(standard.block(one, a, b), size) for one in some]
            blocks.append({name: torch.stack([rows[name] for rows in each]) for name in each[0]})
            ones = torch.ones(len(group), b - a, dtype=program.dtype, device=program.device)
            weights.append(pad(ones, (0, size - (b - a))))
        climb = _Climb(program, standard, some[0], blocks, weights, rows_differ=True)
        parts.append(climb.run(state, len(group), tol * n, max_steps))
    return _joined(parts)


class _Climb:
    """EM on all replicates of a group at once, from one state, until each has met the tolerance."""

    def __init__(
        self,
        program: Program,
        standard: Standard,
        table: Table,
        blocks: list[dict[str, Tensor]],
        weights: list[Tensor],
        *,
        rows_differ: bool,
    ) -> None:
        self.program, self.standard = program, standard
        self.blocks, self.weights, self.rows_differ = blocks, weights, rows_differ
        self.bounds = standard.bounds(table)
        self.monotone = not newton.groups(program)
        step = expectation_step(program)
        if rows_differ:
            # Pyro reads an observed value's data, which vmap forbids: one replicate's step is recorded first.
            step = recorded(
                step, standard.enter(dict(program.state_dict())), _first(blocks[0]), weights[0][0]
            )
        in_dims = (0, 0 if rows_differ else None, 0)
        self._expect = Lowered(
            side_by_side(step, in_dims), "auto", steady=(1, 2), eager_first=EAGER_STEPS * len(blocks)
        )
        self._maximise = Lowered(
            side_by_side(maximisation_step(program), (0, 0, None)),
            "auto",
            steady=(2,),
            eager_first=EAGER_STEPS,
        )
        self._priors = any(True for _ in program.priors)

    def run(self, start: State, count: int, tolerance: float, max_steps: int) -> Refits:
        """The refits of this group."""
        inside = self.standard.enter(start)
        members, active = list(range(count)), torch.ones(count, dtype=torch.bool)
        done: dict[int, tuple[State, float, bool]] = {}
        with torch.no_grad(), threads_for(2.0 * sum(weights.numel() for weights in self.weights)):
            state = {path: value.expand(count, *value.shape).clone() for path, value in inside.items()}
            value, statistics = self._evaluate(state)
            for _ in range(max_steps):
                state, new, statistics, regular = self._step(state, value, statistics, active)
                sound = regular & new.isfinite()
                arrived = sound & (new - value <= tolerance)
                for row in torch.nonzero(active & (arrived | ~sound)).flatten().tolist():
                    if sound[row]:
                        done[members[row]] = self._ended(state, row, start, new, arrived=True)
                active, value = active & ~arrived & sound, new
                left = torch.nonzero(active).flatten()
                if not len(left):
                    break
                if len(left) * 2 <= len(members):  # each size of the batch is a graph
                    members, active = [members[row] for row in left.tolist()], active[left]
                    state, value, statistics = self._keep(left, state, value, statistics)
            for row in torch.nonzero(active).flatten().tolist():
                done[members[row]] = self._ended(state, row, start, value, arrived=False)
        ended = [done[s] for s in sorted(done)]
        return Refits(
            tuple(own for own, _, _ in ended),
            tuple(own for _, own, _ in ended),
            tuple(own for _, _, own in ended),
            count - len(ended),
        )

    def _ended(
        self, state: State, row: int, start: State, value: Tensor, *, arrived: bool
    ) -> tuple[State, float, bool]:
        own = {path: leaf[row] for path, leaf in state.items()}
        return self.standard.leave(own, start), float(value[row]), arrived

    def _evaluate(self, state: State) -> tuple[Tensor, Statistics]:
        """The objective of each replicate, (S,), and its expected statistics."""
        blocks = zip(self.blocks, self.weights, strict=True)
        value, statistics = summed(self._expect(state, rows, weights) for rows, weights in blocks)
        if self._priors:
            with pyro_scope():
                value = value + torch.func.vmap(self._log_prior)(state)
        return value, statistics

    def _log_prior(self, state: State) -> Tensor:
        total: Tensor = torch.func.functional_call(self.program, state, ("log_prior",))
        return total

    def _step(
        self, state: State, value: Tensor, statistics: Statistics, active: Tensor
    ) -> tuple[State, Tensor, Statistics, Tensor]:
        """One step of the active replicates, halved where it lowered the objective and could have."""
        moved, regular = self._maximise(state, statistics, self.bounds)
        proposed = _chosen(active & regular, moved, state)
        new, found = self._evaluate(proposed)
        for _ in range(0 if self.monotone else HALVINGS):
            short = active & regular & ~(new >= value)
            if not bool(short.any()):
                break
            halfway = {
                path: (leaf + state[path]) / 2 if leaf.is_floating_point() else leaf
                for path, leaf in proposed.items()
            }
            proposed = _chosen(short, halfway, proposed)
            new, found = self._evaluate(proposed)
        return proposed, new, found, regular | ~active

    def _keep(
        self, left: Tensor, state: State, value: Tensor, statistics: Statistics
    ) -> tuple[State, Tensor, Statistics]:
        """Those replicates alone that still move."""
        self.weights = [weights[left] for weights in self.weights]
        if self.rows_differ:
            self.blocks = [{name: rows[left] for name, rows in block.items()} for block in self.blocks]
        kept = pytree.tree_map(lambda leaf: leaf[left], (state, value, statistics))
        return kept[0], kept[1], kept[2]


def recorded(step: Step, *args: Any) -> Step:
    """A step as the graph of what it does to tensors like these: the same function, with no Pyro in it."""
    flat, form = pytree.tree_flatten(args)
    results: list[Any] = []

    def flat_step(*leaves: Tensor) -> list[Tensor]:
        found, result = pytree.tree_flatten(step(*pytree.tree_unflatten(leaves, form)))
        results.append(result)
        return found

    graph = trace(flat_step, flat)

    def run(*args: Any) -> Any:
        return pytree.tree_unflatten(graph(*pytree.tree_leaves(args)), results[0])

    return run


def _first(block: Rows) -> Rows:
    """One replicate's rows."""
    return {name: rows[0] for name, rows in block.items()}


def _chosen(mask: Tensor, yes: State, no: State) -> State:
    """The leaves of one state where `mask` (S,) holds, of another elsewhere."""
    return {
        path: torch.where(mask.reshape(-1, *(1,) * (leaf.ndim - 1)), leaf, no[path])
        for path, leaf in yes.items()
    }


def _groups(count: int, program: Program, table: Table) -> list[list[int]]:
    """Replicates that are run at a time."""
    width = sum(draw.sizes.width for draw in program.generative.draws.values())
    joint = int(np.prod([np.prod(program.generative.draws[n].sizes.levels) for n in program.enumerated]))
    size = max(1, CELLS // (table.n_units * (width + joint)))
    return [list(range(start, min(start + size, count))) for start in range(0, count, size)]


def _joined(parts: Sequence[Refits]) -> Refits:
    return Refits(
        tuple(state for part in parts for state in part.states),
        tuple(value for part in parts for value in part.log_likelihoods),
        tuple(flag for part in parts for flag in part.converged),
        sum(part.collapsed for part in parts),
    )
