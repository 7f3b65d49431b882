"""Where EM begins: responsibilities from k-means++, random rows or at random."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from ppl_gen.data.table import Table
from ppl_gen.declare.terms import MLP, Linear, Sum
from ppl_gen.infer.declared_order import rearranged, relabelled
from ppl_gen.infer.outliers import HEAVY, OUTLYING, inside, within_fences
from ppl_gen.program.constraints import floored_log
from ppl_gen.program.program import Program

SEED_ROWS = 10_000  # k-means++ looks at this many rows at most
SOFTNESS = 0.05  # share of a row spread over all classes, so that none starts at probability 0
POWERS = (1.0, 0.5, 0.0)  # of how far inside a row is, by which it counts in the three kinds of restarts
MOST_CLUSTERS = 256  # joint states of the latents above which rows are no longer clustered


class Starts:
    """Log-responsibilities over all latents at once, for every restart, block by block.

    Args:
        init: "k-means++", "random-rows" or "random-responsibilities".
        restarts: R.
        seed: of the draws.

    """

    def __init__(self, program: Program, table: Table, init: str, restarts: int, seed: int) -> None:
        self.program, self.table = program, table
        self.random = torch.Generator().manual_seed(seed)
        draws = [program.generative.draws[name] for name in program.enumerated]
        self.sizes = [math.prod(draw.sizes.levels) for draw in draws]
        self.restarts = restarts
        self.dtype = program.dtype
        joint = math.prod(self.sizes)
        self.labels: Tensor | None = None
        self.inside: Tensor | None = None
        if resolve_init(program, init) != "random-responsibilities" and 1 < joint <= MOST_CLUSTERS:
            self.inside = inside(program, table)
            known = None
            if len(draws) == 1 and draws[0].name in table.holes and draws[0].sizes.scalar:
                known = torch.from_numpy(table.arrays[draws[0].name])
            labels = self._clustered(program, table, init, joint, known)
            self.labels = relabelled(program, table, labels)

    def block(self, start: int, stop: int) -> Tensor:
        """(R, …enumerated, rows): the i-th latent on axis −2−i."""
        rows, shape = stop - start, [*self.sizes[::-1]]
        if self.labels is None:
            draws = torch.rand((self.restarts, *shape, rows), generator=self.random, dtype=torch.float64)
            weights = -torch.log(draws)  # exponential: normalised, a flat Dirichlet for every row
            weights = rearranged(self.program, self.table, weights, start)
        else:
            joint = math.prod(self.sizes)
            chosen = self.labels[:, None, start:stop] == torch.arange(joint)[:, None]
            weights = chosen.double() * (1 - SOFTNESS) + SOFTNESS / joint
            weights = weights.reshape(self.restarts, *shape, rows)
        classes = tuple(range(1, 1 + len(shape)))
        return floored_log(weights / weights.sum(classes, keepdim=True)).to(self.dtype)

    def shares(self, start: int, stop: int) -> Tensor | None:
        """How much rows count in the first M-step, (R, rows), outliers little; None where all count in full."""
        if self.inside is None:
            return None
        powers = torch.tensor([POWERS[i % len(POWERS)] for i in range(self.restarts)], dtype=torch.float64)
        return (self.inside[start:stop] ** powers.unsqueeze(1)).to(self.dtype)

    def _clustered(
        self, program: Program, table: Table, init: str, joint: int, known: Tensor | None
    ) -> Tensor:
        """The class that each row begins in, (R, N).

        Where outliers lie in heavy tails, restarts are of three kinds in turn: outliers at the fence, and with the
        class that is nearest to it; there, and all with one class; where they are, as for any other law.
        """
        counts = None if table.weights is None else torch.tensor(table.weights / table.weights.max())
        plain = cluster_points(program, table)
        fenced = plain if self.inside is None else cluster_points(program, table, fenced=True)
        labels = []
        for restart in range(self.restarts):
            kind = restart % len(POWERS)
            points, seen = plain if self.inside is None or kind == len(POWERS) - 1 else fenced
            centres = self._centres(points, seen, counts, joint, init)
            if known is not None:
                centres = _agreeing(centres, _known_centres(points, known, joint))
            own = _distances(points, seen, centres).argmin(1)
            if self.inside is not None and kind == 1:
                own[self.inside < OUTLYING] = int(torch.randint(joint, (), generator=self.random))
            labels.append(own)
        return torch.stack(labels)

    def _centres(
        self, points: Tensor, seen: Tensor | None, counts: Tensor | None, count: int, init: str
    ) -> Tensor:
        """Rows to begin from, (count, ·): k-means++ draws each far from those before it.

        Rows are drawn as often as they count (N,): one of weight 0 is nobody's centre.
        """
        if counts is not None:
            held = counts > 0
            points, seen, counts = points[held], None if seen is None else seen[held], counts[held]
        if len(points) > SEED_ROWS:
            picked = self._pick(len(points), SEED_ROWS)
            points, seen = points[picked], None if seen is None else seen[picked]
            counts = None if counts is None else counts[picked]
        if init == "random-rows":
            return points[self._pick(len(points), count)]
        if counts is None:
            counts = torch.ones(len(points), dtype=points.dtype)
            chosen = [int(torch.randint(len(points), (), generator=self.random))]
        else:
            chosen = [int(torch.multinomial(counts, 1, generator=self.random))]
        distance = _distances(points, seen, points[chosen]).squeeze(1)
        for _ in range(count - 1):
            # Rows that coincide with the centres so far have no weight; if all do, any row will serve.
            weights = distance * counts
            weights = weights if float(weights.sum()) > 0 else counts
            chosen.append(int(torch.multinomial(weights, 1, generator=self.random)))
            nearer = _distances(points, seen, points[chosen[-1:]]).squeeze(1)
            distance = torch.minimum(distance, nearer)
        return points[chosen]

    def _pick(self, total: int, count: int) -> Tensor:
        if count > total:
            return torch.randint(total, (count,), generator=self.random)
        return torch.randperm(total, generator=self.random)[:count]


def resolve_init(program: Program, init: str) -> str:
    """The kind of start that suits a model: k-means++ only where classes are clusters of the observed columns.

    Random responsibilities take its place where every observed node is categorical (hard starts get stuck there),
    and where every other one that depends on a latent is a function of given columns too: the classes of a mixture
    of regressions cross, and rows of one height belong to several of them.
    """
    observed = program.schema.roles.observed
    clustered = [
        name
        for name in observed
        if program.spec.nodes[name].support not in ("category", "boolean") and not _regresses(program, name)
    ]
    return "random-responsibilities" if init == "k-means++" and not clustered else init


def _regresses(program: Program, name: str) -> bool:
    """Whether a node depends both on a latent and, through a function, on columns that are given."""
    spec, latent = program.spec, {*program.enumerated}
    given = {*program.schema.roles.inputs, *program.schema.roles.observed} - latent
    parents = {*spec.node_parents(name)}
    terms = [slot.term for slot in program.generative.draws[name].slots.values()]
    terms += [part for term in terms if isinstance(term, Sum) for part in term.terms]
    functions = any(isinstance(term, Linear | MLP) and given & {*term.of} for term in terms)
    return functions and bool(parents & latent)


def cluster_points(program: Program, table: Table, *, fenced: bool = False) -> tuple[Tensor, Tensor | None]:
    """The observed rows as points (N, ·): reals and counts in their own spread, categories one-hot.

    Also which of their cells are seen, or None where all are; the others are 0, a column's mean. With `fenced`,
    the columns of a Student-t are measured by their quartiles, and no cell lies beyond the outer fences.
    """
    parts, marks = [], []
    for name in table.schema.roles.observed:
        if name in program.inner and name in table.holes:
            continue  # labels, not data to be clustered
        node, array = program.spec.nodes[name], table.arrays[name]
        if node.support == "category":
            cells = array.reshape(len(array), -1)
            parts.append((cells[..., None] == np.arange(table.schema.k[name])).reshape(len(array), -1))
            marks.append(np.repeat(cells >= 0, table.schema.k[name], axis=1))
            continue
        if fenced and isinstance(node, HEAVY):
            array = within_fences(table, name)
        elif name in table.schema.centre:
            array = (array - table.schema.centre[name]) / np.asarray(table.schema.spread[name])
        marks.append(~np.isnan(array) if name in table.holes else np.ones(array.shape, dtype=bool))
        parts.append(np.where(marks[-1], array, 0.0) if name in table.holes else array)
    points = torch.from_numpy(np.concatenate(parts, axis=1, dtype=np.float64))
    if not table.holes:
        return points, None
    return points, torch.from_numpy(np.concatenate(marks, axis=1, dtype=np.float64))


def _distances(points: Tensor, seen: Tensor | None, centres: Tensor) -> Tensor:
    """Squared distances (N, M), over the seen cells and as if all were seen."""
    if seen is None:
        apart = (points**2).sum(1, keepdim=True) - 2 * points @ centres.T + (centres**2).sum(1)
        return apart.clamp(min=0)
    apart = (points**2).sum(1, keepdim=True) - 2 * points @ centres.T + seen @ (centres**2).T
    return apart.clamp(min=0) / seen.mean(1, keepdim=True).clamp(min=1e-3)


def _known_centres(points: Tensor, labels: Tensor, count: int) -> Tensor:
    """The mean of the rows known to be of each class, (count, ·); NaN where none is."""
    member = (labels == torch.arange(count).unsqueeze(1)).to(points)  # (count, N)
    return member @ points / member.sum(1, keepdim=True)


def _agreeing(centres: Tensor, known: Tensor) -> Tensor:
    """Known centres where there are, and for the other classes the drawn ones farthest from all of those."""
    missing = known.isnan().any(1)
    if not missing.any():
        return known
    if missing.all():
        return centres
    apart = _distances(centres, None, known[~missing]).amin(1)
    return known.clone().masked_scatter(
        missing.unsqueeze(1).expand_as(known), centres[apart.topk(int(missing.sum())).indices]
    )
