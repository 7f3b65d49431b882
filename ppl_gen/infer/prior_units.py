"""Priors carried to other units of the columns, as the parameters they are about are (`Standard`).

A density changes with the units by a constant, its Jacobian. EM runs on the density in standard units, and the
constant is taken off again, so that the objective it reports is that of the data's own units.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from ppl_gen.infer.enumeration import State
from ppl_gen.program.layers import LinearLayer
from ppl_gen.program.priors import ROOT, Place, PlacedPrior
from ppl_gen.program.program import Program

Moves = Mapping[str, tuple[Tensor, Tensor]]


def rescaled_priors(program: Program, state: Mapping[str, Tensor], moves: Moves) -> tuple[State, float]:
    """The arguments of all priors for rows as (x − shift)/unit, and by how much Σ log p grows: a constant.

    Args:
        program: the model.
        state: one state, no restart axis; its parameters do not matter.
        moves: by node or Input the columns' shift and unit, (D,) each.

    """
    moved: State = {}
    growth = 0.0
    for position, prior in enumerate(program.priors):
        names = {name: f"{ROOT}.{position}.{name}" for name in prior.names}
        law = prior.law({name: state[path] for name, path in names.items()})
        role, shift, unit = _change(prior, moves)
        law, more = law.rescaled(role, shift, unit)
        growth += float(more)
        moved |= {names[name]: value for name, value in law.arguments.items()}
    return moved, growth


def _change(prior: PlacedPrior, moves: Moves) -> tuple[str, Tensor, Tensor]:
    """How a prior's parameter moves: its role, and the shift and unit of its own last axes."""
    (place,) = prior.place
    like = prior.natural().detach()
    shift, unit = _of_node(place, moves, like)
    if isinstance(place.layer, LinearLayer):
        out = unit if place.key == "loc" else torch.ones_like(unit)
        return "loc", torch.zeros_like(like), out.unsqueeze(-1) / _entering(place.layer, moves, like)
    if not place.part:
        return place.key, shift, unit
    if place.key == "loc":
        return "loc", shift if place.intercept else torch.zeros_like(shift), unit
    return "loc", unit.log() if place.intercept else torch.zeros_like(unit), torch.ones_like(unit)


def _of_node(place: Place, moves: Moves, like: Tensor) -> tuple[Tensor, Tensor]:
    if place.draw is None or place.draw.name not in moves:
        return like.new_zeros(1), like.new_ones(1)
    width = like.shape[-2 if isinstance(place.layer, LinearLayer) else -1]
    shift, unit = (each.to(like) for each in moves[place.draw.name])
    return (shift[:1], unit[:1]) if width == 1 else (shift, unit)


def _entering(layer: LinearLayer, moves: Moves, like: Tensor) -> Tensor:
    """The unit of each column that enters a function, (in,)."""
    each = [
        moves[name][1].to(like) if name in moves else like.new_ones(width)
        for name, width in zip(layer.inputs.names, layer.inputs.widths, strict=True)
    ]
    return torch.cat(each)
