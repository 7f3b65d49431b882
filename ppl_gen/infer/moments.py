"""Tables of observed nodes at the values that the columns' mean and spread suggest: where an iteration begins."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from ppl_gen.infer.enumeration import State
from ppl_gen.program.half import Slot
from ppl_gen.program.layers import Table
from ppl_gen.program.program import Program

Columns = Mapping[str, torch.Tensor]


def at_moments(
    program: Program, state: State, shift: Columns | None = None, unit: Columns | None = None
) -> State:
    """The state with the tables of observed nodes begun by moments, all classes alike.

    Args:
        program: the model; its schema has the columns' mean and spread.
        state: parameters by path; leaves may have axes before the table's own.
        shift: what has been taken from a node's columns already, (D,); default nothing.
        unit: what they have been divided by since; default 1.

    """
    moved = dict(state)
    for name in program.schema.roles.observed:
        draw = program.generative.draws[name]
        if name not in program.schema.centre:
            continue
        own = unit[name] if unit is not None and name in unit else torch.ones(())
        taken = shift[name] if shift is not None and name in shift else torch.zeros(())
        centre, spread = (
            torch.tensor(moments[name], dtype=torch.float64)
            for moments in (program.schema.centre, program.schema.spread)
        )
        for key, value in draw.family.beginning((centre - taken) / own, spread / own).items():
            slot = draw.slots.get(key)
            layer = None if slot is None else program.generative.layers[slot.layer]
            if slot is not None and isinstance(layer, Table) and not layer.ordered:
                path = f"generative.layers.{slot.layer}.table"
                moved[path] = _begun(slot, value, state[path])
    return moved


def _begun(slot: Slot, value: torch.Tensor, table: torch.Tensor) -> torch.Tensor:
    """A table with this working value everywhere, or as it was where its transform cannot give that value."""
    narrow = slot.target.shareable and table.shape[-1] == 1
    working = (value.mean(-1, keepdim=True) if narrow else value).to(table)
    predictor = slot.constraint.predictor(working)
    if not torch.allclose(slot.constraint.working(predictor), working):
        return table
    return predictor.expand_as(table).clone()
