"""The categories of a latent whose probabilities are a function, as axes of that function's parameters.

`logits=Linear(u)` has the first category for its reference and no row for it; a network has an output for each.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import pad

from ppl_gen.program.layers import LinearLayer, MLPLayer
from ppl_gen.program.layers import Table as TableLayer


def has_classes(layer: nn.Module) -> bool:
    """Whether a category's own parameters can be put in another order: a table, a network, a Linear in full."""
    if isinstance(layer, LinearLayer):
        return layer.free_bias or not bool(layer.bias.any())
    return isinstance(layer, TableLayer | MLPLayer)


def by_class(layer: nn.Module, path: str, leaf: Tensor) -> Tensor | None:
    """One entry a category on the first axis, (K, …), to be compared with others; None where it has no such axis.

    A reference has no row of its own: the rows of all categories are taken from their mean.
    """
    axis = _axis(layer, path)
    if axis is None:
        return None
    if isinstance(layer, LinearLayer):
        leaf = _with_reference(leaf, axis)
        leaf = leaf - leaf.mean(axis, keepdim=True)
    return leaf.movedim(axis, 0)


def reordered(layer: nn.Module, path: str, leaf: Tensor, order: Tensor) -> Tensor:
    """A parameter with the categories in another order; the new first one is the reference where there is one."""
    axis = _axis(layer, path)
    if axis is None:
        return leaf
    order = order.to(leaf.device)
    if not isinstance(layer, LinearLayer):
        return leaf.index_select(axis, order)
    full = _with_reference(leaf, axis).index_select(axis, order)
    others = full.narrow(axis, 1, len(order) - 1)
    return others - full.narrow(axis, 0, 1)


def _axis(layer: nn.Module, path: str) -> int | None:
    """The axis of the categories, counted from the end."""
    if ".inputs." in path.removeprefix("generative.layers."):
        return None
    if isinstance(layer, MLPLayer):
        weight, bias = f".weights.{layer.n_hidden}", f".biases.{layer.n_hidden}"
        return -2 if path.endswith(weight) else -1 if path.endswith(bias) else None
    return -2 if isinstance(layer, LinearLayer) and path.endswith(".weight") else -1


def _with_reference(leaf: Tensor, axis: int) -> Tensor:
    """The first category's zeros put back."""
    widths = [0, 0] * (-axis - 1) + [1, 0]
    return torch.as_tensor(pad(leaf, widths))
