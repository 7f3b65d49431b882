"""The terms that are no function of anything: numbers, a name, a free value; and sums of terms."""

from __future__ import annotations

import math
import numbers
from collections.abc import Iterator, Sequence
from dataclasses import KW_ONLY, dataclass
from typing import TYPE_CHECKING, Annotated, Any, TypeAlias, Union

from pydantic import BeforeValidator

from ppl_gen.declare import arguments
from ppl_gen.declare.arguments import Size, Transform, shown
from ppl_gen.declare.declared import Declared, declared, written
from ppl_gen.declare.prior_option import PriorOption
from ppl_gen.declare.priors import Prior
from ppl_gen.errors import SpecError

MAX_NESTING = 8

# What may be written where a term, a size or parents are expected.
TermLike: TypeAlias = Union["Term", str, float, Sequence[Any]]
SizeLike: TypeAlias = int | Sequence[int] | None
PriorLike: TypeAlias = Declared | None  # a prior, or the node of its name with numbers
ParentsLike: TypeAlias = Union[str, "Name", Sequence[Union[str, "Name"]]]


class Term(Declared):
    """How a parameter is obtained. `a + b` adds two terms on the linear-predictor scale.

    Example:
        >>> Free() + "log_hours" + 1
        Free() + log_hours + 1

    """

    def parents(self) -> tuple[str, ...]:
        """The names the term refers to, in the order written."""
        return ()

    def __add__(self, other: TermLike) -> Sum:
        return Sum(self, other)

    def __radd__(self, other: TermLike) -> Sum:
        return Sum(other, self)


def as_term(value: object) -> Term:
    """Read what stands for a parameter: numbers and lists become a `Value`, a text a `Name`.

    Args:
        value: a term, a number, a nested list (or array) of numbers, or a name.

    Raises:
        SpecError: for anything else; the message says what may stand there.

    Example:
        >>> as_term([0, 0.5]), as_term("h"), as_term(Free())
        ([0, 0.5], h, Free())

    """
    if isinstance(value, Term):
        return value
    if isinstance(value, str):
        return Name(value)
    if isinstance(value, Prior):
        raise SpecError(f"must be a term, got the prior {value}; write it as in Free(prior=...)")
    if isinstance(value, Declared):
        raise SpecError(f"must be a term, got the node {value}; give it a line and a name of its own")
    try:
        return Value(value)
    except SpecError as error:
        if isinstance(value, numbers.Real | list | tuple) and not isinstance(value, bool):
            raise SpecError(str(error).removeprefix("Value's value ")) from None
        kinds = (
            "a number, a list of numbers, Free(), By(...), Linear(...), MLP(...), Conv(...), Net(...), a name or "
            "a sum of these"
        )
        raise SpecError(f"must be {kinds}, got {shown(value)}") from None


def _nested(value: object, depth: int = 0) -> Any:
    if hasattr(value, "tolist"):  # an array, of whatever library
        value = value.tolist()
    if isinstance(value, Value):
        return value.value
    if isinstance(value, Free) and depth and value == Free():
        return value
    if isinstance(value, list | tuple):
        if depth == MAX_NESTING:
            raise SpecError(f"must not be nested deeper than {MAX_NESTING} lists")
        if not value:
            raise SpecError("must not hold an empty list")
        return tuple(_nested(item, depth + 1) for item in value)
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        raise SpecError(f"must be a number, or a nested list of numbers and Free(), got {shown(value)}")
    try:
        finite = math.isfinite(value)
    except OverflowError:
        finite = False
    if not finite:
        raise SpecError(f"must be finite, got {shown(value)}")
    return int(value) if isinstance(value, numbers.Integral) else float(value)


def _shape(value: object) -> tuple[int, ...]:
    if not isinstance(value, tuple):
        return ()
    inner = {_shape(item) for item in value}
    if len(inner) > 1:
        raise SpecError(f"must have rows of one length, got {shown(list(value))}")
    return (len(value), *inner.pop())


def _value(value: object) -> Any:
    nested = _nested(value)
    _shape(nested)
    return nested


Parameter: TypeAlias = Annotated[Term, BeforeValidator(as_term)]


@declared
class Value(Term):
    """Numbers written out: one, or a nested list; a `Free()` inside is learned.

    Args:
        value: the number or the nested list (kept as nested tuples), broadcast to the parameter's shape.

    Example:
        >>> Value([[1, 0], [0.5, Free()]]), Value([[1, 0], [0.5, Free()]]).shape
        ([[1, 0], [0.5, Free()]], (2, 2))

    """

    value: Annotated[Any, BeforeValidator(_value)]

    @property
    def shape(self) -> tuple[int, ...]:
        """Lengths of the nested lists, outermost first; () for one number."""
        return _shape(self.value)

    def cells(self) -> Iterator[float | Free]:
        """The numbers, last axis fastest."""
        stack: list[Any] = [self.value]
        while stack:
            item = stack.pop()
            if isinstance(item, tuple):
                stack.extend(reversed(item))
            else:
                yield item

    def __repr__(self) -> str:
        """The numbers themselves, as they are written."""
        return written(self.value)


@declared
class Name(Term):
    """A name on its own: a node's value, or a named term as if written here.

    Example:
        >>> Name("h")
        h

    """

    name: Annotated[str, BeforeValidator(arguments.identifier)]

    def parents(self) -> tuple[str, ...]:
        """The name itself."""
        return (self.name,)

    def bare_name(self) -> str:
        """The name."""
        return self.name

    def __repr__(self) -> str:
        """The name, bare."""
        return self.name


@declared
class Free(Term):
    """A learned value of the parameter's own shape, on its natural scale; what a parameter left out is.

    Args:
        dim: 1 for one value that serves all dimensions; None for the node's own.
        transform: how an unconstrained number becomes the value; None for the constraint's own.
        prior: a distribution of the value, as Normal(loc=0, scale=10), on its natural scale; None: none.

    Example:
        >>> Free(dim=1)
        Free(dim=1)

    """

    _: KW_ONLY
    dim: Size = None
    transform: Transform = None
    prior: PriorOption = None

    if TYPE_CHECKING:

        def __init__(
            self, *, dim: SizeLike = None, transform: str | None = None, prior: PriorLike = None
        ) -> None: ...


@dataclass(frozen=True, init=False, repr=False)
class Sum(Term):
    """Two or more terms added on the linear-predictor scale, with one intercept in all.

    Args:
        terms: what is added; sums among them are opened up, so that a sum is flat.

    Example:
        >>> Sum("a", "b"), Sum("a", "b").parents()
        (a + b, ('a', 'b'))

    """

    terms: tuple[Term, ...]

    def __init__(self, *terms: TermLike) -> None:
        if len(terms) < 2:
            raise SpecError(f"Sum adds at least two terms, got {len(terms)}", word="Sum")
        try:
            read = [as_term(term) for term in terms]
        except SpecError as error:
            raise SpecError(f"what is added {error}", word=error.word) from None
        flat = tuple(part for term in read for part in (term.terms if isinstance(term, Sum) else (term,)))
        object.__setattr__(self, "terms", flat)
        self.transform  # noqa: B018  two that contradict each other are told here

    @property
    def transform(self) -> str | None:
        """The one transform the parts name, applied to the sum; None for the constraint's own."""
        named = {getattr(part, "transform", None) for part in self.terms} - {None}
        if len(named) > 1:
            raise SpecError(f"the parts of {self} name different transforms; a sum has one", word="transform")
        return named.pop() if named else None

    def parents(self) -> tuple[str, ...]:
        """The names the parts refer to, each once."""
        return tuple(dict.fromkeys(name for part in self.terms for name in part.parents()))

    def __repr__(self) -> str:
        """The parts with + between them."""
        return " + ".join(map(str, self.terms))
