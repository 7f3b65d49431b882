"""The parameters of a compiled model as a person reads them: natural values, and how many are free."""

from __future__ import annotations

import math
from typing import Any

from torch import nn

from ppl_gen.data.schema import Schema
from ppl_gen.declare.nodes import Node
from ppl_gen.declare.terms import Value
from ppl_gen.program.half import Draw, Half, Slot
from ppl_gen.program.layers import Constant, LinearLayer, MLPLayer, Offset, SumLayer, Table
from ppl_gen.program.nets import NetLayer


def natural_parameters(half: Half) -> dict[str, dict[str, Any]]:
    """Natural values by node and parameter; a function's are its weights and biases."""
    return {
        name: {key: _natural(half.layers[slot.layer], slot) for key, slot in draw.slots.items()}
        for name, draw in half.draws.items()
    }


def _natural(layer: nn.Module, slot: Slot, in_sum: bool = False) -> Any:
    def array(tensor: Any) -> Any:
        return tensor.detach().cpu().numpy().copy()

    if isinstance(layer, Constant | Table):
        predictor = layer.entries() if isinstance(layer, Table) else layer({})
        return array(predictor if in_sum else slot.constraint.natural(slot.constraint.working(predictor)))
    if isinstance(layer, LinearLayer):
        return {"weight": array(layer.weight), "bias": array(layer.bias)}
    if isinstance(layer, NetLayer):
        return {name: array(number) for name, number in layer.numbers().items()}
    if isinstance(layer, MLPLayer):
        return {"weights": [array(w) for w in layer.weights], "biases": [array(b) for b in layer.biases]}
    if isinstance(layer, SumLayer):
        return [_natural(term, slot, in_sum=True) for term in layer.terms]
    assert isinstance(layer, Offset)
    return layer.name


def count_free(half: Half, schema: Schema) -> int:
    """Identified numbers: a simplex of k has k−1, Linear(z) on z ~ N(0, I_q) loses q(q−1)/2 to rotation."""
    counted: set[str] = set()
    total = 0
    for draw in half.draws.values():
        for slot in draw.slots.values():
            if slot.layer not in counted:
                counted.add(slot.layer)
                total += _free(half.layers[slot.layer], slot, draw, half, schema)
    # Named terms used as values are functions of their own: an MLP's hidden layers, an embedding.
    for key, layer in half.layers.items():
        if key.endswith(":"):
            total += sum(parameter.numel() for parameter in layer.parameters())
    return total


def _free(layer: nn.Module, slot: Slot, draw: Draw, half: Half, schema: Schema) -> int:
    if isinstance(layer, Constant):
        return layer.n_free
    if isinstance(layer, Table):
        rows = math.prod(layer.lookup.levels) - layer.contrast  # a contrast's first row is 0
        if draw.node.support == "category":
            counts = schema.level_counts(draw.name)[
                : math.prod(layer.table.shape[len(layer.lookup.levels) : -1])
            ]
            return rows * sum(count - 1 for count in counts)
        return rows * math.prod(layer.table.shape[len(layer.lookup.levels) :])
    if isinstance(layer, SumLayer):
        return sum(_free(term, slot, draw, half, schema) for term in layer.terms)
    numbers = sum(parameter.numel() for parameter in layer.parameters())
    if isinstance(layer, LinearLayer) and _rotatable(layer, half):
        q = layer.inputs.width
        numbers -= math.prod(layer.lookup.levels) * q * (q - 1) // 2
    return numbers


def _rotatable(layer: LinearLayer, half: Half) -> bool:
    """Whether the one parent is a latent N(0, I): then any rotation of it gives the same law."""
    if len(layer.inputs.names) != 1 or layer.inputs.names[0] not in half.draws:
        return False
    parent: Node = half.draws[layer.inputs.names[0]].node
    terms = parent.terms()
    spread = [term for key, term in terms.items() if key in ("scale", "cov", "scale_tril")]
    return terms.get("loc") == Value(0) and spread == [Value(1)]
