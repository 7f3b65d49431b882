"""One node of a program as the two steps of EM see it: its expected statistics, and where its parameters lie."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ppl_gen.infer import regression
from ppl_gen.infer.enumeration import Rows, State, latent_axes
from ppl_gen.program.families import Site
from ppl_gen.program.half import Draw
from ppl_gen.program.layers import Constant, LinearLayer, Table
from ppl_gen.program.marks import seen_of
from ppl_gen.program.program import Program


def table_parents(draw: Draw, program: Program) -> dict[str, tuple[str, ...]]:
    """For each parameter of a node, the parents its table is indexed by."""
    layers = {key: program.generative.layers[slot.layer] for key, slot in draw.slots.items()}
    indexed = (Table, LinearLayer)
    return {key: layer.lookup.names if isinstance(layer, indexed) else () for key, layer in layers.items()}


def parent_levels(draw: Draw, program: Program) -> dict[str, tuple[int, ...]]:
    """Every parent of a node's tables, with its axes, in the order of their joint table."""
    levels: dict[str, tuple[int, ...]] = {}
    for slot in draw.slots.values():
        layer = program.generative.layers[slot.layer]
        if isinstance(layer, Table | LinearLayer):
            parents = zip(layer.lookup.names, layer.lookup.parents, strict=True)
            levels.update({name: parent.table for name, parent in parents})
    return levels


def site_statistics(
    program: Program, draw: Draw, marginal: Tensor, rows: Rows, state: State | None = None
) -> Tensor:
    """Σ_d P(parents | x_d) Φ: (joint axes of the parents…, P).

    `state` is needed where statistics depend on the current parameters.
    """
    levels = parent_levels(draw, program)
    latent = draw.name in program.enumerated_in(rows)
    weights = _joint_weights(program, [*levels, draw.name] if latent else list(levels), marginal, rows)
    shape = sum(levels.values(), ())
    if latent:  # its values are the rows, weighted by how probable each is
        totals = weights.sum(-1)  # (parents…, own values)
        support = draw.family.support(draw.sizes).to(marginal.device)
        summed = draw.family.expected_statistics(totals, support, draw.sizes)
    else:
        current = None
        seen = seen_of(rows, draw.name, joined=draw.family.joined)
        if state is not None and regression.is_regression(program, draw):
            summed = regression.statistics(program, draw, state, weights, rows, seen)
            return summed.reshape((*shape, summed.shape[-1]))
        if state is not None and (draw.family.adaptive or (draw.family.joined and seen is not None)):
            working, site = site_of(program, draw, state)
            current = {key: site.spread(value, key) for key, value in working.items()}
        summed = draw.family.expected_statistics(
            weights, rows[draw.name], draw.sizes, seen=seen, current=current
        )
    return summed.reshape((*shape, summed.shape[-1]))


def _joint_weights(program: Program, names: list[str], marginal: Tensor, rows: Rows) -> Tensor:
    """(one axis a name…, N): latent names by their enumerated axis, observed ones by indicators."""
    axes = latent_axes(program, rows)
    depth = 1 + len(axes)
    full = marginal.reshape((1,) * (depth - marginal.ndim) + tuple(marginal.shape))
    wanted = [name for name in names if name in axes]
    order = [axes[name] + depth for name in wanted]
    others = [axis for axis in range(depth - 1) if axis not in order]
    weights = full.permute(*order, *others, depth - 1)
    weights = weights.reshape((*weights.shape[: len(order)], weights.shape[-1]))
    for position, name in enumerate(names):
        if name not in axes:
            weights = weights.unsqueeze(position) * _indicators(program, name, rows, weights, position)
    return weights


def _indicators(program: Program, name: str, rows: Rows, weights: Tensor, position: int) -> Tensor:
    parent = program.generative.parent(name)
    value = rows[name].long()
    cells = value.unsqueeze(-1) if parent.scalar else value  # (N, d)
    flat = torch.zeros_like(cells[..., 0])
    for cell, size in enumerate(parent.table):
        flat = flat * size + cells[..., cell]
    levels = torch.arange(math.prod(parent.table), device=flat.device)
    indicators = (flat == levels.unsqueeze(-1)).to(weights.dtype)  # (levels, N)
    return indicators.reshape((levels.shape[0],) + (1,) * (weights.ndim - 1 - position) + (-1,))


def site_of(program: Program, draw: Draw, state: State) -> tuple[dict[str, Tensor], Site]:
    """A node's current working parameters, functions left out, and where they lie."""
    current, shared, fixed, free = {}, [], [], {}
    for key, slot in draw.slots.items():
        layer, path = program.generative.layers[slot.layer], f"generative.layers.{slot.layer}"
        if isinstance(layer, Constant):
            if layer.n_free == 0:
                fixed.append(key)
                predictor = state[f"{path}.value"]
            else:
                free[key] = state[f"{path}.free"]
                predictor = torch.where(free[key], state[f"{path}.table"], state[f"{path}.value"])
        elif isinstance(layer, LinearLayer):
            continue
        else:
            predictor = state[f"{path}.table"]
            assert isinstance(layer, Table)
            own = predictor.shape[len(layer.lookup.levels) :]
            if slot.target.shareable and own[0] == 1 and slot.target.axes[0] != 1:
                shared.append(key)
        current[key] = slot.constraint.working(predictor)
    levels, tables = parent_levels(draw, program), table_parents(draw, program)
    priors = program.priors.laws_of(draw, state)
    return current, Site(draw.sizes, levels, tables, frozenset(shared), frozenset(fixed), free, priors)
