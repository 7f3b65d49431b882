"""The restarts of one EM fit, side by side: where each stands, what it tries next, what became of it."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from ppl_gen.infer.coordinates import Coordinates
from ppl_gen.infer.enumeration import Step
from ppl_gen.infer.lanes import Flags, Lanes, Numbers, pick
from ppl_gen.infer.squarem import LONGER, extrapolate
from ppl_gen.infer.stopping import assess, rounding

BEGUN, PLAIN, LEAP = 0, 1, 2  # what led to the point at hand: a start, an EM step, an extrapolation
PROBATION = 10  # plain steps before any restart is called slow
SLOW = 20  # further plain steps that are worth accelerating
HALVINGS = 30  # of a step that lowers the objective, before the restart is left where it is
LEVEL_STEPS = 200  # steps in a row without a rise that rounding would let us see: a plateau


def side_by_side(step: Step, in_dims: tuple[int | None, ...]) -> Callable[..., Any]:
    """A step over a leading restart axis of the arguments marked 0; those that vmap cannot batch run one by one."""
    batched, divided = torch.func.vmap(step, in_dims), list[bool]()

    def alone(row: int, args: tuple[Any, ...]) -> Any:
        own = [
            pytree.tree_map(lambda leaf: leaf[row], arg) if dim == 0 else arg
            for arg, dim in zip(args, in_dims, strict=True)
        ]
        return pytree.tree_map(lambda leaf: leaf.unsqueeze(0), step(*own))

    def run(*args: Any) -> Any:
        count = len(next(iter(args[0].values())))
        if count == 1:
            return alone(0, args)
        if not divided:
            try:
                return batched(*args)
            except ValueError as error:  # Pyro wraps what a family of the user's own says
                if not cannot_batch(error):
                    raise
                divided.append(True)
        return pytree.tree_map(lambda *rows: torch.cat(rows), *[alone(row, args) for row in range(count)])

    return run


def cannot_batch(error: BaseException | None) -> bool:
    """Whether a step does different operations for different values, so that restarts have to go one by one."""
    while error is not None and not str(error).startswith("vmap:"):
        error = error.__cause__
    return error is not None


class Restarts:
    """The batch of restarts under way, and those taken out of it.

    Args:
        coordinates: of the program's states.
        points: where each begins, (R, P).
        accelerate: whether slow restarts are extrapolated.
        monotone: whether a plain step cannot lower the objective; else one that does is halved.

    """

    def __init__(self, coordinates: Coordinates, points: Tensor, *, accelerate: bool, monotone: bool) -> None:
        self.coordinates, self.accelerate, self.monotone = coordinates, accelerate, monotone
        self.lanes = Lanes.at(points)
        self.members = list(range(len(points)))
        self.history: list[list[float]] = [[] for _ in self.members]
        self.reseeded = [0] * len(points)
        self._out: dict[int, Lanes] = {}  # one row each
        self._at_base: Numbers | None = None  # `base` and `point` in measured coordinates, where known
        self._at_point: Numbers | None = None

    @property
    def active(self) -> Flags:
        """Which rows of the batch still move."""
        return self.lanes.active

    def update(self, values: Tensor, mapped: Tensor, regular: Tensor, tolerance: float, apart: float) -> None:
        """Take, refuse or halve each point, given its objective and its EM step, and say what is next."""
        lanes, found = self.lanes, values.double().cpu().numpy()
        finite = np.isfinite(found)
        sound = finite & regular.numpy() & np.isfinite(mapped.cpu().numpy()).all(1)
        fell = found < lanes.value - rounding(mapped.dtype) * np.maximum(np.abs(lanes.value), 1.0)
        active, leap = lanes.active, lanes.phase == LEAP
        lanes.used = lanes.used + active
        if (active & sound & ~(fell | leap)).all():  # as most steps are
            self._record(range(len(found)), found)
            self._forward(active, found, mapped, tolerance, apart)
            return
        refused = active & leap & (fell | ~sound)
        halve = active & ~leap & sound & fell & (not self.monotone)
        lost = active & ~leap & ~sound
        taken = active & sound & ~refused & ~halve
        self._record(np.flatnonzero(taken | (lost & finite)).tolist(), found)
        if taken.any():
            self._forward(taken, found, mapped, tolerance, apart)
        if refused.any():
            self._back(refused)
        if halve.any():
            self._halve(halve)
        if lost.any():
            at = lost & finite
            lanes.base, lanes.value = pick(at, lanes.point, lanes.base), np.where(at, found, lanes.value)
            lanes.active, lanes.collapsed = lanes.active & ~lost, lanes.collapsed | lost

    def _record(self, rows: Iterable[int], found: Numbers) -> None:
        for row in rows:
            self.history[self.members[row]].append(float(found[row]))

    def _forward(self, taken: Flags, found: Numbers, mapped: Tensor, tolerance: float, apart: float) -> None:
        """Go on from accepted points, by a plain step or an extrapolation."""
        lanes = self.lanes
        before = self._measured(lanes.base) if self._at_base is None else self._at_base
        here = self._measured(lanes.point) if self._at_point is None else self._at_point
        there = self._measured(mapped)
        plain = taken & (lanes.phase == PLAIN)
        seen = assess(found, lanes.value, (here - before, there - here), lanes.rate, rounding(mapped.dtype))
        arrived = plain & seen.arrived(tolerance, apart)
        if plain.all():  # as most are
            lanes.rate, lanes.rise = seen.rate, seen.rise
            lanes.remaining, lanes.distance = seen.remaining, seen.distance
            lanes.level = (lanes.level + 1) * (seen.rise <= 0)
        else:
            for name in ("rate", "rise", "remaining", "distance"):
                setattr(lanes, name, np.where(plain, getattr(seen, name), getattr(lanes, name)))
            lanes.level = np.where(taken, (lanes.level + 1) * (plain & (seen.rise <= 0)), lanes.level)
        point, leaps = mapped, None
        if self.accelerate:
            slow = plain & (lanes.used >= PROBATION)
            lanes.fast = lanes.fast | (slow & (seen.steps_left(tolerance, apart) > SLOW))
            reached = taken & (lanes.phase == LEAP) & (lanes.length >= lanes.longest)
            lanes.longest = np.where(reached, lanes.longest * LONGER, lanes.longest)
            fast = lanes.fast & plain & ~arrived
            if fast.any():
                point, leaps = self._leap(fast, mapped, (before, here, there))
        self._take(taken, found, (point, mapped), leaps)
        stuck = taken & (lanes.level >= LEVEL_STEPS)
        lanes.active, lanes.converged = lanes.active & ~(arrived | stuck), lanes.converged | arrived
        everyone = bool(taken.all())
        self._at_base = here if everyone else np.where(taken[:, None], here, before)
        self._at_point = None
        if leaps is None or not leaps.any():
            self._at_point = there if everyone else np.where(taken[:, None], there, here)

    def _take(
        self, taken: Flags, found: Numbers, following: tuple[Tensor, Tensor], leaps: Flags | None
    ) -> None:
        """Put accepted points in their places: what is tried next, and the plain step behind it."""
        lanes, (point, mapped) = self.lanes, following
        phase = np.full_like(lanes.phase, PLAIN) if leaps is None else PLAIN + leaps
        if taken.all():
            lanes.phase, lanes.value, lanes.halved = phase, found, np.zeros_like(lanes.halved)
            lanes.base, lanes.point, lanes.fallback = lanes.point, point, mapped
            return
        lanes.phase = np.where(taken, phase, lanes.phase)
        lanes.value, lanes.halved = np.where(taken, found, lanes.value), lanes.halved * ~taken
        lanes.base, lanes.point = pick(taken, lanes.point, lanes.base), pick(taken, point, lanes.point)
        lanes.fallback = pick(taken, mapped, lanes.fallback)

    def _measured(self, flat: Tensor) -> Numbers:
        return np.asarray(self.coordinates.measured(flat).double().cpu().numpy())

    def _leap(
        self, fast: Flags, mapped: Tensor, measured: tuple[Numbers, Numbers, Numbers]
    ) -> tuple[Tensor, Flags]:
        """Points to try, extrapolated in the rows marked, and where they are more than plain steps."""
        lanes, rows = self.lanes, torch.from_numpy(np.flatnonzero(fast)).to(mapped.device)
        points = (lanes.base[rows], lanes.point[rows], mapped[rows])
        start, middle, end = (leaf[fast] for leaf in measured)
        proposal, length = extrapolate(self.coordinates, points, (start, middle, end), lanes.longest[fast])
        lanes.length = lanes.length.copy()
        lanes.length[fast] = length
        leaps = fast & (lanes.length > 1)
        short = fast & ~leaps & (lanes.length >= lanes.longest)
        lanes.longest = np.where(short, lanes.longest * LONGER, lanes.longest)
        return mapped.index_copy(0, rows, proposal), leaps

    def _back(self, refused: Flags) -> None:
        """Where an extrapolation was refused, the plain step; shorter ones next if it was the longest allowed."""
        lanes = self.lanes
        lanes.point = pick(refused, lanes.fallback, lanes.point)
        lanes.phase = np.where(refused, PLAIN, lanes.phase)
        reached = refused & (lanes.length >= lanes.longest)
        lanes.longest = np.where(reached, np.maximum(lanes.longest / LONGER, 1.0), lanes.longest)
        self._at_point = None

    def _halve(self, halve: Flags) -> None:
        lanes = self.lanes
        lanes.point = pick(halve, (lanes.point + lanes.base) / 2, lanes.point)
        lanes.halved = lanes.halved + halve
        lanes.active = lanes.active & (lanes.halved <= HALVINGS)
        self._at_point = None

    def reseed(self, rows: Flags, points: Tensor) -> None:
        """Let some rows of the batch begin anew, at their rows of `points`."""
        self.lanes.put(rows, Lanes.at(points))
        self._at_base = self._at_point = None
        for row in np.flatnonzero(rows):
            self.history[self.members[row]].clear()
            self.reseeded[self.members[row]] += 1

    def prune(self, keep: int) -> None:
        """Drop all rows but those of the highest objectives."""
        lanes = self.lanes
        order = np.argsort(-np.where(lanes.collapsed, -np.inf, lanes.value), kind="stable")
        rest = np.zeros_like(lanes.active)
        rest[order[keep:]] = True
        lanes.active, lanes.converged = lanes.active & ~rest, lanes.converged & ~rest
        lanes.pruned = lanes.pruned | rest

    def stop(self, rows: Flags) -> None:
        """Move these rows no more."""
        self.lanes.active = self.lanes.active & ~rows

    def anew(self) -> None:
        """All rows begin again from where they are, on other data."""
        for member in self.members:
            self.history[member].clear()
        self.lanes = Lanes.at(self.lanes.base)
        self._at_base = self._at_point = None

    def narrow(self, staying: Flags) -> None:
        """Take all other rows out of the batch."""
        left = np.flatnonzero(staying).tolist()
        self._out |= {member: self.lanes.take([row]) for row, member in enumerate(self.members)}
        self.lanes, self.members = self.lanes.take(left), [self.members[row] for row in left]
        self._at_base = self._at_point = None

    def all_lanes(self) -> Lanes:
        """One row for each restart, in order."""
        now = self._out | {member: self.lanes.take([row]) for row, member in enumerate(self.members)}
        return Lanes.joined([now[member] for member in sorted(now)])
