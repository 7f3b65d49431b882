"""A term as an `nn.Module`: parents' values in, a parameter's predictor out.

Every layer is called with the values sampled so far, by name, and returns the predictor u of one parameter,
(*batch, *axes), before the transform of its constraint (rule 11). Values of enumerated parents carry batch axes
of their own; layers only ever broadcast over them. `intercept=False` builds a later term of a sum (rule 9).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import singledispatch
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ppl_gen.declare.terms import MLP, By, Free, Linear, Name, Network, Sum, Term, Value
from ppl_gen.errors import SpecError
from ppl_gen.program.constants import written_numbers
from ppl_gen.program.scope import Inputs, Lookup, Scope, Target, Values, affine

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "relu": F.relu,
    "tanh": torch.tanh,
    "sigmoid": torch.sigmoid,
    "softplus": F.softplus,
    "elu": F.elu,
    "gelu": F.gelu,
    "silu": F.silu,
    "leaky_relu": F.leaky_relu,
}


class Constant(nn.Module):
    """Numbers written in the declaration, with the places left free (`Free()` inside a list) learned.

    `linear` numbers are on the linear-predictor scale: they stand in a sum (rule 9).
    """

    value: Tensor
    free: Tensor

    def __init__(self, value: Value, target: Target, linear: bool = False) -> None:
        super().__init__()
        numbers, free = written_numbers(value, target, linear=linear)
        self.register_buffer("value", numbers)
        self.n_free = int(free.sum())
        if self.n_free:
            self.register_buffer("free", free)
            self.table = nn.Parameter(torch.zeros_like(numbers))

    def forward(self, values: Values) -> Tensor:
        """The predictor, with no batch of its own."""
        return torch.where(self.free, self.table, self.value) if self.n_free else self.value


class Table(nn.Module):
    """Free() and By(…): one entry for each combination of the parents' categories, (parents…, *axes)."""

    def __init__(self, term: Free | By, target: Target, scope: Scope, intercept: bool = True) -> None:
        super().__init__()
        self.lookup = Lookup(term.of if isinstance(term, By) else (), scope)
        self.contrast = not intercept
        axes = narrowed(target, term.dim)
        self.ordered = isinstance(term, By) and term.ordered
        if self.ordered and (len(self.lookup.levels) != 1 or math.prod(axes) != 1):
            raise SpecError(
                f"{target.name}: ordered=True wants one parent with one axis and dim 1, and the table is "
                f"{' × '.join(map(str, self.lookup.levels + axes))}",
                word="ordered",
            )
        self.table = nn.Parameter(torch.zeros(*self.lookup.levels, *axes, dtype=torch.float64))

    def entries(self) -> Tensor:
        """The whole table, (parents…, *axes), increasing where the declaration says ordered."""
        table: Tensor = self.table
        if self.ordered:
            table = torch.cat([table[:1], table[1:].exp()]).cumsum(0)
        if self.contrast:  # an intercept stands elsewhere in the sum: the first category is the reference
            table = table - table[(0,) * len(self.lookup.levels)]
        return table

    def forward(self, values: Values) -> Tensor:
        """The entries of the parents' categories."""
        return self.lookup(self.entries(), values)


class LinearLayer(nn.Module):
    """Weight·parents + bias, one of each for every category of `by`."""

    bias: Tensor

    def __init__(self, term: Linear, target: Target, scope: Scope, intercept: bool = True) -> None:
        super().__init__()
        self.inputs = Inputs(term.of, scope, network=False)
        self.lookup = Lookup(term.by, scope)
        self.reference = target.reference
        axes = narrowed(target, term.dim)
        self.own = (*axes[:-1], axes[-1] - 1) if self.reference else axes
        levels, out = self.lookup.levels, math.prod(self.own)
        self.weight = uniform((*levels, out, self.inputs.width), self.inputs.width * caution(target) ** 2)
        self.free_bias = intercept and isinstance(term.bias, Free)
        if self.free_bias:
            self.bias = nn.Parameter(torch.zeros(*levels, out, dtype=torch.float64))
        else:
            written = term.bias if isinstance(term.bias, Value) else Value(0)
            numbers, free = written_numbers(written, target, linear=True, axes=self.own)
            if free.any():
                raise SpecError(f"{target.name}: bias is either Free() or numbers", word="bias")
            self.register_buffer("bias", numbers.reshape(-1))

    def forward(self, values: Values) -> Tensor:
        """The linear predictor, (*batch, *axes)."""
        weight = self.lookup(self.weight, values)
        bias = self.lookup(self.bias, values) if self.free_bias else self.bias
        u = affine(weight, bias, self.inputs(values, weight.dtype)).unflatten(-1, self.own)
        return F.pad(u, (1, 0)) if self.reference else u


class MLPLayer(nn.Module):
    """Hidden layers and a linear output; without `target`, the last hidden layer is the output."""

    def __init__(self, term: MLP, target: Target | None, scope: Scope, intercept: bool = True) -> None:
        super().__init__()
        self.inputs = Inputs(term.of, scope, network=True)
        self.lookup, self.activation = Lookup(term.by, scope), ACTIVATIONS[term.activation]
        self.axes = None if target is None else narrowed(target, term.dim)
        self.n_hidden = len(term.hidden)
        sizes = [self.inputs.width, *term.hidden] + ([] if self.axes is None else [math.prod(self.axes)])
        self.weights, self.biases = nn.ParameterList(), nn.ParameterList()
        for before, after in pairwise(sizes):
            self.weights.append(uniform((*self.lookup.levels, after, before), before))
            self.biases.append(uniform((*self.lookup.levels, after), before))
        if target is not None:
            with torch.no_grad():
                self.weights[-1].div_(caution(target))
        if not intercept:
            self.biases = self.biases[:-1]

    def hidden(self, values: Values) -> Tensor:
        """The last hidden layer, activated: what a named MLP is as a parent."""
        entering: list[Tensor] | None = None
        for i in range(self.n_hidden):
            weight, bias = self._layer(i, values)
            if entering is None:
                entering = self.inputs(values, weight.dtype)
            entering = [self.activation(affine(weight, bias, entering))]
        assert entering is not None
        return entering[0]

    def forward(self, values: Values) -> Tensor:
        """The output layer's predictor, (*batch, *axes)."""
        hidden = self.hidden(values)
        if self.axes is None:
            return hidden
        weight, bias = self._layer(self.n_hidden, values)
        return affine(weight, bias, [hidden]).unflatten(-1, self.axes)

    def _layer(self, i: int, values: Values) -> tuple[Tensor, Tensor | None]:
        weight = self.lookup(self.weights[i], values)
        return weight, self.lookup(self.biases[i], values) if i < len(self.biases) else None


class Offset(nn.Module):
    """A bare name in a parameter: the value itself, with coefficient one."""

    def __init__(self, name: str, target: Target, scope: Scope) -> None:
        super().__init__()
        parent = scope.parents[name]
        if parent.kind == "category" or parent.width not in (1, target.axes[0]) or len(target.axes) > 1:
            raise SpecError(
                f"{target.name} takes {' × '.join(map(str, target.axes))} real value(s), and '{name}' is "
                f"{parent.width} {parent.kind} one(s)",
                word=name,
            )
        self.name = name

    def forward(self, values: Values) -> Tensor:
        """The parent's value."""
        return values[self.name]


class SumLayer(nn.Module):
    """Terms added on the linear-predictor scale, with one intercept in all (rule 9)."""

    def __init__(self, term: Sum, target: Target, scope: Scope) -> None:
        super().__init__()
        intercept, self.terms = True, nn.ModuleList()
        for part in term.terms:
            if isinstance(part, Value):
                self.terms.append(Constant(part, target, linear=True))
            else:
                self.terms.append(build(part, target, scope, intercept))
            intercept = intercept and not _carries_intercept(part)

    def forward(self, values: Values) -> Tensor:
        """The sum of the terms' predictors."""
        total, *others = (term(values) for term in self.terms)
        for other in others:
            total = total + other
        return total


def _carries_intercept(term: Term) -> bool:
    return isinstance(term, Free | By | Network) or (isinstance(term, Linear) and isinstance(term.bias, Free))


@singledispatch
def build(term: Term, target: Target, scope: Scope, intercept: bool = True) -> nn.Module:  # noqa: ARG001
    """The layer of a term for one parameter. One entry a term type.

    Raises SpecError where the term cannot give what the parameter needs.
    """
    raise SpecError(f"{target.name}: {term} is not a term the program can compile")


@build.register
def _(term: Value, target: Target, scope: Scope, intercept: bool = True) -> nn.Module:  # noqa: ARG001
    return Constant(term, target)


@build.register(Free)
@build.register(By)
def _(term: Free | By, target: Target, scope: Scope, intercept: bool = True) -> nn.Module:
    return Table(term, target, scope, intercept)


@build.register
def _(term: Linear, target: Target, scope: Scope, intercept: bool = True) -> nn.Module:
    return LinearLayer(term, target, scope, intercept)


@build.register
def _(term: MLP, target: Target, scope: Scope, intercept: bool = True) -> nn.Module:
    return MLPLayer(term, target, scope, intercept)


@build.register
def _(term: Name, target: Target, scope: Scope, intercept: bool = True) -> nn.Module:  # noqa: ARG001
    return Offset(term.name, target, scope)


@build.register
def _(term: Sum, target: Target, scope: Scope, intercept: bool = True) -> nn.Module:  # noqa: ARG001
    return SumLayer(term, target, scope)


def narrowed(target: Target, dim: int | tuple[int, ...] | None) -> tuple[int, ...]:
    """The axes that a term fills: its first is 1 where one value serves all dimensions."""
    if dim is None or dim == target.axes[0]:
        return target.axes
    if dim != 1 or not target.shareable:
        possible = f"1 or {target.axes[0]}" if target.shareable else f"{target.axes[0]}"
        raise SpecError(f"{target.name}: dim={dim} does not fit; possible: {possible}", word="dim")
    return (1, *target.axes[1:])


def caution(target: Target) -> float:
    """How much smaller than torch's a function's output weights start.

    Through exp, an ordinary start on wide inputs is a scale of e^20: those weights begin near 0.
    """
    return 1.0 if target.constraint.name == "real" else 100.0


def uniform(shape: tuple[int, ...], fan_in: float) -> nn.Parameter:
    """As torch starts its linear layers: uniform in ±1/√fan_in."""
    bound = 1 / math.sqrt(max(fan_in, 1))
    return nn.Parameter(torch.empty(shape, dtype=torch.float64).uniform_(-bound, bound))
