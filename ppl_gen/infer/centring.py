"""Coordinates of `Linear` in which observed columns are counted from their means: what SVI steps in.

In W x + b a column far from 0 ties W to b: moving W alone moves every value, and b has to walk after it by the
learning rate, however far that is. In W (x − x̄) + b′, b′ = b + W x̄, the two are free of each other. Units stay as
they are, so that the learning rate means what it did.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from ppl_gen.infer.enumeration import State
from ppl_gen.program.layers import LinearLayer, MLPLayer, SumLayer, Table

Means = dict[str, dict[str, Tensor]]

COUNTED = ("real", "positive", "count")  # what enters `Linear` as it is


class Centring:
    """Parameters as the program has them (outside) ⇄ those that an optimiser steps on (inside).

    A column with missing cells enters as 0 where one is missing, beside a column of marks: there the weight of the
    marks stands for the intercept.

    Attributes:
        means: by layer, what the intercept and the marks' weights are moved by, and whose weights those are: a
            lowered step takes them as arguments.

    """

    def __init__(self, program: nn.Module) -> None:
        self.means: Means = {}
        self._intercepts = dict(_intercepts(program))
        for path, layer in program.named_modules():
            if isinstance(layer, LinearLayer):
                found = _means(layer, movable=path in self._intercepts)
                if found:
                    self.means[path] = found

    def inside(self, state: State) -> State:
        """Intercepts at the columns' means."""
        return self._moved(state, self.means, 1.0)

    def outside(self, state: State, means: Means) -> State:
        """Intercepts at 0, as layers take them."""
        return self._moved(state, means, -1.0)

    def _moved(self, state: State, means: Means, sign: float) -> State:
        moved = dict(state)
        for path, own in means.items():
            weight = moved[f"{path}.weight"]
            if "centre" in own:
                intercept = self._intercepts[path]
                moved[intercept] = moved[intercept] + sign * (weight @ own["centre"])
            if "marks" in own:
                beside = weight.index_select(-1, own["beside"])
                moved[f"{path}.weight"] = weight + sign * beside * own["marks"]
        return moved


def _intercepts(program: nn.Module) -> Iterator[tuple[str, str]]:
    """By Linear, where its intercept lies: its own, or that of the sum it stands in, if the widths allow."""
    for path, layer in program.named_modules():
        if isinstance(layer, LinearLayer) and layer.free_bias:
            yield path, f"{path}.bias"
        if not isinstance(layer, SumLayer):
            continue
        parts = [(part, f"{path}.terms.{i}") for i, part in enumerate(layer.terms)]
        carried = next((found for part, own in parts if (found := _intercept(part, own)) is not None), None)
        for part, own in parts:
            alone = isinstance(part, LinearLayer) and not part.free_bias and not part.lookup.names
            if carried is not None and alone and program.get_parameter(carried).shape[-1:] == part.own:
                yield own, carried


def _intercept(part: nn.Module, path: str) -> str | None:
    """What a value added to all of a part's is added to."""
    if isinstance(part, LinearLayer) and part.free_bias:
        return f"{path}.bias"
    if isinstance(part, Table) and not part.contrast and not part.ordered:
        return f"{path}.table"
    if isinstance(part, MLPLayer) and len(part.biases) > part.n_hidden:
        return f"{path}.biases.{part.n_hidden}"
    return None


def _means(layer: LinearLayer, *, movable: bool) -> dict[str, Tensor]:
    """The means of all that enters a layer, (width,) each, 0 where there are none; nothing where all are 0."""
    like, start = layer.weight.detach(), 0
    centre, marks = like.new_zeros(layer.inputs.width), like.new_zeros(layer.inputs.width)
    beside = torch.arange(layer.inputs.width, device=like.device)
    for parent, width in zip(layer.inputs.parents, layer.inputs.widths, strict=True):
        values, after = slice(start, start + parent.width), slice(start + parent.width, start + width)
        if parent.observed and parent.kind in COUNTED:
            mean = torch.tensor(parent.centre, dtype=torch.float64).to(like)
            if parent.holes:
                marks[after], beside[after] = mean, beside[values].clone()
            elif movable:
                centre[values] = mean
        start += width
    found = {"centre": centre} if bool(centre.any()) else {}
    if bool(marks.any()):
        found |= {"marks": marks, "beside": beside}
    return found
