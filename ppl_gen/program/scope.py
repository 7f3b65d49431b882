"""What a layer knows of the names it refers to, and how their values enter tables and functions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from ppl_gen.program.constraints import Constraint

Values = Mapping[str, Tensor]


@dataclass(frozen=True)
class Parent:
    """What a layer must know of a name it refers to (rule 13).

    `kind` is real, boolean, count, category, or value for a named term; `scalar` marks a category whose values
    have no axis of their own; `holes` says that training data lacked some of its cells; `shape` is that of
    an image-shaped node.
    """

    kind: str
    width: int
    levels: int | None = None
    scalar: bool = False
    observed: bool = False
    centre: tuple[float, ...] = ()
    spread: tuple[float, ...] = ()
    holes: bool = False
    shape: tuple[int, ...] = ()

    @property
    def table(self) -> tuple[int, ...]:
        """The axes that a table indexed by this parent has."""
        return (self.levels or 2,) * self.width


@dataclass(frozen=True)
class Target:
    """The parameter a layer is built for.

    `axes` are the predictor's: the dimension axis, then the parameter's own. `reference` says that a Linear
    leaves out the first of the last axis (rule 12), `shareable` that dim=1 may stand for all dimensions;
    `shape` is that of an image-shaped node.
    """

    name: str
    axes: tuple[int, ...]
    constraint: Constraint
    reference: bool = False
    shareable: bool = True
    shape: tuple[int, ...] = ()


@dataclass
class Scope:
    """The names a term may refer to, and the modules of the named terms built so far."""

    parents: dict[str, Parent] = field(default_factory=dict)
    named: dict[str, nn.Module] = field(default_factory=dict)


class Lookup:
    """Finds the entries of a table (levels…, rest) that belong to the parents' categories."""

    def __init__(self, names: Sequence[str], scope: Scope) -> None:
        self.names = tuple(names)
        self.parents = [scope.parents[name] for name in names]
        self.levels: tuple[int, ...] = sum((parent.table for parent in self.parents), ())

    def __call__(self, table: Tensor, values: Values) -> Tensor:
        """The entries, (*batch, rest)."""
        if not self.names:
            return table
        position: Any = 0
        for name, parent in zip(self.names, self.parents, strict=True):
            value = values[name].long()
            cells = value.unsqueeze(-1) if parent.scalar else value
            for cell, size in enumerate(parent.table):
                position = position * size + cells[..., cell]
        rest = table.shape[len(self.levels) :]
        picked = table.reshape(-1, *rest).index_select(0, position.reshape(-1))
        return picked.reshape(*position.shape, *rest)


class Inputs(nn.Module):
    """What enters a function: reals as they are, categories one-hot, counts log1p for a network (rule 13).

    Where training data had holes, a missing cell enters as 0 and columns beside say which cells are seen.
    """

    def __init__(self, names: Sequence[str], scope: Scope, *, network: bool) -> None:
        super().__init__()
        self.names, self.network = tuple(names), network
        self.parents = [scope.parents[name] for name in names]
        self.first = 0 if network else 1  # Linear drops a category's first level
        self.widths = [
            p.width * ((p.levels or 2) - self.first) if p.kind == "category" else p.width
            for p in self.parents
        ]
        self.widths = [w + p.width * p.holes for w, p in zip(self.widths, self.parents, strict=True)]
        self.width = sum(self.widths)
        for i, parent in enumerate(self.parents):
            if network and parent.observed and parent.kind in ("real", "positive"):
                self.register_buffer(f"centre_{i}", torch.tensor(parent.centre, dtype=torch.float64))
                self.register_buffer(f"spread_{i}", torch.tensor(parent.spread, dtype=torch.float64))

    def forward(self, values: Values, dtype: torch.dtype) -> list[Tensor]:
        """One tensor (*batch, width) for each parent; their batches may differ."""
        return [
            self._marked(i, values, dtype) if parent.holes else self._enter(i, values[name], dtype)
            for i, (name, parent) in enumerate(zip(self.names, self.parents, strict=True))
        ]

    def _marked(self, i: int, values: Values, dtype: torch.dtype) -> Tensor:
        """A parent with missing cells, and which of them are seen."""
        name, parent = self.names[i], self.parents[i]
        value = values[name]
        entering = self._enter(i, value, dtype)
        if parent.kind == "category":  # a missing one is −1, which is no level
            cells = value.unsqueeze(-1) if parent.scalar else value
            return torch.cat([entering, (cells >= 0).to(dtype)], -1)
        seen = values.get(f"{name}.seen")
        if seen is None:
            return torch.cat([entering, torch.ones_like(value)], -1)
        return torch.cat([entering * seen, seen.expand_as(value)], -1)

    def _enter(self, i: int, value: Tensor, dtype: torch.dtype) -> Tensor:
        parent = self.parents[i]
        if parent.kind == "category":
            cells = value.unsqueeze(-1) if parent.scalar else value
            levels = torch.arange(self.first, parent.levels or 2, device=value.device)
            return (cells.unsqueeze(-1) == levels).flatten(-2).to(dtype)
        if self.network and parent.kind == "count":
            return torch.log1p(value)
        if self.network and parent.observed and parent.kind in ("real", "positive"):
            return (value - getattr(self, f"centre_{i}")) / getattr(self, f"spread_{i}")
        return value


def affine(weight: Tensor, bias: Tensor | None, inputs: Sequence[Tensor]) -> Tensor:
    """Σ_i W_i x_i + b for weights (*batch, out, in) split over the inputs (*batch, in_i), in = Σ in_i."""
    parts = weight.split([x.shape[-1] for x in inputs], -1) if len(inputs) > 1 else [weight]
    total: Tensor | None = None
    for W, x in zip(parts, inputs, strict=True):
        if W.ndim == 2:
            u = x @ W.mT
        elif W.shape[-3] == 1 and x.ndim == 2:  # every row meets every category: one product for each
            u = x @ W.squeeze(-3).mT
        else:
            u = (W @ x.unsqueeze(-1)).squeeze(-1)
        total = u if total is None else total + u
    assert total is not None
    return total if bias is None else total + bias
