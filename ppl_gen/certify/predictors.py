"""The terms of a declaration in NumPy: a parameter before its transform, from the language's rules.

This is the certificate's own reading of the language. It shares the numbers with the compiled program, and
not one line of its layers. Values are arrays whose last batch axis is rows; whatever stands before it (draws,
values of enumerated latents) only ever broadcasts.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import singledispatchmethod
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.special import erf, expit

from ppl_gen.certify.convolution import by_channel, decoded, encoded
from ppl_gen.data.schema import Schema
from ppl_gen.declare.images import image_of
from ppl_gen.declare.nodes import Input, Node
from ppl_gen.declare.terms import MLP, By, Conv, Free, Linear, Name, Net, Sum, Term, Value
from ppl_gen.errors import FitError, SpecError

Array = npt.NDArray[Any]
Values = Mapping[str, Array]


class SecondOpinionError(FitError):
    """NumPy has no reading of something: what Pyro says of it cannot be held against anything."""


ACTIVATIONS: dict[str, Callable[[Array], Array]] = {
    "relu": lambda a: np.maximum(a, 0),
    "tanh": np.tanh,
    "sigmoid": expit,
    "softplus": lambda a: np.logaddexp(a, 0),
    "elu": lambda a: np.where(a > 0, a, np.expm1(np.minimum(a, 0))),
    "gelu": lambda a: 0.5 * a * (1 + erf(a / np.sqrt(2))),
    "silu": lambda a: a * expit(a),
    "leaky_relu": lambda a: np.where(a > 0, a, 0.01 * a),
}


@dataclass(frozen=True)
class Place:
    """Where a term stands: the path of its numbers, the axes it fills, and what it may carry there.

    `axes` are the dimension axis and the parameter's own; `reference` says that a Linear leaves out the first
    of the last axis (rule 12), `intercept` that no earlier term of a sum carries one (rule 9), and
    `node` is the one whose parameter it gives.
    """

    path: str
    axes: tuple[int, ...]
    reference: bool = False
    intercept: bool = True
    node: Node | None = None


class Predictors:
    """The terms of a model or a guide, as functions of the values of the names above them.

    Args:
        entries: the declared nodes and terms, in order.
        nodes: the nodes of the model, for what the entries do not declare themselves.
        schema: sizes, and the moments that centre what a network sees.
        numbers: the learned numbers by path.
        path: what all paths begin with.

    """

    def __init__(
        self,
        entries: Mapping[str, Node | Term],
        nodes: Mapping[str, Node],
        schema: Schema,
        numbers: Mapping[str, Array],
        path: str,
    ) -> None:
        self.entries, self.nodes, self.schema = entries, nodes, schema
        self.numbers, self.path = numbers, path

    def of_parameter(self, name: str, key: str, term: Term, axes: tuple[int, ...], values: Values) -> Array:
        """The predictor of a node's parameter, (…, *axes); a named term stands as if written there."""
        owner = name
        if isinstance(term, Name) and isinstance(self.entries.get(term.name), Term):
            owner, term = term.name, self.entries[term.name]  # type: ignore[assignment]
        reference = self.node(name).support == "category"
        place = Place(f"{self.path}.layers.{owner}:{key}", axes, reference, node=self.node(name))
        return self.predict(term, place, values)

    def node(self, name: str) -> Node:
        """The node of that name: this half's own, or the model's."""
        entry = self.entries.get(name, self.nodes.get(name))
        assert isinstance(entry, Node)
        return entry

    def is_scalar(self, name: str) -> bool:
        """Whether the node's values are categories without an axis of their own."""
        node = self.node(name)
        if isinstance(node, Input):
            return name in self.schema.k and node.dim is None and self.schema.dims[name] == 1
        return node.support == "category" and node.dim is None and self.schema.dims[name] == 1

    def value(self, name: str, values: Values) -> Array:
        """What a name is as a parent: a node's value, or a named term's (rule 7)."""
        term = self.entries.get(name)
        if not isinstance(term, Term):
            return values[name]
        path = f"{self.path}.layers.{name}:"
        if isinstance(term, MLP) and term.dim is None:
            return self._hidden(term, path, values)
        if isinstance(term, Conv):
            return self._features(term, path, values)
        dim = getattr(term, "dim", None)
        if dim is None:
            raise SpecError(f"'{name}' is used as a value: write its width, {term} with dim=…", node=name)
        return self.predict(term, Place(path, (math.prod(np.atleast_1d(dim)),)), values)

    @singledispatchmethod
    def predict(self, term: Term, place: Place, values: Values) -> Array:
        """The predictor of a term, (…, *axes); an axis may be 1 where one value serves all dimensions."""
        raise SpecError(f"{term} is not a term that can be evaluated")

    @predict.register
    def _(self, term: Value, place: Place, values: Values) -> Array:
        # Only within a sum, where a number is an offset of the linear predictor.
        return np.broadcast_to(np.asarray(term.value, dtype=np.float64), place.axes)

    @predict.register(Free)
    @predict.register(By)
    def _(self, term: Free | By, place: Place, values: Values) -> Array:
        table = self.numbers[f"{place.path}.table"]
        parents = term.of if isinstance(term, By) else ()
        if isinstance(term, By) and term.ordered:
            table = np.cumsum(np.concatenate([table[:1], np.exp(table[1:])]), axis=0)
        if not place.intercept:
            depth = sum(len(self._levels(parent)) for parent in parents)
            table = table - table[(0,) * depth]
        return self._look_up(table, parents, values)

    @predict.register
    def _(self, term: Linear, place: Place, values: Values) -> Array:
        axes = (*place.axes[:-1], place.axes[-1] - 1) if place.reference else place.axes
        axes = _narrowed(axes, term.dim)
        weight = self._look_up(self.numbers[f"{place.path}.weight"], term.by, values)
        predictor = _product(weight, self._entering(term.of, values, network=False))
        if isinstance(term.bias, Value):
            bias = np.broadcast_to(np.asarray(term.bias.value, dtype=np.float64), axes).reshape(-1)
            predictor = predictor + bias
        elif place.intercept:
            predictor = predictor + self._look_up(self.numbers[f"{place.path}.bias"], term.by, values)
        predictor = predictor.reshape(*predictor.shape[:-1], *axes)
        if place.reference:
            predictor = np.concatenate([np.zeros_like(predictor[..., :1]), predictor], axis=-1)
        return predictor

    @predict.register
    def _(self, term: MLP, place: Place, values: Values) -> Array:
        hidden = self._hidden(term, place.path, values)
        axes = _narrowed(place.axes, term.dim)
        predictor = self._layer(term, place.path, len(term.hidden), hidden, values, bias=place.intercept)
        return predictor.reshape(*predictor.shape[:-1], *axes)

    @predict.register
    def _(self, term: Conv, place: Place, values: Values) -> Array:
        numbers, last = self._numbers(place.path), len(term.channels)
        if self._image(term) is not None:
            out = self._features(term, place.path, values) @ numbers("weights", last).T
            out = out + numbers("biases", last) if place.intercept else out
            return np.asarray(out.reshape(*out.shape[:-1], *place.axes))
        image = image_of(getattr(place.node, "dim", None))
        assert image is not None
        u = self._entering(term.of, values, network=True) @ numbers("weights", 0).T + numbers("biases", 0)
        cells = decoded(term, image, u, numbers, ACTIVATIONS[term.activation], bias=place.intercept)
        return cells.reshape(*cells.shape[:-2], *place.axes)

    @predict.register
    def _(self, term: Net, place: Place, values: Values) -> Array:
        raise SecondOpinionError(f"{term} is a network of your own, which nothing is held against")

    @predict.register
    def _(self, term: Name, place: Place, values: Values) -> Array:
        return self.value(term.name, values)

    @predict.register
    def _(self, term: Sum, place: Place, values: Values) -> Array:
        total, intercept = np.zeros(()), True
        for position, part in enumerate(term.terms):
            inner = Place(
                f"{place.path}.terms.{position}", place.axes, place.reference, intercept, place.node
            )
            total = total + self.predict(part, inner, values)
            carries = isinstance(part, Free | By | MLP | Conv)
            intercept = intercept and not (carries or (isinstance(part, Linear) and part.bias == Free()))
        return total

    def _hidden(self, term: MLP, path: str, values: Values) -> Array:
        out = self._entering(term.of, values, network=True)
        for position in range(len(term.hidden)):
            out = ACTIVATIONS[term.activation](self._layer(term, path, position, out, values, bias=True))
        return out

    def _layer(
        self, term: MLP, path: str, position: int, entering: Array, values: Values, *, bias: bool
    ) -> Array:
        weight = self._look_up(self.numbers[f"{path}.weights.{position}"], term.by, values)
        out = _product(weight, entering)
        if bias:
            out = out + self._look_up(self.numbers[f"{path}.biases.{position}"], term.by, values)
        return out

    def _image(self, term: Conv) -> tuple[int, int, int] | None:
        """Of a Conv that leads from an image, that image."""
        node = self.entries.get(term.of[0], self.nodes.get(term.of[0]))
        return image_of(getattr(node, "dim", None))

    def _numbers(self, path: str) -> Callable[[str, int], Array]:
        return lambda kind, i: self.numbers[f"{path}.{kind}.{i}"]

    def _features(self, term: Conv, path: str, values: Values) -> Array:
        """A Conv of an image up to its last convolution; reals enter in units of their channel."""
        (name,), image, schema = term.of, self._image(term), self.schema
        assert image is not None
        if name in schema.centre:
            centre, spread = by_channel(schema.centre[name], schema.spread[name], image[0])
            own = {"centre": schema.centre | {name: centre}, "spread": schema.spread | {name: spread}}
            schema = replace(schema, **own)  # type: ignore[arg-type]
        alike = Predictors(self.entries, self.nodes, schema, self.numbers, self.path)
        entering = alike._entering((name,), values, network=True)
        marks = schema.dims[name] * (name in schema.holes)
        return encoded(term, image, entering, marks, self._numbers(path), ACTIVATIONS[term.activation])

    def _levels(self, name: str) -> tuple[int, ...]:
        """The axes of a table indexed by this categorical parent."""
        return (self.schema.k.get(name, 2),) * self.schema.dims[name]

    def _look_up(self, table: Array, parents: tuple[str, ...], values: Values) -> Array:
        """The entries of a table (levels…, rest) for the parents' categories, (…, rest)."""
        index: list[Array] = []
        for name in parents:
            codes = np.asarray(values[name]).astype(np.int64)
            index += [codes] if self.is_scalar(name) else list(np.moveaxis(codes, -1, 0))
        return np.asarray(table[tuple(index)] if index else table)

    def _entering(self, names: tuple[str, ...], values: Values, *, network: bool) -> Array:
        """What enters a function, side by side (rule 13)."""
        parts = [self._one_entering(name, values, network) for name in names]
        batch = np.broadcast_shapes(*(part.shape[:-1] for part in parts))
        return np.concatenate([np.broadcast_to(p, (*batch, p.shape[-1])) for p in parts], axis=-1)

    def _one_entering(self, name: str, values: Values, network: bool) -> Array:
        if name not in self.schema.holes or isinstance(self.entries.get(name), Term):
            return self._whole_entering(name, values, network)
        value = np.asarray(values[name])
        if self.node(name).support == "category":
            seen = value >= 0
            seen = seen[..., None] if self.is_scalar(name) else seen
            return np.concatenate([self._whole_entering(name, values, network), seen], axis=-1)
        seen = ~np.isnan(value)
        entering = self._whole_entering(name, {**values, name: np.where(seen, value, 1.0)}, network)
        return np.concatenate([np.where(seen, entering, 0.0), seen], axis=-1)

    def _whole_entering(self, name: str, values: Values, network: bool) -> Array:
        value = self.value(name, values)
        if isinstance(self.entries.get(name), Term):
            return value
        node = self.node(name)
        if node.support == "category" or (isinstance(node, Input) and name in self.schema.k):
            codes = value[..., None] if self.is_scalar(name) else value
            one_hot = codes[..., None] == np.arange(0 if network else 1, self.schema.k[name])
            return np.asarray(one_hot.reshape(*one_hot.shape[:-2], -1), dtype=np.float64)
        if network and node.support == "count":
            return np.asarray(np.log1p(value))
        if network and node.support in ("real", "positive", "given") and name in self.schema.columns:
            return np.asarray((value - self.schema.centre[name]) / np.array(self.schema.spread[name]))
        return value


def _narrowed(axes: tuple[int, ...], dim: int | tuple[int, ...] | None) -> tuple[int, ...]:
    """The axes a term fills: `dim=1` is one value for all dimensions."""
    return (1, *axes[1:]) if dim == 1 else axes


def _product(weight: Array, entering: Array) -> Array:
    """W x for weights (…, out, in) and inputs (…, in)."""
    if weight.ndim == 2:
        return np.asarray(entering @ weight.T)
    return np.asarray((weight @ entering[..., None])[..., 0])
