"""What all nodes share: parameters in use, checks at construction, parents, width, and printing."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from typing import Annotated, Any, ClassVar, Literal, Self, TypeAlias

from pydantic import BeforeValidator

from ppl_gen.declare.constraints import check_parameter
from ppl_gen.declare.declared import Declared, options
from ppl_gen.declare.terms import Free, Term, as_term
from ppl_gen.errors import SpecError

Support: TypeAlias = Literal["real", "positive", "boolean", "category", "count", "given"]


def _one_way(value: object) -> Term | None:
    return None if value is None else as_term(value)


OneWay: TypeAlias = Annotated[Term | None, BeforeValidator(_one_way)]


class Node(Declared):
    """A distribution (or an `Input`), each of its parameters obtained by a term."""

    family: ClassVar[str] = "Node"
    support: ClassVar[Support] = "real"
    discrete: ClassVar[bool] = False
    constraints: ClassVar[dict[str, str]] = {}
    # Two ways of writing one parameter: the first is meant where neither is written.
    either: ClassVar[tuple[str, str] | None] = None
    # Parameters that are one number for all dimensions.
    single: ClassVar[frozenset[str]] = frozenset()
    # The range that EM keeps a positive parameter in.
    bounds: ClassVar[dict[str, tuple[float, float]]] = {}
    # A density in NumPy, of a family that is not the library's own.
    log_density: ClassVar[Callable[..., Any] | None] = None
    # Whether it stands in a guide alone.
    guide_only: ClassVar[bool] = False
    dim: int | tuple[int, ...] | None

    def __init_subclass__(cls) -> None:
        cls.family = cls.__name__

    def __post_init__(self) -> None:
        if self.either is not None:
            first, second = self.either
            if getattr(self, first) is not None and getattr(self, second) is not None:
                raise SpecError(f"{self.family} takes {first} or {second}, not both", word=second)
            if getattr(self, first) is None and getattr(self, second) is None:
                object.__setattr__(self, first, Free())  # the one value a frozen node completes by itself
        for name, term in self.terms().items():
            constraint = self.constraints[name]
            try:
                check_parameter(term, constraint, self.dim, self._axis(name))
            except SpecError as error:
                raise SpecError(f"{self.family}'s {name} {error}", word=name) from None

    @property
    def own_axes(self) -> dict[str, tuple[int, ...]]:
        """The axes of parameters that are not one number for each of the node's dimensions."""
        return {}

    def _axis(self, parameter: str) -> int | None:
        """The number of categories where this parameter has one number for each."""
        del parameter
        return None

    def terms(self) -> dict[str, Term]:
        """The parameters in use and their terms, in the family's order.

        Example:
            >>> from ppl_gen.declare.nodes import Categorical, Normal
            >>> Normal(2, loc="m").terms()
            {'loc': m, 'scale': Free()}
            >>> Categorical(3).terms()
            {'probs': Free()}

        """
        found = {name: getattr(self, name) for name in self.constraints}
        return {name: term for name, term in found.items() if term is not None}

    def with_terms(self, terms: Mapping[str, Term]) -> Self:
        """The same family and size with other terms; a parameter left out is free.

        Args:
            terms: parameter → term.

        Example:
            >>> from ppl_gen.declare.nodes import Normal
            >>> Normal(2, loc="m").with_terms({"scale": Free()})
            Normal(2)

        """
        kept = {name: getattr(self, name) for name in options(type(self)) if name not in self.constraints}
        return type(self)(**kept, **terms)

    def parents(self) -> tuple[str, ...]:
        """The names its parameters refer to, each once, in order."""
        return unique(name for term in self.terms().values() for name in term.parents())

    @property
    def width(self) -> int | None:
        """Number of scalar cells of a value; None where it is left to the data."""
        return math.prod(self.dim) if isinstance(self.dim, tuple) else self.dim

    def _left_out(self, name: str, value: object, default: object) -> bool:
        # A free parameter is understood; beside others it is written, so that "tied" can be seen.
        if name in self.constraints:
            other_way = self.either is not None and getattr(self, self.either[1]) is not None
            return value is None or (not other_way and all(term == Free() for term in self.terms().values()))
        return bool(value == default)


def unique(names: Iterable[str]) -> tuple[str, ...]:
    """The names in order of first appearance."""
    return tuple(dict.fromkeys(names))
