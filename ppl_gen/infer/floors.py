"""Floors of the scales of observed columns in SVI: what holds tables there, and who lies there at last."""

from __future__ import annotations

import math
from copy import deepcopy

import torch
from torch import Tensor

from ppl_gen.infer.enumeration import State
from ppl_gen.program.constraints import pack_tril
from ppl_gen.program.floors import MATRICES, for_width, is_table, least_scales
from ppl_gen.program.half import Draw, Slot
from ppl_gen.program.lowering import pyro_scope
from ppl_gen.program.program import Program

TOUCHES = 1 + 1e-5  # times its floor, a scale in single precision lies there
LOOKED_AT = 1000  # rows on which the values of functions are


def least_parameters(program: Program) -> State:
    """By path, the least entries of the tables that hold scales of observed columns, unconstrained; −∞: no floor.

    Example:
        >>> from ppl_gen import Free, Normal, Spec
        >>> from ppl_gen.program.program import compile_spec
        >>> spec = Spec(model={"x": Normal(1, loc=0, scale=Free())})
        >>> found = least_parameters(compile_spec(spec, {"x": [[0.0], [2.0]]}))
        >>> {path: least.exp() for path, least in found.items()}
        {'generative.layers.x:scale.table': tensor([0.0001], dtype=torch.float64)}

    """
    found: State = {}
    for draw, key, least in _scales(program):
        slot, table = draw.slots[key], _table(program, draw.slots[key])
        path = f"generative.layers.{slot.layer}.table"
        if table is not None:
            bound = _least_entries(slot, least, table)
            found[path] = torch.maximum(found[path], bound) if path in found else bound
    return found


def at_the_floor(program: Program, state: State, rows: State) -> tuple[str, ...]:
    """Columns one of whose scales lies at its floor, functions at one draw of the latents of some rows."""
    program = deepcopy(program)  # a run leaves the caller's own as it is
    program.load_state_dict(state)
    few = {key: column[:LOOKED_AT] for key, column in rows.items()}
    low: dict[str, Tensor] = {}
    with pyro_scope(), torch.no_grad(), torch.random.fork_rng():
        torch.manual_seed(0)
        values = program.model(few | program.guide(few))
        for draw, key, least in _scales(program):
            slot, table = draw.slots[key], _table(program, draw.slots[key])
            if table is not None:
                working = slot.constraint.working(table)
            elif is_table(program.generative.layers[slot.layer]):
                continue  # written numbers are nobody's to hold
            else:
                working = program.generative.working(draw.name, dict(values))[key]
            if slot.constraint.name in MATRICES:
                working = working.diagonal(dim1=-2, dim2=-1)
            limit = for_width(least, working.shape[-1]).to(working) * TOUCHES
            touched = (working <= limit).reshape(-1, working.shape[-1]).any(0).expand(len(least))
            low[draw.name] = touched | low.get(draw.name, touched)
    columns = program.schema.column_names
    return tuple(columns(name)[d] for name, own in low.items() for d in own.nonzero().flatten().tolist())


def _scales(program: Program) -> list[tuple[Draw, str, Tensor]]:
    return [
        (draw, key, least)
        for draw in program.generative.draws.values()
        for key, least in least_scales(draw.node, draw.family, draw.name, program.schema).items()
    ]


def _table(program: Program, slot: Slot) -> Tensor | None:
    """The learned numbers of a parameter that is a table."""
    layer = program.generative.layers[slot.layer]
    return dict(layer.named_parameters()).get("table") if is_table(layer) else None


def _least_entries(slot: Slot, least: Tensor, table: Tensor) -> Tensor:
    like = table.detach()
    if slot.constraint.name in MATRICES:
        bound = pack_tril(torch.diag_embed(least))
        rows, columns = torch.tril_indices(len(least), len(least))
        bound = torch.where(rows == columns, bound, -math.inf)
    else:
        bound = slot.constraint.predictor(for_width(least, like.shape[-1]))
    return bound.to(like).expand(like.shape).clone()
