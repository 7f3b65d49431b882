"""How a search ended: the best restart on the data's own scale, the maxima, the status and what there is to say."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from ppl_gen.infer import modes, newton
from ppl_gen.infer.coordinates import at_an_end
from ppl_gen.infer.enumeration import State
from ppl_gen.infer.lanes import Lanes
from ppl_gen.infer.ordering import by_decreasing_weight
from ppl_gen.infer.run import Mode, Run
from ppl_gen.infer.search import RESEEDS, Search
from ppl_gen.infer.status import Status

AT_THE_EDGE = 1e-6  # a probability this near 0 or 1, as EM still is of one that it drives there


def conclude(search: Search) -> Run:
    """The Run of a search that is over."""
    restarts, lanes = search.restarts, search.restarts.all_lanes()
    regular = ~(lanes.collapsed | lanes.pruned)
    candidates = regular if bool(regular.any()) else ~lanes.pruned
    best = int(np.where(candidates, lanes.value, -np.inf).argmax())
    ended = np.flatnonzero(regular).tolist()
    values, points = lanes.value[ended].tolist(), lanes.base[ended]
    groups = modes.group(search.program, search.coordinates, points, values, search.table.total)
    heads = [ended[found[0]] for found in groups] or [best]
    states, shares, loose = _in_order(search, lanes.base[heads])
    offset = search.engine.offset
    table = tuple(
        Mode(values[found[0]] - offset, len(found), own) for found, own in zip(groups, shares, strict=False)
    )
    floored = _floored(search)
    edges = _edges(search, lanes.base[best]) + loose
    status = _status(search, lanes, best, bool(regular.any()), bool(edges or floored))
    return Run(
        state=states[0],
        history=tuple(value - offset for value in restarts.history[best]),
        status=status,
        modes=table,
        restarts=search.count,
        collapsed=int((lanes.collapsed & ~lanes.pruned).sum()),
        lowering=search.engine.executed,
        notes=_notes(search, lanes, edges, floored),
        algorithm="EM",
        evaluations=int(lanes.used[best]),
        remaining=float(lanes.remaining[best]),
        floored=floored,
        finished=int((~lanes.pruned).sum()),
        reseeded=sum(restarts.reseeded),
    )


def _in_order(search: Search, points: Tensor) -> tuple[list[State], list[tuple[float, ...]], list[str]]:
    """States in the data's own units, classes by decreasing weight, and the shares of the first latent.

    With them, what the likelihood does not bound at the first of the points.
    """
    size = len(search.restarts.members) or 1
    states, shares, loose = list[State](), list[tuple[float, ...]](), list[str]()
    for start in range(0, len(points), size):
        some = points[start : start + size]
        filled = torch.cat(
            [some, some[-1:].expand(size - len(some), -1)]
        )  # the graph at hand has this many rows
        statistics = search.expected(filled)
        if not states:
            loose = newton.unbounded(search.program, {key: own[0] for key, own in statistics.items()})
        inside = search.coordinates.unflatten(some)
        for row in range(len(some)):
            own = {path: leaf[row] for path, leaf in inside.items()}
            counts = {name: statistics[name][row] for name in search.program.enumerated if name in statistics}
            state = search.engine.standard.leave(own, search.original)
            state, share = by_decreasing_weight(search.program, state, counts)
            states.append(state)
            shares.append(share)
    return states, shares, loose


def _status(search: Search, lanes: Lanes, best: int, any_regular: bool, at_edge: bool) -> Status:
    if search.interrupt:
        return Status.INTERRUPTED
    if not any_regular:
        return Status.COLLAPSED
    if bool(lanes.converged[best]):
        return Status.BOUNDARY if at_edge else Status.CONVERGED
    small = search.algorithm.tol * search.table.total
    level = float(lanes.rise[best]) <= small and float(lanes.distance[best]) > search.apart
    stopped = int(lanes.used[best]) <= search.algorithm.max_steps
    return Status.PLATEAU if stopped or (level and small > 0) else Status.MAX_STEPS


def _edges(search: Search, point: Tensor) -> list[str]:
    """Learned probabilities at 0 or 1, and other numbers at an end of their range, by node."""
    found = []
    state = search.coordinates.measured_state(point)
    for name, draw in search.program.generative.draws.items():
        for slot in draw.slots.values():
            table = state.get(f"generative.layers.{slot.layer}.table")
            if table is None or slot.constraint.name not in ("simplex", "unit_interval"):
                continue
            alone = slot.constraint.name == "simplex" and table.shape[-1] == 1
            count = int(((table < AT_THE_EDGE) | (table > 1 - AT_THE_EDGE)).sum())
            if count and not alone:
                found.append(f"{count} of {table.numel()} probabilities of {name} are at 0 or 1")
    return found + _ends_of_ranges(search, point)


def _ends_of_ranges(search: Search, point: Tensor) -> list[str]:
    """Learned numbers at an end of the range that their family keeps them in, by node."""
    found = []
    state = search.coordinates.unflatten(point.unsqueeze(0))
    for name, draw in search.program.generative.draws.items():
        for key, (least, _) in draw.node.bounds.items():
            slot = draw.slots[key]
            path = f"generative.layers.{slot.layer}.table"
            if path not in search.coordinates.shapes:
                continue
            low, high = at_an_end(draw, key, slot, state[path][0], search.table.total)
            if low.any():
                found.append(f"{low.sum()} of {low.size} {key} of {name} are at the least value, {least:g}")
            if high.any():
                found.append(
                    f"{high.sum()} of {high.size} {key} of {name} are as good as infinite: the data tell this "
                    "from a normal no more"
                )
    return found


def _floored(search: Search) -> tuple[str, ...]:
    """Columns that hold one value only: their variance is held at the floor."""
    found: list[str] = []
    for name, (_, jitter) in search.engine.bounds.items():
        if name in search.table.schema.columns:
            columns = search.table.schema.columns[name]
            found += [columns[d] for d in torch.nonzero(jitter > 0).flatten().tolist()]
    return tuple(found)


def _notes(search: Search, lanes: Lanes, edges: list[str], floored: tuple[str, ...]) -> tuple[str, ...]:
    notes = list(edges)
    if floored:
        notes.append(f"constant in the data, variance held at its floor: {', '.join(floored)}")
    restarts = search.restarts
    collapsed, anew = int((lanes.collapsed & ~lanes.pruned).sum()), sum(map(bool, restarts.reseeded))
    if collapsed:
        notes.append(f"{collapsed} of {search.count} restarts collapsed onto a singular component")
    if anew:
        notes.append(
            f"{anew} of {search.count} restarts began anew, up to {RESEEDS} times each, because a component "
            "collapsed or emptied"
        )
    dropped = int(lanes.pruned.sum())
    if dropped:
        rows = search.short_table.n_units
        on = f" on {rows} of {search.table.n_units} rows" if search.short_table is not search.table else ""
        notes.append(
            f"{dropped} of {search.count} restarts were dropped after a short run{on}; hits count the others"
        )
    return tuple(notes)
