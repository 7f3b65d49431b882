"""Why a node's parameters have no closed-form M-step."""

from __future__ import annotations

from ppl_gen.infer.regression import is_regression
from ppl_gen.program.half import Draw
from ppl_gen.program.layers import Constant, Table
from ppl_gen.program.priors import prior_obstacle
from ppl_gen.program.program import Program

# The transforms under which a weighted mean or variance is the maximum likelihood it is without them.
UNBOUNDED = {"real": ("identity",), "positive": ("exp", "softplus")}


def m_step_obstacle(program: Program, draw: Draw) -> str | None:
    """Why one node has no closed-form M-step, or None."""
    if is_regression(program, draw):
        return None
    partly, shared = set(), set()
    for key, slot in draw.slots.items():
        layer = program.generative.layers[slot.layer]
        if not isinstance(layer, Constant | Table):
            return f"{draw.name}.{key} = {slot.term} has no closed-form M-step"
        transform = getattr(slot.term, "transform", None)
        if transform is not None and transform not in UNBOUNDED.get(slot.constraint.name, (transform,)):
            return f"{draw.name}.{key} = {slot.term} is kept in a range, which has no closed-form M-step"
        if isinstance(layer, Table) and layer.ordered:
            return f"{draw.name}.{key} = {slot.term} is ordered, which has no closed-form M-step"
        if isinstance(layer, Constant) and 0 < layer.n_free < layer.value.numel():
            partly.add(key)
        narrow = isinstance(layer, Table) and layer.table.shape[len(layer.lookup.levels)] == 1
        if narrow and slot.target.shareable and slot.target.axes[0] != 1:
            shared.add(key)
    if (obstacle := prior_obstacle(draw)) is not None:
        return obstacle
    if draw.family.joint and not _side_by_side(program, draw):
        return f"the parameters of {draw.name} are not all learned on one table: no closed-form M-step"
    reason = draw.family.closed_form(frozenset(partly), frozenset(shared))
    return None if reason is None else f"{reason}: no closed-form M-step"


def _side_by_side(program: Program, draw: Draw) -> bool:
    """Whether every parameter is a table over the same parents."""
    layers = [program.generative.layers[slot.layer] for slot in draw.slots.values()]
    tables = [layer.lookup.names for layer in layers if isinstance(layer, Table)]
    return len(tables) == len(layers) and len(set(tables)) == 1
