"""The search for the best maximum: many short runs, the best of them run to their end."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ppl_gen.data.table import Table
from ppl_gen.infer import networks
from ppl_gen.infer.algorithms import EM
from ppl_gen.infer.coordinates import Coordinates
from ppl_gen.infer.engine import Engine, Statistics, sizes
from ppl_gen.infer.enumeration import State
from ppl_gen.infer.restarts import Restarts
from ppl_gen.infer.starts import Starts
from ppl_gen.infer.status import Interrupt
from ppl_gen.infer.streaming import bounds_of, engine_for
from ppl_gen.program.lowering import How
from ppl_gen.program.program import Program

RESEEDS = 3  # times that one restart begins anew, from other rows, where a component collapsed or emptied
STRIDE = 7919  # between the seeds of one fit's draws
SAMPLE = 5_000  # rows that the short runs see of a table with more than twice as many,
ROWS_A_NUMBER = 10  # or as many as this for each number that the classes' features have
NARROW_WORK = 2e5  # multiplications of a step below which a smaller batch saves less than its graph costs


class Search:
    """One EM fit under way.

    Args:
        original: the program's own state, in the data's units.
        given: a state to begin at instead of `algorithm.restarts` drawn ones, or None.
        how: how steps are executed.

    """

    def __init__(
        self,
        program: Program,
        table: Table,
        algorithm: EM,
        original: State,
        given: State | None,
        how: How,
        seed: int,
        interrupt: Interrupt,
    ) -> None:
        self.program, self.table, self.algorithm, self.how = program, table, algorithm, how
        self.original, self.seed, self.interrupt = original, seed, interrupt
        drawn = given is None and bool(program.enumerated)
        self.count = algorithm.restarts if drawn else 1
        self.pruned = self.count > algorithm.keep
        self.short_table = sampled(program, table, seed) if self.pruned else table
        engine: Engine = engine_for(program, self.short_table, original, self.count, how)
        if self.short_table is not table:  # constant in the sample need not be constant
            engine.bounds = bounds_of(engine.standard, table)
        self.engine, self.on = engine, self.short_table
        self.work = work_of(program, self.on)  # of one restart's step
        state = engine.standard.enter(given or original)
        self.coordinates = Coordinates(program, state)
        self.blank = self.coordinates.flatten({p: v.unsqueeze(0) for p, v in state.items()})
        self.drawn, self._fresh = drawn and given is None, dict[tuple[int, int], Tensor]()
        points = self._points(0, self.count) if given is None else self.blank
        self.restarts = Restarts(
            self.coordinates, points, accelerate=algorithm.accelerate, monotone=engine.monotone
        )
        self.apart = algorithm.tol**0.5
        self.evaluated: tuple[Tensor, Statistics] | None = None  # the latest points, what is expected there

    def run(self) -> None:
        """Short runs, pruned, then finished."""
        algorithm, restarts = self.algorithm, self.restarts
        if self.pruned:
            short = min(algorithm.short_steps, algorithm.max_steps)
            self._climb(lambda: bool((restarts.active & (restarts.lanes.used <= short)).any()))
            restarts.prune(algorithm.keep)
            if self.short_table is not self.table:
                self._widen()
            else:
                self._narrow()
        self._climb(lambda: True)

    def _widen(self) -> None:
        """From the sample to all rows: what is still in the running begins again from where it is."""
        lanes = self.restarts.lanes
        sound = lanes.active | lanes.converged
        self.restarts.narrow(sound if sound.any() else ~lanes.pruned)
        self.on, self.work = self.table, work_of(self.program, self.table)
        self.engine = engine_for(
            self.program, self.table, self.original, len(self.restarts.members), self.how
        )
        self._fresh.clear()
        self.restarts.anew()
        self._step()  # even where the user has asked to stop: the answer is to be about all rows

    def _climb(self, going: Callable[[], bool]) -> None:
        restarts = self.restarts
        while restarts.active.any() and not self.interrupt and going():
            self._step()

    def _step(self) -> None:
        """One evaluation of the EM map by every restart."""
        restarts = self.restarts
        state = self.coordinates.unflatten(restarts.lanes.point)
        values, statistics = self.engine.e_step(state)
        self.evaluated = restarts.lanes.point, statistics
        new, regular = self.engine.m_step(state, statistics)
        tolerance = self.algorithm.tol * self.table.total
        moved = self.coordinates.kept(self.coordinates.flatten(new))
        restarts.update(values, moved, regular, tolerance, self.apart)
        self._reseed(statistics)
        restarts.stop(restarts.lanes.used > self.algorithm.max_steps)
        self._narrow()

    def _narrow(self) -> None:
        """A smaller batch once half of it has ended, where the work saved is worth another graph."""
        left = int(self.restarts.active.sum())
        if left and 2 * left <= len(self.restarts.members):
            work = (self.work + networks.work_of(self.program, self.on)) * len(self.restarts.members)
            if work > NARROW_WORK:
                self.restarts.narrow(self.restarts.active)

    def expected(self, points: Tensor) -> Statistics:
        """Expected statistics at points (R, P), of as many restarts as the batch has."""
        if self.evaluated is not None and torch.equal(self.evaluated[0], points):
            return self.evaluated[1]
        return self.engine.e_step(self.coordinates.unflatten(points))[1]

    def _reseed(self, statistics: Mapping[str, Any]) -> None:
        """Draw anew what collapsed, and what is at the end of its short run with an empty class."""
        if not self.drawn:
            return
        restarts, lanes = self.restarts, self.restarts.lanes
        broken = lanes.collapsed
        due = lanes.active & (lanes.used == self.algorithm.short_steps)
        if due.any():
            broken = broken | (due & emptied(self.program, statistics, self.on))
        if not broken.any():
            return
        times = np.array([restarts.reseeded[member] for member in restarts.members])
        for generation in range(1, RESEEDS + 1):
            rows = broken & (times == generation - 1)
            if rows.any():
                restarts.reseed(rows, self._points(generation, len(restarts.members)))

    def _points(self, generation: int, count: int) -> Tensor:
        """Where restarts begin, (R, P); each generation from draws of its own."""
        if (generation, count) not in self._fresh:
            state = self.coordinates.unflatten(self.blank.expand(count, -1))
            starts = Starts(
                self.program, self.on, self.algorithm.init, count, self.seed + generation * STRIDE
            )
            state, _ = self.engine.first_m_step(state, starts)
            self._fresh[generation, count] = self.coordinates.flatten(state)
        return self._fresh[generation, count]


def work_of(program: Program, table: Table) -> float:
    """Multiplications of one step of one restart."""
    joint, features = sizes(program, table)
    return 2.0 * table.n_units * joint * features


def sampled(program: Program, table: Table, seed: int) -> Table:
    """Some of the rows of a large table, at random; the table itself where it is not large."""
    joint, features = sizes(program, table)
    rows = max(SAMPLE, ROWS_A_NUMBER * joint * features)
    if table.n_units <= 2 * rows:
        return table
    random = torch.Generator().manual_seed(seed)
    picked = torch.randperm(table.n_units, generator=random)[:rows].sort().values.numpy()
    arrays = {name: array[picked] for name, array in table.arrays.items()}
    weights = None if table.weights is None else table.weights[picked]
    return replace(table, arrays=arrays, n_units=rows, weights=weights)


def emptied(program: Program, statistics: Mapping[str, Any], table: Table) -> NDArray[np.bool_]:
    """Which restarts have a class that less than one row belongs to, (R,)."""
    found, rows = np.zeros(1, dtype=bool), max(table.total, table.n_units)  # weights may be shares
    for name in program.enumerated:
        if program.generative.draws[name].sizes.k is None or name not in statistics:
            continue
        counts = statistics[name]
        totals = counts.reshape(len(counts), -1, counts.shape[-1]).sum(1).cpu()  # (R, K)
        found = found | (totals.amin(1) * rows < totals.sum(1)).numpy()
    return found
