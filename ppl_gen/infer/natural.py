"""The natural parameters as differentiable functions of the predictors: the map of the delta method."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from ppl_gen.data.schema import Schema
from ppl_gen.infer.enumeration import State
from ppl_gen.infer.identified import BOUNDARY, FIXED, REFERENCE, Identified
from ppl_gen.program.half import Half, Slot
from ppl_gen.program.layers import Constant, LinearLayer, MLPLayer, Offset, SumLayer, Table

REACH = 30.0  # error, for a column's standard deviation, of a logarithm of odds or rates that is no estimate

Place = tuple[str | int, ...]


@dataclass(frozen=True, eq=False)
class Leaf:
    """One array among the natural parameters.

    Args:
        node: the random node it belongs to.
        parameter: e.g. "loc".
        place: where it lies below {node: {parameter: …}}: () for a table, ("weight",) of a Linear.
        path: of the module's numbers in the state.
        layer: the module that holds it.
        slot: the parameter's constraint and target.
        in_sum: whether it is a term of a sum, and on the predictor's scale then.

    """

    node: str
    parameter: str
    place: Place
    path: str
    layer: nn.Module
    slot: Slot
    in_sum: bool

    @property
    def constraint(self) -> str:
        """The space its values lie in."""
        table = isinstance(self.layer, Table | Constant) and not self.in_sum
        return self.slot.constraint.name if table else "real"

    def read(self) -> Tensor:
        """Its values, from the module's numbers of the moment."""
        if isinstance(self.layer, Table | Constant):
            predictor = self.layer.entries() if isinstance(self.layer, Table) else self.layer({})
            if self.in_sum:
                return predictor
            return self.slot.constraint.natural(self.slot.constraint.working(predictor))
        value: Any = self.layer
        for step in self._below:
            value = value[step] if isinstance(step, int) else getattr(value, step)
        return value

    @property
    def _below(self) -> Place:
        """The part of `place` within the layer itself."""
        words = [position for position, step in enumerate(self.place) if isinstance(step, str)]
        return self.place[words[0] :] if words else ()

    def status(self, phi: Identified, shape: tuple[int, ...]) -> NDArray[np.str_]:
        """Why each of its values has no error of its own; "" where it has one."""
        if not isinstance(self.layer, Table | Constant):
            path = ".".join([self.path, *map(str, self._below)])
            return np.broadcast_to(phi.status.get(path, np.array(FIXED)), shape)
        own = phi.status.get(f"{self.path}.table", np.array(FIXED))
        if self.constraint in ("covariance", "lower_cholesky"):
            at_edge = (own == BOUNDARY).any(-1)[..., None, None] if own.ndim else np.array(False)
            return np.broadcast_to(np.where(at_edge, BOUNDARY, "" if own.ndim else FIXED), shape)
        if self.constraint == "simplex" and own.ndim:
            own = _of_simplex(own)
        return np.broadcast_to(own, shape)


def _of_simplex(own: NDArray[np.str_]) -> NDArray[np.str_]:
    """All probabilities move where one logit stays; what alone is left beside some at 0 is at 1, and does not."""
    if own.shape[-1] == 1:
        return np.full_like(own, FIXED)
    inside = (own != BOUNDARY) & (own != FIXED)
    alone = (own == BOUNDARY).any(-1, keepdims=True) & (inside.sum(-1, keepdims=True) == 1)
    return np.where(inside & alone, BOUNDARY, np.where(own == REFERENCE, "", own))


def leaves(half: Half) -> list[Leaf]:
    """Every array of the natural parameters, in the order in which they are printed."""
    return [
        leaf
        for name, draw in half.draws.items()
        for key, slot in draw.slots.items()
        for leaf in _below(name, key, (), f"generative.layers.{slot.layer}", half.layers[slot.layer], slot)
    ]


def _below(
    node: str, key: str, place: Place, path: str, layer: nn.Module, slot: Slot, in_sum: bool = False
) -> Iterator[Leaf]:
    if isinstance(layer, SumLayer):
        for position, part in enumerate(layer.terms):
            yield from _below(node, key, (*place, position), f"{path}.terms.{position}", part, slot, True)
        return
    if isinstance(layer, Constant | Table):
        places: list[Place] = [()]
    elif isinstance(layer, LinearLayer):
        places = [("weight",), ("bias",)]
    elif isinstance(layer, MLPLayer):
        places = [("weights", i) for i in range(len(layer.weights))]
        places += [("biases", i) for i in range(len(layer.biases))]
    else:
        assert isinstance(layer, Offset), type(layer)  # a value as it is: nothing learned
        return
    for own in places:
        yield Leaf(node, key, (*place, *own), path, layer, slot, in_sum)


class _NaturalMap(nn.Module):
    """All leaves end to end, for `torch.func.functional_call`."""

    def __init__(self, half: Half) -> None:
        super().__init__()
        self.generative, self.leaves = half, leaves(half)

    def forward(self) -> Tensor:
        return torch.cat([leaf.read().reshape(-1) for leaf in self.leaves])


def natural_map(half: Half) -> Callable[[State], Tensor]:
    """State → all natural parameters, end to end in the order of `leaves`: (M,)."""
    module = _NaturalMap(half)

    def call(state: State) -> Tensor:
        own = {path: value for path, value in state.items() if path.startswith("generative.")}
        return torch.func.functional_call(module, own, ())

    return call


def beyond_reach(half: Half, schema: Schema, errors: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Which weights and biases on a logarithmic scale the data do not bound, by the errors of all numbers: (M,).

    Columns that tell outcomes apart send weights to infinity, and where a fit stops on that way says nothing. A
    bias counts where a weight beside it does: far from a column's middle its error alone may be large.
    """
    marks: list[NDArray[np.bool_]] = []
    far: NDArray[np.bool_] = np.zeros(1, dtype=bool)
    found = leaves(half)
    for leaf, own in zip(found, _parted(found, errors), strict=True):
        mark = np.zeros(own.shape, dtype=bool)
        logarithmic = leaf.slot.constraint.name != "real" or leaf.parameter == "logits"
        if isinstance(leaf.layer, LinearLayer) and logarithmic:
            if leaf.place[-1] == "weight":
                mark = own * _spreads(leaf.layer, schema) > REACH
                far = np.asarray(mark.any(-1))
            elif leaf.layer.free_bias:
                mark = (own > REACH) & far
        marks.append(mark.reshape(-1))
    return np.concatenate(marks)


def _spreads(layer: LinearLayer, schema: Schema) -> NDArray[np.float64]:
    """The standard deviation of each column that enters, 1 where there is none: (in,)."""
    known = [
        schema.spread[name]
        if name not in schema.k and len(schema.spread.get(name, ())) == width
        else (1.0,) * width
        for name, width in zip(layer.inputs.names, layer.inputs.widths, strict=True)
    ]
    return np.concatenate([np.asarray(own, dtype=np.float64) for own in known])


def _parted(found: list[Leaf], flat: NDArray[Any]) -> list[NDArray[Any]]:
    """Numbers end to end (…, M), leaf by leaf."""
    shapes = [tuple(leaf.read().shape) for leaf in found]
    ends = np.cumsum([int(np.prod(shape, dtype=np.int64)) for shape in shapes])
    parts = np.split(flat, ends[:-1], axis=-1)
    return [part.reshape((*flat.shape[:-1], *shape)) for shape, part in zip(shapes, parts, strict=True)]


def nested(half: Half, flat: NDArray[Any]) -> dict[str, dict[str, Any]]:
    """Values end to end, in the shape of `Fit.parameters`; leading axes of `flat` (…, M) are kept."""
    found = leaves(half)
    tree: dict[str, dict[str, Any]] = {
        name: {key: _skeleton(half.layers[slot.layer]) for key, slot in draw.slots.items()}
        for name, draw in half.draws.items()
    }
    for leaf, value in zip(found, _parted(found, flat), strict=True):
        below: Any = tree[leaf.node]
        steps = (leaf.parameter, *leaf.place)
        for step in steps[:-1]:
            below = below[step]
        below[steps[-1]] = value
    return tree


def _skeleton(layer: nn.Module) -> Any:
    if isinstance(layer, SumLayer):
        return [_skeleton(part) for part in layer.terms]
    if isinstance(layer, LinearLayer):
        return {"weight": None, "bias": None}
    if isinstance(layer, MLPLayer):
        return {"weights": [None] * len(layer.weights), "biases": [None] * len(layer.biases)}
    return layer.name if isinstance(layer, Offset) else None
