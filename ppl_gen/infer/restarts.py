"""The restarts of one EM fit, side by side: where each stands, what it tries next, what became of it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from ppl_gen.infer.coordinates import Coordinates
from ppl_gen.infer.enumeration import Step
from ppl_gen.infer.squarem import LONGER, extrapolate
from ppl_gen.infer.stopping import assess, rounding

BEGUN, PLAIN, LEAP = 0, 1, 2  # what led to the point at hand: a start, an EM step, an extrapolation
PROBATION = 10  # plain steps before any restart is called slow
SLOW = 20  # further plain steps that are worth accelerating
HALVINGS = 30  # of a step that lowers the log-likelihood, before the restart is left where it is
LEVEL_STEPS = 200  # steps in a row without a rise that rounding would let us see: a plateau


def side_by_side(step: Step, in_dims: tuple[int | None, ...]) -> Callable[..., Any]:
    """A step over a leading restart axis of the arguments marked 0; one restart alone runs as it is."""
    batched = torch.func.vmap(step, in_dims)

    def run(*args: Any) -> Any:
        if len(next(iter(args[0].values()))) > 1:
            return batched(*args)
        alone = [
            pytree.tree_map(lambda leaf: leaf.squeeze(0), arg) if dim == 0 else arg
            for arg, dim in zip(args, in_dims, strict=True)
        ]
        return pytree.tree_map(lambda leaf: leaf.unsqueeze(0), step(*alone))

    return run


@dataclass(frozen=True)
class Lanes:
    """One row a restart. `base` is the last accepted point, of log-likelihood `value`; `point` is tried next."""

    point: Tensor  # (R, P)
    base: Tensor  # (R, P)
    fallback: Tensor  # (R, P): the plain step to take where an extrapolation is refused
    value: Tensor  # (R,), and so are all below
    phase: Tensor
    used: Tensor  # EM-map evaluations
    fast: Tensor  # whether it is accelerated
    longest: Tensor  # extrapolation allowed
    length: Tensor  # of the extrapolation under trial
    rate: Tensor
    rise: Tensor
    remaining: Tensor
    distance: Tensor
    halved: Tensor
    level: Tensor  # steps in a row without a rise
    active: Tensor
    converged: Tensor
    collapsed: Tensor
    pruned: Tensor

    @staticmethod
    def at(points: Tensor) -> Lanes:
        """Restarts that begin at these points."""
        count = len(points)
        zero, whole = torch.zeros(count, dtype=torch.float64), torch.zeros(count, dtype=torch.long)
        no = torch.zeros(count, dtype=torch.bool)
        never = zero - torch.inf
        return Lanes(
            points, points, points, never, whole, whole, no, zero + 1, zero + 1, zero, zero + torch.inf,
            zero + torch.inf, zero + torch.inf, whole, whole, ~no, no, no, no,
        )  # fmt: skip

    def take(self, rows: Sequence[int]) -> Lanes:
        """Some of the rows."""
        return Lanes(*(getattr(self, f.name)[list(rows)] for f in fields(self)))

    def where(self, rows: Tensor, other: Lanes) -> Lanes:
        """The other's rows where marked."""
        pairs = [(getattr(other, f.name), getattr(self, f.name)) for f in fields(self)]
        return Lanes(*(torch.where(_like(rows, old), new, old) for new, old in pairs))


class Restarts:
    """The batch of restarts under way, and those taken out of it.

    Args:
        coordinates: of the program's states.
        points: where each begins, (R, P).
        accelerate: whether slow restarts are extrapolated.
        monotone: whether a plain step cannot lower the log-likelihood; else one that does is halved.

    """

    def __init__(self, coordinates: Coordinates, points: Tensor, accelerate: bool, monotone: bool) -> None:
        self.coordinates, self.accelerate, self.monotone = coordinates, accelerate, monotone
        self.lanes = Lanes.at(points)
        self.members = list(range(len(points)))
        self.history: list[list[float]] = [[] for _ in self.members]
        self.reseeded = [0] * len(points)
        self._out: dict[int, Lanes] = {}  # one row each

    @property
    def active(self) -> Tensor:
        """Which rows of the batch still move."""
        return self.lanes.active

    def update(self, values: Tensor, mapped: Tensor, regular: Tensor, tolerance: float, apart: float) -> None:
        """Take, refuse or halve each point, given its log-likelihood and its EM step, and say what is next."""
        lanes, values = self.lanes, values.double().cpu()
        sound = values.isfinite() & regular.cpu() & mapped.isfinite().all(1).cpu()
        slack = rounding(mapped.dtype) * lanes.value.abs().clamp(min=1).nan_to_num(posinf=0.0)
        fell, leap = values < lanes.value - slack, lanes.phase == LEAP
        refused = lanes.active & leap & (fell | ~sound)
        halve = lanes.active & ~leap & sound & fell & (not self.monotone)
        lost = lanes.active & ~leap & ~sound
        taken = lanes.active & sound & ~refused & ~halve
        ended_at = taken | (lost & values.isfinite())
        for row in torch.nonzero(ended_at).flatten().tolist():
            self.history[self.members[row]].append(float(values[row]))
        lanes = replace(lanes, used=lanes.used + lanes.active)
        forward = self._forward(lanes, values, mapped, tolerance, apart)
        back = replace(
            lanes,
            point=lanes.fallback,
            phase=torch.full_like(lanes.phase, PLAIN),
            longest=(lanes.longest / LONGER).clamp(min=1),
        )
        half = replace(lanes, point=(lanes.point + lanes.base) / 2, halved=lanes.halved + 1)
        half = replace(half, active=half.active & (half.halved <= HALVINGS))
        gone = replace(lanes, active=lanes.active & ~lost, collapsed=lanes.collapsed | lost)
        at = lost & values.isfinite()
        gone = gone.where(at, replace(gone, base=lanes.point, value=values))
        lanes = lanes.where(taken, forward)
        for rows, other in ((refused, back), (halve, half), (lost, gone)):
            lanes = lanes.where(rows, other) if bool(rows.any()) else lanes
        self.lanes = lanes

    def _forward(self, lanes: Lanes, values: Tensor, mapped: Tensor, tolerance: float, apart: float) -> Lanes:
        """The rows as they go on from an accepted point."""
        measured = self.coordinates.measured
        here = measured(lanes.point)
        seen = assess(
            values - lanes.value, here - measured(lanes.base), measured(mapped) - here, lanes.rate, values
        )
        plain = (lanes.phase == PLAIN) & (lanes.value > -torch.inf)
        arrived = plain & seen.arrived(tolerance, apart)
        level = torch.where(plain & (seen.rise <= 0), lanes.level + 1, 0)
        slow = plain & (lanes.used >= PROBATION) & (seen.steps_left(tolerance) > SLOW) & self.accelerate
        fast = lanes.fast | slow
        grown = torch.where(
            (lanes.phase == LEAP) & (lanes.length >= lanes.longest), lanes.longest * LONGER, lanes.longest
        )
        point, length, phase = mapped, torch.ones_like(grown), torch.full_like(lanes.phase, PLAIN)
        if bool((fast & plain).any()):
            proposal, length = extrapolate(
                self.coordinates, lanes.base, lanes.point, mapped, grown.to(mapped.dtype)
            )
            length = length.double().cpu()
            leaps = fast & plain & (length > 1)
            point = torch.where(leaps[:, None].to(mapped.device), proposal, mapped)
            phase = torch.where(leaps, LEAP, phase)
            grown = torch.where(fast & plain & ~leaps & (length >= grown), grown * LONGER, grown)
        known = {
            name: torch.where(plain, getattr(seen, name), getattr(lanes, name))
            for name in ("rate", "rise", "remaining", "distance")
        }
        return replace(
            lanes, point=point, base=lanes.point, fallback=mapped, value=values, phase=phase, fast=fast,
            longest=grown, length=length, halved=lanes.halved * 0,
            level=level, active=lanes.active & ~arrived & (level < LEVEL_STEPS), converged=arrived, **known,
        )  # fmt: skip

    def reseed(self, rows: Tensor, points: Tensor) -> None:
        """Let some rows of the batch begin anew, at their rows of `points`."""
        self.lanes = self.lanes.where(rows, Lanes.at(points))
        for row in torch.nonzero(rows).flatten().tolist():
            self.history[self.members[row]].clear()
            self.reseeded[self.members[row]] += 1

    def prune(self, keep: int) -> None:
        """Drop all rows but those of the highest log-likelihoods."""
        lanes = self.lanes
        order = torch.where(lanes.collapsed, -torch.inf, lanes.value).argsort(descending=True, stable=True)
        rest = torch.zeros_like(lanes.active)
        rest[order[keep:]] = True
        self.lanes = replace(
            lanes, active=lanes.active & ~rest, converged=lanes.converged & ~rest, pruned=lanes.pruned | rest
        )

    def stop(self, rows: Tensor) -> None:
        """Move these rows no more."""
        self.lanes = replace(self.lanes, active=self.lanes.active & ~rows)

    def anew(self) -> None:
        """All rows begin again from where they are, on other data."""
        for member in self.members:
            self.history[member].clear()
        self.lanes = Lanes.at(self.lanes.base)

    def narrow(self, *, ended_too: bool = True) -> None:
        """Take what no longer moves out of the batch.

        With `ended_too=False` all that converged stays, to be looked at again on other data.
        """
        staying = self.active if ended_too else self.active | self.lanes.converged
        left = torch.nonzero(staying).flatten().tolist()
        self._out |= {member: self.lanes.take([row]) for row, member in enumerate(self.members)}
        self.lanes, self.members = self.lanes.take(left), [self.members[row] for row in left]

    def all_lanes(self) -> Lanes:
        """One row for each restart, in order."""
        now = self._out | {member: self.lanes.take([row]) for row, member in enumerate(self.members)}
        rows = [now[member] for member in sorted(now)]
        return Lanes(*(torch.cat([getattr(row, f.name) for row in rows]) for f in fields(Lanes)))


def _like(rows: Tensor, leaf: Tensor) -> Tensor:
    return rows.reshape(-1, *(1,) * (leaf.ndim - 1)).to(leaf.device)
