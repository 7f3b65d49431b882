"""Where parameters begin before any data are read row by row (rule 23), from the columns' means and spreads."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ppl_gen.data.schema import Schema
from ppl_gen.program.convolution import ConvDecoder
from ppl_gen.program.floors import MATRICES, for_width, is_table, least_scales
from ppl_gen.program.half import Draw, Half
from ppl_gen.program.layers import LinearLayer, MLPLayer, SumLayer, Table

APART = 0.5  # how far apart, on the predictor's scale, the categories of a table in a sum begin


@torch.no_grad()
def set_beginnings(half: Half, schema: Schema) -> None:
    """Give a half's layers their starting values; networks keep those that torch gives them.

    Tables that tell latent categories apart begin apart, or they would stay equal for ever. A function of observed
    columns begins as if these were centred and scaled, a location of observed columns at their means and a scale at
    their spreads: a step of SVI is of one size, whatever the data's units.
    """
    for layer in half.layers.modules():
        if isinstance(layer, LinearLayer):
            _as_if_standardised(layer)
    for key, layer in half.layers.items():
        if key.endswith(":") and isinstance(layer, Table) and layer.lookup.names:
            layer.table.copy_(torch.randn_like(layer.table))
    for name, draw in half.draws.items():
        for key, slot in draw.slots.items():
            layer = half.layers[slot.layer]
            if (
                isinstance(layer, Table)
                and layer.lookup.names
                and key == "loc"
                and name in schema.roles.latent
            ):
                layer.table.copy_(torch.randn_like(layer.table))
            if isinstance(layer, SumLayer):
                _apart(layer, _unit(draw, key, schema))
        if name in schema.roles.observed and draw.node.support == "real" and "loc" in draw.slots:
            slot = draw.slots["loc"]
            if getattr(slot.term, "transform", None) in (None, "identity"):
                _begin_at(half.layers[slot.layer], torch.tensor(schema.centre[name], dtype=torch.float64))
    for path, spread in _functions_of_scales(half, schema).items():
        _begin_at(half.layers[path], spread)


def _functions_of_scales(half: Half, schema: Schema) -> dict[str, Tensor]:
    """By layer, the predictor of the spreads of observed columns whose scale is a function."""
    found = {}
    for name, draw in half.draws.items():
        for key in least_scales(draw.node, draw.family, name, schema):
            slot, spread = draw.slots[key], torch.tensor(schema.spread[name], dtype=torch.float64)
            if is_table(half.layers[slot.layer]):
                continue
            if slot.constraint.name in MATRICES:
                spread = torch.diag_embed(spread)
            elif getattr(slot.term, "dim", None) == 1:
                spread = for_width(spread, 1)
            found[slot.layer] = slot.constraint.predictor(spread)
    return found


def _as_if_standardised(layer: LinearLayer) -> None:
    start = 0
    for parent, width in zip(layer.inputs.parents, layer.inputs.widths, strict=True):
        values = slice(start, start + parent.width)
        marks = slice(start + parent.width, start + width)  # of the seen cells, where some are missing
        start += width
        if parent.observed and parent.kind in ("real", "positive"):
            layer.weight[..., values] /= torch.tensor(parent.spread, dtype=torch.float64)
            centre = torch.tensor(parent.centre, dtype=torch.float64)
            if parent.holes:
                layer.weight[..., marks] = -layer.weight[..., values] * centre
            elif layer.free_bias:
                layer.bias -= layer.weight[..., values] @ centre


def _apart(layer: SumLayer, unit: Tensor | float) -> None:
    for part in layer.terms:
        if isinstance(part, Table) and part.lookup.names:
            part.table.copy_(torch.randn_like(part.table) * unit)


def _unit(draw: Draw, key: str, schema: Schema) -> Tensor | float:
    if key == "loc" and draw.node.support == "real" and draw.name in schema.spread:
        return torch.tensor(schema.spread[draw.name], dtype=torch.float64).mean()
    return APART


def _begin_at(layer: nn.Module, means: Tensor) -> None:
    """Add what a predictor is to be at first to the intercept, where the layer has one of that width."""
    if isinstance(layer, SumLayer):
        _begin_at(layer.terms[0], means)
        return
    if isinstance(layer, ConvDecoder):
        layer.begin_at(means)
        return
    intercept: Tensor | None = None
    if isinstance(layer, LinearLayer) and layer.free_bias:
        intercept = layer.bias
    elif isinstance(layer, MLPLayer) and 0 < len(layer.biases) == len(layer.weights):
        intercept = layer.biases[-1]
    elif isinstance(layer, Table) and not layer.contrast and not layer.ordered:
        intercept = layer.table
    if intercept is not None and intercept.shape[-1] == len(means):
        intercept += means
