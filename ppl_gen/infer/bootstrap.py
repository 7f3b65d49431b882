"""Refits side by side: EM on S replicates of one data set, each with row weights or rows of its own.

Replicates are one more batch axis of the same two steps, as restarts are. All begin at the fit's own parameters.

Reference: Efron (1979), https://doi.org/10.1214/aos/1176344552; Rubin (1981), The Bayesian bootstrap,
https://doi.org/10.1214/aos/1176345338
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment
from torch import Tensor
from torch.nn.functional import pad
from torch.utils import _pytree as pytree

from ppl_gen.data.table import Table
from ppl_gen.errors import FitError
from ppl_gen.infer import newton, ordering
from ppl_gen.infer.engine import Statistics, block_rows, filled, summed
from ppl_gen.infer.enumeration import Rows, State, Step, latent_axes, posterior_marginals
from ppl_gen.infer.natural import natural_map
from ppl_gen.infer.restarts import side_by_side
from ppl_gen.infer.standard import Standard
from ppl_gen.infer.steps import expectation_step, maximisation_step
from ppl_gen.program.lowering import Lowered, pyro_scope, threads_for, trace
from ppl_gen.program.program import Program

CELLS = 16_000_000  # numbers of rows and responsibilities held at a time
EAGER_STEPS = 25  # most refits need no more, and recording the steps costs as much
HALVINGS = 12  # of a step that lowered the objective
LABELLED_ROWS = 1_000  # that labels are matched on
Weights = NDArray[np.float64]


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
            side_by_side(step, in_dims), "traced", steady=(1, 2), eager_first=EAGER_STEPS * len(blocks)
        )
        self._maximise = Lowered(
            side_by_side(maximisation_step(program), (0, 0, None)), "traced", steady=(2,), eager_first=EAGER_STEPS
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


def bayesian_weights(table: Table, draws: int, seed: int) -> Weights:
    """Rubin's: a Dirichlet draw over the units, times their number; a row of weight w is w units: (S, N)."""
    base = np.ones(table.n_units) if table.weights is None else table.weights
    drawn = np.random.default_rng(seed).standard_gamma(base, size=(draws, table.n_units))
    return np.asarray(drawn * (base.sum() / drawn.sum(1, keepdims=True)))


def resampled_weights(table: Table, draws: int, seed: int) -> Weights:
    """Efron's: how often each row comes up in as many draws with replacement as there are units: (S, N)."""
    base = np.ones(table.n_units) if table.weights is None else table.weights
    counts = np.random.default_rng(seed).multinomial(round(base.sum()), base / base.sum(), size=draws)
    return np.asarray(counts, dtype=np.float64)


def drawn_tables(program: Program, table: Table, draws: int, seed: int) -> list[Table]:
    """Tables whose rows the model draws, given the same Inputs, with the same cells missing."""
    index = np.arange(table.n_units)
    if table.weights is not None:
        if (table.weights != np.round(table.weights)).any():
            raise FitError(
                "rows of the model's own cannot have weights that are no whole numbers: use kind='weighted'"
            )
        index = np.repeat(index, table.weights.astype(np.int64))
    arrays = {name: array[index] for name, array in table.arrays.items()}
    inputs = program.tensors({name: arrays[name] for name in program.schema.roles.inputs})
    devices = [program.device] if program.device.type == "cuda" else []
    tables = []
    with pyro_scope(), torch.no_grad(), torch.random.fork_rng(devices=devices):
        torch.manual_seed(seed)
        for _ in range(draws):
            values = program.model(inputs, n=len(index))
            own = dict(arrays)
            for name in program.schema.roles.observed:
                own[name] = _as_observed(values[name].cpu().numpy(), arrays[name])
            tables.append(replace(table, arrays=own, n_units=len(index), weights=None, warnings=()))
    return tables


def _as_observed(drawn: NDArray[Any], like: NDArray[Any]) -> NDArray[Any]:
    """Drawn values in the form of the observed ones, the same cells missing."""
    drawn = drawn.astype(like.dtype).reshape(like.shape)
    missing = like < 0 if like.dtype.kind in "iu" else np.isnan(like)
    return np.where(missing, like, drawn) if missing.any() else drawn


def aligned(program: Program, state: State, table: Table, states: Sequence[State]) -> list[State]:
    """States whose classes are those of `state`: each matched by whom it takes, by the Hungarian method.

    Σ_d Σ_k r_dk r'_dπ(k) is made as large as it can be over permutations π, for each latent whose categories can
    change places, on at most 1 000 of the rows.

    Reference: Kuhn (1955), https://doi.org/10.1002/nav.3800020109
    """
    latents = [name for name in program.enumerated if ordering._exchangeable(program.generative, name)]
    if not latents:
        return list(states)
    some = np.unique(np.linspace(0, table.n_units - 1, min(LABELLED_ROWS, table.n_units)).astype(np.int64))
    rows = program.tensors({name: array[some] for name, array in table.arrays.items()}, table.holes)
    stacked = {path: torch.stack([own[path] for own in (state, *states)]) for path in state}
    with pyro_scope(), torch.no_grad(), threads_for(0):
        each = torch.func.vmap(lambda own: _responsibilities(program, own, rows, latents))(stacked)
    found = []
    for s, own in enumerate(states, start=1):
        for name in latents:
            overlap = each[name][0] @ each[name][s].T  # (K, K)
            _, order = linear_sum_assignment(-overlap.cpu().numpy())
            own = ordering._permuted(program.generative, own, name, torch.as_tensor(order))
        found.append(own)
    return found


def _responsibilities(program: Program, state: State, rows: Rows, names: Sequence[str]) -> dict[str, Tensor]:
    """P(z = k | x_d) of each latent, (K, N)."""
    _, marginals = posterior_marginals(program, state, rows)
    axes = latent_axes(program, rows)
    found = {}
    for name in names:
        own = marginals[name].movedim(axes[name], 0)
        found[name] = own.reshape(own.shape[0], -1, own.shape[-1]).sum(1)
    return found


def naturals(program: Program, states: Sequence[State]) -> NDArray[np.float64]:
    """All natural parameters of each state end to end, (S, M)."""
    call = natural_map(program.generative)
    stacked = {path: torch.stack([own[path] for own in states]) for path in states[0]}
    with torch.no_grad(), threads_for(0):
        found: Tensor = torch.func.vmap(call)(stacked)
    return np.asarray(found.cpu().double().numpy())
