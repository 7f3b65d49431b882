"""One half of a program, generative model or guide: its layers, and the distribution of each node in turn."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from pyro.distributions.torch_distribution import TorchDistribution
from torch import Tensor, nn

from ppl_gen.data.schema import Schema
from ppl_gen.declare.flow import Flow, check_flow
from ppl_gen.declare.nodes import Input, Node
from ppl_gen.declare.terms import MLP, By, Conv, Free, Linear, Name, Net, Term
from ppl_gen.errors import SpecError
from ppl_gen.program.constraints import Constraint, constraint
from ppl_gen.program.convolution import ConvEncoder
from ppl_gen.program.families import FAMILIES, Family, Sizes
from ppl_gen.program.floors import is_table, least_scales, raised
from ppl_gen.program.flows import Transforms
from ppl_gen.program.layers import MLPLayer, build
from ppl_gen.program.nets import NetLayer as NetLayer  # registers the layer of a Net
from ppl_gen.program.scope import Parent, Scope, Target


@dataclass(frozen=True)
class Slot:
    """One parameter of one node: the layer that gives its predictor, and the constraint it goes through."""

    layer: str
    term: Term
    constraint: Constraint
    target: Target


@dataclass(frozen=True)
class Draw:
    """One random node: its family, settled sizes and parameters."""

    name: str
    node: Node
    family: Family
    sizes: Sizes
    slots: dict[str, Slot]


def settled_sizes(name: str, node: Node, schema: Schema) -> Sizes:
    """A node's sizes, from the declaration or the data."""
    width = schema.dims[name]
    scalar = node.support == "category" and getattr(node, "dim", None) is None and width == 1
    return Sizes(width, schema.k.get(name), scalar)


def parent_of(name: str, node: Node, schema: Schema) -> Parent:
    """How the value of a node enters tables and functions."""
    known = name in schema.columns
    centre, spread = schema.centre.get(name, ()), schema.spread.get(name, ())
    if isinstance(node, Input):
        levels = schema.k.get(name)
        kind = "real" if levels is None else "category"
        scalar = levels is not None and node.dim is None and schema.dims[name] == 1
        return Parent(kind, schema.dims[name], levels, scalar, known, centre, spread, shape=_shape(node))
    sizes = settled_sizes(name, node, schema)
    holes = name in schema.holes
    return Parent(
        node.support, sizes.width, sizes.k, sizes.scalar, known, centre, spread, holes, _shape(node)
    )


def _shape(node: Node) -> tuple[int, ...]:
    return node.dim if isinstance(node.dim, tuple) else ()


class Half(nn.Module):
    """The declared entries of a model or a guide, compiled.

    `layers` holds one module for each parameter ("x:loc") and each named term ("h:"): a name used twice is one
    module (rule 7). `floors` holds the least scales ("x:scale") of observed nodes whose scale is a function.
    """

    def __init__(
        self, entries: Mapping[str, Node | Term], known: Mapping[str, Parent], schema: Schema
    ) -> None:
        super().__init__()
        self.layers = nn.ModuleDict()
        self.floors = nn.Module()
        self.terms = {name: entry for name, entry in entries.items() if isinstance(entry, Term)}
        self.draws: dict[str, Draw] = {}
        self._targets: dict[str, Target] = {}
        latent = [n for n in schema.roles.latent if isinstance(entries.get(n), Node)]
        all_discrete = all(getattr(entries[n], "discrete", False) for n in latent)
        self._summed = frozenset(latent if all_discrete else ())
        self._scope = Scope(dict(known))
        self._as_values = self._parents_of(entries.values())
        for name, entry in entries.items():
            if isinstance(entry, Input):
                continue
            try:
                if isinstance(entry, Term):
                    self._name_value(name, entry)
                else:
                    self._scope.parents.setdefault(name, parent_of(name, entry, schema))
                    self.draws[name] = self._draw(name, entry, schema)
            except SpecError as error:
                error.node = error.node or name
                raise

    def distribution(self, name: str, values: dict[str, Tensor]) -> TorchDistribution:
        """The Pyro distribution of a node given the values drawn so far."""
        draw, working = self.draws[name], self.working(name, values)
        distribution = draw.family.distribution(working, draw.sizes)
        transforms = f"{name}:transforms"
        if transforms in self.layers:
            return self.layers[transforms](distribution, working.get("context"))
        return distribution

    def working(self, name: str, values: dict[str, Tensor]) -> dict[str, Tensor]:
        """A node's parameters as its distribution takes them, (*batch, *axes)."""
        self._fill(values)
        found = {}
        for key, slot in self.draws[name].slots.items():
            predictor = self.layers[slot.layer](values)
            if predictor.dtype is torch.bfloat16:  # under autocast: densities are taken in full
                predictor = predictor.float()
            found[key] = slot.constraint.working(predictor)
            least = getattr(self.floors, f"{name}:{key}", None)
            if least is not None:
                found[key] = raised(found[key], least, slot.constraint.name)
        return found

    def parent(self, name: str) -> Parent:
        """How the value of a name enters tables and functions."""
        return self._scope.parents[name]

    def _fill(self, values: dict[str, Tensor]) -> None:
        """Compute the named values whose parents are all there."""
        for name in self._as_values:
            ready = name not in values and all(parent in values for parent in self.terms[name].parents())
            if ready:
                values[name] = self.layers[f"{name}:"](values)

    def _parents_of(self, entries: Iterable[Node | Term]) -> list[str]:
        """The named terms that something takes as a value: as a parent, or within a sum."""
        used: list[str] = []
        for entry in entries:
            terms = entry.terms().values() if isinstance(entry, Node) else [entry]
            for term in terms:
                if not isinstance(term, Name) or isinstance(entry, Term):
                    used.extend(term.parents())
        return [name for name in self.terms if name in used]

    def _name_value(self, name: str, term: Term) -> None:
        if name not in self._as_values:
            return
        if getattr(term, "transform", None) is not None:
            raise SpecError(
                f"'{name}' is used as a value, which has no constraint to transform into", word="transform"
            )
        if isinstance(term, MLP) and term.dim is None:
            module: nn.Module = MLPLayer(term, None, self._scope)
            width = term.hidden[-1]
        elif isinstance(term, Conv):
            module = ConvEncoder(term, None, self._scope)
            width = module.width
        else:
            dim = getattr(term, "dim", None)
            if dim is None:
                raise SpecError(f"'{name}' is used as a value: write its width, {term} with dim=…", node=name)
            width = dim
            real = Target(name, (width,), constraint("real"))
            module = build(_without_dim(term), real, self._scope)
        self.layers[f"{name}:"] = module
        self._scope.parents[name] = Parent("value", width)

    def _draw(self, name: str, node: Node, schema: Schema) -> Draw:
        family, sizes = FAMILIES[node.family], settled_sizes(name, node, schema)
        slots = {key: self._slot(name, node, key, term, family, sizes) for key, term in node.terms().items()}
        for key, least in least_scales(node, family, name, schema).items():
            if not is_table(self.layers[slots[key].layer]):
                self.floors.register_buffer(f"{name}:{key}", least)
        if isinstance(node, Flow):
            check_flow(node, sizes.width)
            self.layers[f"{name}:transforms"] = Transforms(node, sizes.width)
        return Draw(name, node, family, sizes, slots)

    def _slot(self, name: str, node: Node, key: str, term: Term, family: Family, sizes: Sizes) -> Slot:
        shared = isinstance(term, Name) and term.name in self.terms
        if shared:
            layer, term = f"{term.name}:{key}", self.terms[term.name]  # type: ignore[attr-defined]
        else:
            layer = f"{name}:{key}"
        if isinstance(term, Net) and node.discrete and name in self._summed:
            raise SpecError(
                f"{name}.{key}: {term} gives the probabilities of a latent that is summed out, whose categories "
                "are put in order of their weight: nobody knows which of its numbers belong to which; write MLP",
                word="Net",
            )
        target = Target(
            f"{name}.{key}",
            node.own_axes.get(key) or family.axes(key, sizes),
            constraint(node.constraints[key], getattr(term, "transform", None)),
            reference=node.support == "category",
            shareable=node.constraints[key] not in ("covariance", "lower_cholesky") and not sizes.scalar,
            shape=_shape(node),
        )
        if layer not in self.layers:
            self.layers[layer] = build(term, target, self._scope)
            self._targets[layer] = target
        first = self._targets[layer]
        if (first.axes, first.constraint.name) != (target.axes, target.constraint.name):
            raise SpecError(
                f"{target.name} and {first.name} share one named term but differ in shape or constraint: "
                f"{target.axes} {target.constraint.name}, {first.axes} {first.constraint.name}"
            )
        return Slot(layer, term, target.constraint, target)


def _without_dim(term: Any) -> Term:
    return replace(term, dim=None) if isinstance(term, Free | By | Linear | MLP | Net) else term
