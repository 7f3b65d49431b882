"""Where EM begins: responsibilities from k-means++, random rows or at random, or given parameters."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ppl_gen.data.table import Table
from ppl_gen.declare.terms import MLP, Linear, Sum
from ppl_gen.errors import FitError
from ppl_gen.infer.enumeration import State
from ppl_gen.program.constraints import floored_log
from ppl_gen.program.half import Draw, Slot
from ppl_gen.program.layers import Constant
from ppl_gen.program.layers import Table as TableLayer
from ppl_gen.program.program import Program

SEED_ROWS = 10_000  # k-means++ looks at this many rows at most
SOFTNESS = 0.05  # share of a row spread over all classes, so that none starts at probability 0
MOST_CLUSTERS = 256  # joint states of the latents above which rows are no longer clustered


class Starts:
    """Log-responsibilities over all latents at once, for every restart, block by block.

    Args:
        init: "k-means++", "random-rows" or "random-responsibilities".
        restarts: R.
        seed: of the draws.

    """

    def __init__(self, program: Program, table: Table, init: str, restarts: int, seed: int) -> None:
        self.random = torch.Generator().manual_seed(seed)
        draws = [program.generative.draws[name] for name in program.enumerated]
        self.sizes = [math.prod(draw.sizes.levels) for draw in draws]
        self.restarts = restarts
        self.dtype = program.dtype
        joint = math.prod(self.sizes)
        self.labels: Tensor | None = None
        if resolve_init(program, init) != "random-responsibilities" and 1 < joint <= MOST_CLUSTERS:
            points, seen = cluster_points(program, table)
            centres = [self._centres(points, seen, joint, init) for _ in range(restarts)]
            if len(draws) == 1 and draws[0].name in table.holes and draws[0].sizes.scalar:
                known = _known_centres(points, torch.from_numpy(table.arrays[draws[0].name]), joint)
                centres = [_agreeing(own, known) for own in centres]
            self.labels = torch.stack([_distances(points, seen, own).argmin(1) for own in centres])

    def block(self, start: int, stop: int) -> Tensor:
        """(R, …enumerated, rows): the i-th latent on axis −2−i."""
        rows, shape = stop - start, [*self.sizes[::-1]]
        if self.labels is None:
            draws = torch.rand((self.restarts, *shape, rows), generator=self.random, dtype=torch.float64)
            weights = -torch.log(draws)  # exponential: normalised, a flat Dirichlet for every row
        else:
            joint = math.prod(self.sizes)
            chosen = self.labels[:, None, start:stop] == torch.arange(joint)[:, None]
            weights = chosen.double() * (1 - SOFTNESS) + SOFTNESS / joint
            weights = weights.reshape(self.restarts, *shape, rows)
        classes = tuple(range(1, 1 + len(shape)))
        return floored_log(weights / weights.sum(classes, keepdim=True)).to(self.dtype)

    def _centres(self, points: Tensor, seen: Tensor | None, count: int, init: str) -> Tensor:
        """Rows to begin from, (count, ·): k-means++ draws each far from those before it."""
        if len(points) > SEED_ROWS:
            picked = self._pick(len(points), SEED_ROWS)
            points, seen = points[picked], None if seen is None else seen[picked]
        if init == "random-rows":
            return points[self._pick(len(points), count)]
        chosen = [int(torch.randint(len(points), (), generator=self.random))]
        distance = _distances(points, seen, points[chosen]).squeeze(1)
        for _ in range(count - 1):
            # Rows that coincide with the centres so far have no weight; if all do, any row will serve.
            weights = distance if float(distance.sum()) > 0 else torch.ones_like(distance)
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


def cluster_points(program: Program, table: Table) -> tuple[Tensor, Tensor | None]:
    """The observed rows as points (N, ·): reals and counts in their own spread, categories one-hot.

    Also which of their cells are seen, or None where all are; the others are 0, a column's mean.
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
        if name in table.schema.centre:
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


def given_state(program: Program, given: Mapping[str, Mapping[str, Any]]) -> State:
    """A state from parameters on their natural scale, {"x": {"loc": …}}.

    Raises FitError where a parameter is missing, unknown or of the wrong shape.
    """
    state = {path: value.clone() for path, value in program.state_dict().items()}
    draws = program.generative.draws
    unknown = sorted(set(given) - set(draws))
    if unknown:
        raise FitError(f"init has parameters of {', '.join(unknown)}; the model's nodes: {', '.join(draws)}")
    for name, draw in draws.items():
        own = given.get(name, {})
        if not isinstance(own, Mapping):
            raise FitError(f"init: {name} must map parameters to values, not {own!r}")
        strange = sorted(set(own) - set(draw.slots))
        if strange:
            raise FitError(
                f"init: {name} has no parameter {', '.join(strange)}; it has {', '.join(draw.slots)}"
            )
        for key, slot in draw.slots.items():
            layer = program.generative.layers[slot.layer]
            if isinstance(layer, Constant) and layer.n_free == 0:
                continue
            if key not in own:
                raise FitError(f"init lacks {name}.{key}; it needs every learned parameter")
            if not isinstance(layer, Constant | TableLayer):
                raise FitError(f"init cannot give {name}.{key} = {slot.term}: EM has no closed form for it")
            path = f"generative.layers.{slot.layer}.table"
            state[path] = _given_table(draw, key, slot, own[key], state[path])
    return state


def _given_table(draw: Draw, key: str, slot: Slot, value: Any, like: Tensor) -> Tensor:
    place = f"init: {draw.name}.{key}"
    try:
        natural = torch.as_tensor(np.asarray(value, dtype=np.float64))
    except (TypeError, ValueError):
        raise FitError(f"{place} must be numbers, not {value!r}") from None
    if not slot.constraint.holds(natural):
        raise FitError(f"{place} holds values that are not {slot.constraint.name}")
    try:
        predictor = slot.constraint.predictor(slot.constraint.from_natural(natural)).to(like)
    except RuntimeError:
        raise FitError(f"{place} is not a {slot.constraint.name} value") from None
    if predictor.shape != like.shape:
        raise FitError(f"{place} has shape {_times(natural.shape)}; its table holds {_times(like.shape)}")
    if not torch.isfinite(predictor).all():
        raise FitError(f"{place} holds values that are not {slot.constraint.name}")
    return predictor


def _times(shape: Sequence[int]) -> str:
    return " × ".join(map(str, shape)) or "one number"
