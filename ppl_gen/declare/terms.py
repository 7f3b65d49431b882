"""Terms: how a parameter of a node is obtained.

A parameter is a number or nested list of numbers (`Value`), one of `Free`, `By`, `Linear`, `MLP`, a name, or
a sum of these. Terms are values: frozen, equal when written the same, hashable, and free of arrays. What a
term is a function of is its first argument, the field `of`; all the names it refers to are `parents()`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import KW_ONLY
from typing import TYPE_CHECKING, Annotated, TypeAlias

from pydantic import BeforeValidator

from ppl_gen.declare.arguments import Activation, Categories, Flag, Hidden, NotYet, Parents, Size, Transform
from ppl_gen.declare.declared import declared
from ppl_gen.declare.networks import Conv, Net
from ppl_gen.declare.primitives import (
    Free,
    Name,
    Parameter,
    ParentsLike,
    PriorLike,
    SizeLike,
    Sum,
    Term,
    TermLike,
    Value,
    as_term,
)
from ppl_gen.declare.prior_option import PriorOption
from ppl_gen.errors import SpecError

__all__ = [
    "MLP",
    "TERMS",
    "By",
    "Conv",
    "Free",
    "Function",
    "Linear",
    "Name",
    "Net",
    "Network",
    "Parameter",
    "ParentsLike",
    "SizeLike",
    "Sum",
    "Term",
    "TermLike",
    "Value",
    "as_term",
]


def _weight(value: object) -> Free:
    if value != Free():
        raise SpecError("other than Free() is not supported yet; it is reserved for a later version")
    return Free()


def _bias(value: object) -> Term:
    term = as_term(value)
    if not isinstance(term, Value) and term != Free():
        raise SpecError(f"must be Free() or numbers, as in bias=0, got {term}")
    return term


@declared
class By(Term):
    """A learned table: one value of the parameter for each category, or each combination of categories.

    Args:
        of: the categorical parent or parents; the table's first axes, in the order written.
        entries: reserved.
        dim: 1 for one value that serves all dimensions; None for the node's own.
        ordered: increasing in its one parent (one value a category).
        transform: how unconstrained numbers become the values; None for the constraint's own.
        prior: a distribution of each value, on its natural scale, as Normal(loc=0, scale=10); None: none.

    Example:
        >>> By(["a", "b"], dim=1)
        By([a, b], dim=1)

    """

    of: Parents
    entries: NotYet = None
    _: KW_ONLY
    dim: Size = None
    ordered: Flag = False
    transform: Transform = None
    prior: PriorOption = None

    if TYPE_CHECKING:

        def __init__(
            self,
            of: ParentsLike,
            entries: None = None,
            *,
            dim: SizeLike = None,
            ordered: bool = False,
            transform: str | None = None,
            prior: PriorLike = None,
        ) -> None: ...

    def __post_init__(self) -> None:
        if self.ordered and (self.dim not in (None, 1) or len(self.of) > 1):
            raise SpecError("By(..., ordered=True) has one parent and dim 1", word="ordered")

    def parents(self) -> tuple[str, ...]:
        """The categorical parents, in the order of the table's axes."""
        return self.of


@declared
class Linear(Term):
    """An affine function of its parents: weight times their values, plus bias.

    Args:
        of: the parent or parents; their values are laid side by side.
        by: categorical parents that each weight and bias has its own value for.
        weight: reserved; `Free()`.
        bias: `Free()`, or numbers (`bias=0`: through the origin).
        dim: 1 for one value that serves all dimensions; the width where a named one is used as a value.
        transform: applied to the result; None for the constraint's own.
        prior: a distribution of each weight (the bias has none), as Normal(loc=0, scale=1); None: none.

    Example:
        >>> Linear("u", by="z", bias=0)
        Linear(u, by=z, bias=0)

    """

    of: Parents
    _: KW_ONLY
    by: Categories = ()
    weight: Annotated[Term, BeforeValidator(_weight)] = Free()
    bias: Annotated[Term, BeforeValidator(_bias)] = Free()
    dim: Size = None
    transform: Transform = None
    prior: PriorOption = None

    if TYPE_CHECKING:

        def __init__(
            self,
            of: ParentsLike,
            *,
            by: ParentsLike = (),
            weight: TermLike = ...,
            bias: TermLike = ...,
            dim: SizeLike = None,
            transform: str | None = None,
            prior: PriorLike = None,
        ) -> None: ...

    def parents(self) -> tuple[str, ...]:
        """What enters, then the categories; each once."""
        return tuple(dict.fromkeys(self.of + self.by))


@declared
class MLP(Term):
    """A neural network: hidden layers with an activation between them, and a linear output.

    Args:
        of: the parent or parents; their values are laid side by side.
        hidden: the sizes of the hidden layers, at least one.
        activation: relu, tanh, sigmoid, softplus, elu, gelu, silu or leaky_relu.
        by: categorical parents that have a network each.
        dim: 1 for one value that serves all dimensions; None for the node's own.
        transform: applied to the result; None for the constraint's own.

    Example:
        >>> MLP(["z", "u"], [256, 64], activation="tanh")
        MLP([z, u], [256, 64], activation="tanh")

    """

    of: Parents
    hidden: Hidden
    _: KW_ONLY
    activation: Activation = "relu"
    by: Categories = ()
    dim: Size = None
    transform: Transform = None

    if TYPE_CHECKING:

        def __init__(
            self,
            of: ParentsLike,
            hidden: Sequence[int],
            *,
            activation: str = "relu",
            by: ParentsLike = (),
            dim: SizeLike = None,
            transform: str | None = None,
        ) -> None: ...

    def parents(self) -> tuple[str, ...]:
        """What enters, then the categories; each once."""
        return tuple(dict.fromkeys(self.of + self.by))


Network: TypeAlias = MLP | Conv | Net
Function: TypeAlias = (
    Linear | Network
)  # of the values of its parents, `of`, perhaps one for each category of `by`

TERMS: dict[str, type[Term]] = {cls.__name__: cls for cls in (Free, By, Linear, MLP, Conv, Net, Sum)}
