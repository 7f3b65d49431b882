"""An EM fit of a linear-Gaussian model: from principal components, to a maximum, to parameters and guide."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ppl_gen.data.table import Table
from ppl_gen.errors import FitError
from ppl_gen.infer.algorithms import EM
from ppl_gen.infer.enumeration import State
from ppl_gen.infer.linear_gaussian import Joint, System, system_of
from ppl_gen.infer.linear_gaussian_em import expectation, rotated, step
from ppl_gen.infer.linear_gaussian_numbers import joint_of, written
from ppl_gen.infer.linear_gaussian_points import LEAST, Loadings, Points
from ppl_gen.infer.linear_gaussian_posterior import with_guide
from ppl_gen.infer.linear_gaussian_rows import Moments, Units, constant_columns, moments_of
from ppl_gen.infer.restarts import Restarts
from ppl_gen.infer.run import Mode, Run
from ppl_gen.infer.status import Interrupt, Status, interruptible
from ppl_gen.infer.stopping import rounding
from ppl_gen.program.program import Program

SHARE = 0.1  # of a column's variance that is noise at least where a run begins
HEYWOOD = 0.01  # share of noise below which the floor itself is tried,
PATIENCE = 20  # once in so many steps
LIFTS = (1e-5, 1e-4, 1e-3, 1e-2)  # shares that a variance at its floor is tried at
AT_FLOOR = 1e-3  # of a logarithm


def run_linear_gaussian(program: Program, table: Table, algorithm: EM, given: State | None = None) -> Run:
    """Fit a program whose latents are all linear-Gaussian, by EM on log p(x) itself (E1, F5).

    One run, begun at the principal components: the likelihood of such a model has no label switching, and its
    rotations are one maximum. The state returned has the loadings turned so that the latents are independent
    given a row, and the derived guide at that posterior.

    Args:
        program: as `linear_gaussian.exact` has it; of either dtype, while the work is in float64.
        table: its rows; a streamed one is read once. Missing cells are integrated out, weights count.
        algorithm: `max_steps`, `tol` and `accelerate` are used.
        given: where to begin instead.

    Raises FitError where a row has no cell at all that counts.
    """
    system = system_of(program)
    units = Units.of(system, table.schema)
    with torch.no_grad(), interruptible() as interrupt:
        moments = moments_of(system, table, units)
        original = {path: value.clone() for path, value in program.state_dict().items()}
        start = joint_of(system, given or original, units)
        if not bool(torch.isfinite(moments.squares).all()) or moments.total <= 0:
            raise FitError("the rows have no finite second moments to fit")
        loadings = None if Loadings.obstacle(system, start, moments) else Loadings(system, start, moments)
        if given is None:
            start = begun(system, start, moments, loadings)
        points = Points(system, start, loadings)
        climb = Climb(points, moments, algorithm, points.pack(start))
        climb.run(interrupt)
        best = climb.point
        joint, turned = rotated(system, points.joint(best))
        offset = moments.log_units(units.unit[system.places(system.observed)])
        state = written(system, joint, original, units)
        state = with_guide(program, system, state, joint, units)
    floored, notes = _edges(system, points, best, table)
    status = Status.BOUNDARY if climb.status is Status.CONVERGED and floored else climb.status
    return Run(
        state=state,
        history=tuple(own - offset for own in climb.history),
        status=status,
        modes=(Mode(climb.value - offset, 1),),
        notes=(*notes, *_identification(system, turned)),
        evaluations=climb.used,
        remaining=climb.remaining,
        floored=floored,
    )


class Climb:
    """EM from one point, extrapolated where it is slow; variances that run off to 0 are put at their floor.

    On its way to 0 a variance shrinks by a share of its square, so that EM would take for ever (a Heywood case).

    Attributes:
        point: the last one accepted, (P,), of log-likelihood `value` in units.
        history: of all runs, in units.
        used: evaluations of the EM map.

    """

    def __init__(self, points: Points, moments: Moments, algorithm: EM, point: Tensor) -> None:
        self.points, self.moments, self.algorithm, self.point = points, moments, algorithm, point
        self.value, self.used, self.remaining = -math.inf, 0, math.inf
        self.history: list[float] = []
        self.status = Status.MAX_STEPS
        self._tolerance = algorithm.tol * moments.total
        self._raised = torch.zeros_like(points.log_scales)

    def run(self, interrupt: Interrupt) -> None:
        """To the end: a maximum, max_steps, or the user's Ctrl-C."""
        while self._one_run(interrupt):
            pass
        if interrupt:
            self.status = Status.INTERRUPTED

    def _one_run(self, interrupt: Interrupt) -> bool:
        """Steps until they end, or a variance is put somewhere else; whether that is so."""
        apart, before = self.algorithm.tol**0.5, self.used
        restarts = Restarts(
            self.points, self.point.unsqueeze(0), accelerate=self.algorithm.accelerate, monotone=True
        )
        elsewhere = False
        while restarts.active.any() and not interrupt and not elsewhere:
            values, mapped = step(self.points, self.moments, restarts.lanes.point[0])
            restarts.update(values, mapped, torch.isfinite(values), self._tolerance, apart)
            self.used = before + int(restarts.lanes.used[0])
            restarts.stop(restarts.lanes.used + before > self.algorithm.max_steps)
            self.point, self.value = restarts.lanes.base[0], float(restarts.lanes.value[0])
            ended = bool(restarts.lanes.converged[0])
            if ended or (self.used - before) % PATIENCE == 0:
                elsewhere = self._lowered() or (ended and self._lifted())
        self.history += restarts.history[0]
        self._judge(restarts)
        return elsewhere and self.used <= self.algorithm.max_steps

    def _judge(self, restarts: Restarts) -> None:
        lanes = restarts.lanes
        self.remaining = float(lanes.remaining[0])
        level = float(lanes.rise[0]) <= self._tolerance and self._tolerance > 0
        if lanes.collapsed[0]:
            self.status = Status.COLLAPSED
        elif lanes.converged[0]:
            self.status = Status.CONVERGED
        else:
            stuck = level or self.used <= self.algorithm.max_steps
            self.status = Status.PLATEAU if stuck else Status.MAX_STEPS

    def _lowered(self) -> bool:
        """Put small variances at the floor, where the likelihood is no lower there."""
        small = self.points.log_scales & (self.point > LEAST + AT_FLOOR) & ~self._raised
        return self._moved(small & (self.point < 0.5 * math.log(HEYWOOD)), [LEAST], 0.0)

    def _lifted(self) -> bool:
        """Take variances off the floor, where the likelihood is higher a little above it: EM itself cannot."""
        low = self.points.log_scales & (self.point <= LEAST + AT_FLOOR) & ~self._raised
        self._raised |= low
        return self._moved(low, [0.5 * math.log(share) for share in LIFTS], self._tolerance)

    def _moved(self, places: Tensor, targets: list[float], least: float) -> bool:
        found = False
        for place in torch.nonzero(places).flatten().tolist():
            for target in targets:
                trial = self.point.clone()
                trial[place] = target
                joint = self.points.joint(trial)
                value = expectation(self.points.system, joint, self.moments).log_likelihood
                if value - self.value >= least - rounding(trial.dtype) * abs(self.value) * (least == 0):
                    self.point, self.value, found = trial, value, True
                    break
        return found


def begun(system: System, start: Joint, moments: Moments, loadings: Loadings | None) -> Joint:
    """Where EM begins: the principal components as loadings, what they leave as noise (Tipping & Bishop 1999)."""
    columns = system.places(system.observed)
    D = len(columns)
    if loadings is not None:
        covariance = loadings.covariance
    else:  # missing cells at their columns' means
        covariance = moments.squares[:, :D, :D].sum(0) / moments.total
        mean = moments.squares[:, :D, -1].sum(0) / moments.total
        covariance = covariance - torch.outer(mean, mean)
    entering = {place for e in system.equations if e.name in system.observed for place in e.places}
    direct = [place for place in system.places(system.latent).tolist() if place in entering]
    q = min(len(direct), D)
    values, vectors = torch.linalg.eigh(covariance)
    values, vectors = values.flip(0), vectors.flip(1)
    left = values[q:].clamp(min=0).mean() if q < D else torch.zeros((), dtype=torch.float64)
    weights = vectors[:, :q] * (values[:q] - left).clamp(min=0).sqrt()
    coefficients, noise = start.coefficients.clone(), start.noise.clone()
    for e in system.equations:
        if e.name not in system.observed:
            continue
        inside = torch.isin(columns, torch.arange(e.own.start, e.own.stop))
        for i, place in enumerate(direct[:q]):
            if place in e.places:
                coefficients[e.own, place] = weights[inside, i]
        rest = torch.tensor([p for p in e.places if p not in direct], dtype=torch.int64)
        coefficients[e.own.start : e.own.stop][:, rest] = 0.0
        own = covariance.diagonal()[inside]
        unexplained = torch.maximum(own - (weights[inside] ** 2).sum(1), SHARE * own).clamp(min=2 * SHARE**8)
        if e.noise == "shared":
            unexplained = left.clamp(min=math.exp(2 * LEAST)).expand(e.width)
        if e.noise != "fixed":
            noise[e.own, e.own] = torch.diag(unexplained)
        if e.learned is not None:
            coefficients[e.own, -1] = 0.0
    return Joint(coefficients, noise)


def _edges(
    system: System, points: Points, point: Tensor, table: Table
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Columns whose variance is at its floor, and what to say of them."""
    low = point <= LEAST + AT_FLOOR
    columns: list[str] = []
    for e in system.equations:
        if e.name in system.observed and e.noise in ("each", "shared"):
            own = low[points.spans[e.name]].expand(e.width)
            names = table.schema.column_names(e.name)
            columns += [names[d] for d in torch.nonzero(own).flatten().tolist()]
    same = constant_columns(system, table)
    heywood = [name for name in columns if name not in same]
    notes = []
    if same:
        notes.append(f"constant in the data, variance held at its floor: {', '.join(same)}")
    if heywood:
        notes.append(
            f"Heywood case: the latents explain {', '.join(heywood)} wholly, whose noise variance is held at its "
            f"floor of {math.exp(2 * LEAST):.0e} of the column's own. Use fewer latent dimensions, or more rows"
        )
    return tuple(dict.fromkeys([*same, *columns])), tuple(notes)


def _identification(system: System, turned: bool) -> list[str]:
    """What the data cannot tell of the loadings."""
    found = []
    latents = ", ".join(system.latent)
    q, D = len(system.places(system.latent)), len(system.places(system.observed))
    below = [e for e in system.equations if e.name in system.observed]
    if turned and q > 1:
        found.append(
            f"loadings are identified up to a rotation of {latents}: here its dimensions are independent given a "
            "row, the most telling first, and loadings have no standard errors of their own"
        )
    if turned and all(e.noise == "each" for e in below) and (D - q) ** 2 < D + q:
        found.append(
            f"{q} latent dimensions are more than the covariances of {D} columns identify: noise variances may be "
            "traded for loadings"
        )
    if len(below) == 1 and below[0].noise == "full" and system.latent:
        found.append(
            f"the covariance of {below[0].name} is free, so that {latents} explains nothing that it could not: "
            "loadings are not identified. Normal(..., scale=Free()) is factor analysis"
        )
    return found
