"""The M-step of networks, and of any group of parameters too large for a Hessian: L-BFGS on Q.

The responsibilities of all rows are held fixed meanwhile: for each restart as many numbers as the nodes' densities
have entries, N × K for a gate or an expert with K classes. Every point taken raises Q, so that the log-likelihood
rises with it (F6): a few steps do, and what they learn of the curvature serves the next M-step.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from ppl_gen.data.table import Table
from ppl_gen.infer import newton
from ppl_gen.infer.enumeration import Rows, State, Step, evaluated_sites, latent_axes, marginals_of
from ppl_gen.infer.lbfgs import Objective, Pairs, climb
from ppl_gen.infer.newton import Group
from ppl_gen.infer.restarts import side_by_side
from ppl_gen.program.families import in_standard_units
from ppl_gen.program.lowering import How, Lowered, pyro_scope
from ppl_gen.program.program import Program

EVALUATIONS = 30  # of Q and its gradient in an M-step, as a rule
LITTLE = 0.05  # nats, over all rows, below which an M-step is not worth a move


class Networks:
    """M-steps by L-BFGS over blocks of rows in standard units, all restarts side by side.

    Args:
        program: the model.
        blocks: all rows.
        weights: of the rows, block by block.
        how: how steps are executed.

    """

    def __init__(self, program: Program, blocks: Sequence[Rows], weights: Sequence[Tensor], how: How) -> None:
        self.program, self.blocks, self.weights = program, blocks, weights
        self.groups = newton.large_groups(program)
        self.values = [{**rows, **_supports(program, rows)} for rows in blocks]
        self.rows = float(sum(own.sum() for own in weights))
        self._begin = side_by_side(_expectation(program, self.groups), (0, None, None, 0))
        self._expect = Lowered(
            side_by_side(_expectation(program, self.groups), (0, None, None)), how, steady=(1, 2)
        )
        self._climb = {
            group.name: Lowered(side_by_side(_objective(program, group), (0, 0, 0, None)), how, steady=(3,))
            for group in self.groups
        }
        self._prior = side_by_side(_log_prior(program), (0, 0))
        self._curvature: dict[str, Pairs] = {}  # Q changes little from one M-step to the next

    def maximise(
        self,
        state: State,
        new: State,
        bounds: Mapping[str, tuple[Tensor, Tensor]],
        starts: Sequence[Tensor] | None = None,
    ) -> tuple[State, Tensor]:
        """The groups' parameters at a higher Q, put into `new`; and which restarts have kept their scales, (R,).

        Args:
            state: of the E-step, (R, …).
            new: where all other parameters have moved to.
            bounds: variance floor and jitter, by node.
            starts: log-responsibilities, block by block, in the place of the posterior.

        """
        each = zip(self.blocks, self.weights, strict=True)
        if starts is None:
            expected = [self._expect(state, rows, own) for rows, own in each]
        else:
            with pyro_scope():
                expected = [self._begin(state, *b, start) for b, start in zip(each, starts, strict=True)]
        moved, regular = dict(new), torch.ones(len(next(iter(state.values()))), dtype=torch.bool)
        for group in self.groups:
            flat = torch.cat([state[path].flatten(1) for path in group.paths], 1)
            memory = None if starts is not None else self._remembered(group, len(flat))
            flat = climb(self._q(group, state, expected), flat, little=LITTLE / self.rows, memory=memory)
            moved |= _unflat(group, state, flat)
            sound = torch.func.vmap(partial(newton.regular, self.program, group, bounds=bounds))(moved)
            regular = regular & sound.cpu()
        return moved, regular

    def _remembered(self, group: Group, restarts: int) -> Pairs:
        """What the last M-steps of as many restarts have found of the group's curvature."""
        found = self._curvature.setdefault(group.name, [])
        if found and len(found[0][0]) != restarts:
            found.clear()
        return found

    def _q(self, group: Group, state: State, expected: Sequence[dict[str, Tensor]]) -> Objective:
        """The group's part of Q, with the log prior, a row on average: (R, P) → (R,) and its gradient (R, P)."""
        own = [{name: part[name] for name in group.sites} for part in expected]
        priors = any(True for _ in self.program.priors)

        def q(flat: Tensor) -> tuple[Tensor, Tensor]:
            parts = _unflat(group, state, flat)
            found = [
                self._climb[group.name](parts, state, part, values)
                for part, values in zip(own, self.values, strict=True)
            ]
            if priors:
                found.append(self._prior(parts, state))
            value = sum(value for _, value in found)
            gradient: Any = [sum(g[path] for g, _ in found) for path in group.paths]
            return value / self.rows, torch.cat([g.flatten(1) for g in gradient], 1) / self.rows

        return q


def work_of(program: Program, table: Table) -> float:
    """Multiplications of one M-step of one restart by L-BFGS; 0 for a program that has none."""
    return 6.0 * EVALUATIONS * table.n_units * sum(group.size for group in newton.large_groups(program))


def obstacle(program: Program) -> str | None:
    """Why the rows of a program's M-step have to be in memory, all at once; None where they need not."""
    for group in newton.large_groups(program):
        nodes = " and ".join(group.sites)
        return f"the M-step of {nodes}, L-BFGS at fixed responsibilities, runs over all rows several times"
    return None


def _expectation(program: Program, groups: Sequence[Group]) -> Step:
    """(state, rows, weights, start=None) → the weighted posterior of each entry of log p, by site of the groups."""
    sites = {name for group in groups for name in group.sites}

    def step(state: State, rows: Rows, weights: Tensor, start: Tensor | None = None) -> dict[str, Tensor]:
        with in_standard_units():
            log_probs, _ = evaluated_sites(program, state, rows)
            axes = list(latent_axes(program, rows).values())
            _, marginals = marginals_of(log_probs, axes, weights, start)
        return {name: marginals[name] for name in sites}

    return step


def _objective(program: Program, group: Group) -> Step:
    """(the group's parameters, state, expected, values of all nodes) → Q's gradient by path, and Q."""

    def step(parts: State, state: State, expected: dict[str, Tensor], values: Rows) -> tuple[State, Tensor]:
        def q(own: State) -> Tensor:
            total: Any = 0.0
            for name in group.sites:
                log_p = torch.func.functional_call(program, {**state, **own}, ("density", name, values))
                total = total + (expected[name] * log_p).sum()
            return total

        with in_standard_units():
            found: tuple[State, Tensor] = torch.func.grad_and_value(q)(parts)
        return found

    return step


def _log_prior(program: Program) -> Step:
    """(the group's parameters, state) → the log prior's gradient by path, and its value."""

    def step(parts: State, state: State) -> tuple[State, Tensor]:
        def log_prior(own: State) -> Tensor:
            value: Tensor = torch.func.functional_call(program, {**state, **own}, ("log_prior",))
            return value

        found: tuple[State, Tensor] = torch.func.grad_and_value(log_prior)(parts)
        return found

    return step


def _supports(program: Program, rows: Rows) -> dict[str, Tensor]:
    """Every value of each enumerated node, along its axis."""
    found = {}
    for name, axis in latent_axes(program, rows).items():
        draw = program.generative.draws[name]
        support = draw.family.support(draw.sizes).to(program.device)
        event = support.shape[1:]
        found[name] = support.reshape((len(support),) + (1,) * (-1 - axis) + tuple(event))
    return found


def _unflat(group: Group, state: State, flat: Tensor) -> State:
    shapes = [state[path].shape for path in group.paths]
    parts = flat.split([shape[1:].numel() for shape in shapes], 1)
    return {
        path: part.reshape(shape).contiguous()
        for path, part, shape in zip(group.paths, parts, shapes, strict=True)
    }
