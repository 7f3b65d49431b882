"""Discrete families: yes or no, categories, counts."""

from __future__ import annotations

from dataclasses import KW_ONLY
from typing import TYPE_CHECKING, ClassVar

from ppl_gen.declare.arguments import Levels, NotYet, Size
from ppl_gen.declare.declared import declared
from ppl_gen.declare.node import Node, OneWay, Support
from ppl_gen.declare.terms import Free, Name, Parameter, SizeLike, Term, TermLike, Value
from ppl_gen.errors import SpecError

__all__ = ["Bernoulli", "Binomial", "Categorical", "NegativeBinomial", "Poisson"]


@declared
class Bernoulli(Node):
    """Yes or no, independent dimensions given the parents.

    Args:
        dim: the number of dimensions, or a list of sizes; None: left to the data.
        probs: probability of 1.
        logits: its log-odds, in place of probs.
        per: reserved.

    Example:
        >>> from ppl_gen.declare.terms import MLP
        >>> Bernoulli(784, logits=MLP("z", [256]))
        Bernoulli(784, logits=MLP(z, [256]))

    """

    dim: Size = None
    _: KW_ONLY
    probs: OneWay = None
    logits: OneWay = None
    per: NotYet = None
    support: ClassVar[Support] = "boolean"
    discrete: ClassVar[bool] = True
    constraints: ClassVar[dict[str, str]] = {"probs": "unit_interval", "logits": "real"}
    either: ClassVar[tuple[str, str] | None] = ("probs", "logits")

    if TYPE_CHECKING:

        def __init__(
            self,
            dim: SizeLike = None,
            *,
            probs: TermLike | None = None,
            logits: TermLike | None = None,
            per: None = None,
        ) -> None: ...


@declared
class Categorical(Node):
    """One of k categories; with `dim`, that many items at once.

    Args:
        k: the number of categories; None: left to the data.
        dim: the number of items; None: one scalar, or as many as an observed node has columns.
        probs: probabilities, summing to 1 over the categories.
        logits: their logarithms up to a constant, in place of probs.
        per: reserved.

    Example:
        >>> from ppl_gen.declare.terms import By
        >>> Categorical(2, dim=7, probs=By("z"))
        Categorical(2, dim=7, probs=By(z))

    """

    k: Levels = None
    _: KW_ONLY
    dim: Size = None
    probs: OneWay = None
    logits: OneWay = None
    per: NotYet = None
    support: ClassVar[Support] = "category"
    discrete: ClassVar[bool] = True
    constraints: ClassVar[dict[str, str]] = {"probs": "simplex", "logits": "real"}
    either: ClassVar[tuple[str, str] | None] = ("probs", "logits")

    if TYPE_CHECKING:

        def __init__(
            self,
            k: int | None = None,
            *,
            dim: SizeLike = None,
            probs: TermLike | None = None,
            logits: TermLike | None = None,
            per: None = None,
        ) -> None: ...

    def _axis(self, parameter: str) -> int | None:
        del parameter
        return self.k

    @property
    def width(self) -> int | None:
        """Number of items: dim, and 1 without it."""
        return 1 if self.dim is None else super().width


@declared
class Poisson(Node):
    """Counts, independent dimensions given the parents.

    Args:
        dim: the number of dimensions, or a list of sizes; None: left to the data.
        rate: mean; positive.
        per: reserved.

    Example:
        >>> from ppl_gen.declare.terms import By
        >>> Poisson(rate=By("z"))
        Poisson(rate=By(z))

    """

    dim: Size = None
    _: KW_ONLY
    rate: Parameter = Free()
    per: NotYet = None
    support: ClassVar[Support] = "count"
    discrete: ClassVar[bool] = True
    constraints: ClassVar[dict[str, str]] = {"rate": "positive"}

    if TYPE_CHECKING:

        def __init__(self, dim: SizeLike = None, *, rate: TermLike = ..., per: None = None) -> None: ...


@declared
class Binomial(Node):
    """Successes among total_count trials, independent dimensions given the parents.

    Args:
        dim: the number of dimensions, or a list of sizes; None: left to the data.
        total_count: the number of trials: written, or the name of what has it for every row, as an `Input`.
        probs: probability of success.
        logits: its log-odds, in place of probs.
        per: reserved.

    Raises:
        SpecError: total_count is left out, or is anything else: it is not learned.

    Example:
        >>> from ppl_gen.declare.terms import By
        >>> Binomial(5, total_count=20, probs=By("z")), Binomial(total_count="n")
        (Binomial(5, total_count=20, probs=By(z)), Binomial(total_count=n, probs=Free()))

    """

    dim: Size = None
    _: KW_ONLY
    total_count: Parameter
    probs: OneWay = None
    logits: OneWay = None
    per: NotYet = None
    support: ClassVar[Support] = "count"
    discrete: ClassVar[bool] = True
    constraints: ClassVar[dict[str, str]] = {
        "total_count": "count",
        "probs": "unit_interval",
        "logits": "real",
    }
    either: ClassVar[tuple[str, str] | None] = ("probs", "logits")

    if TYPE_CHECKING:

        def __init__(
            self,
            dim: SizeLike = None,
            *,
            total_count: TermLike,
            probs: TermLike | None = None,
            logits: TermLike | None = None,
            per: None = None,
        ) -> None: ...

    def __post_init__(self) -> None:
        if not _is_total(self.total_count):
            raise SpecError(
                "Binomial's total_count must be whole numbers from 1, or the name of an Input that has one for "
                f"every row, got {self.total_count}",
                word="total_count",
            )
        super().__post_init__()


@declared
class NegativeBinomial(Node):
    """Counts with more spread than Poisson's; the mean is total_count·probs/(1 − probs).

    Args:
        dim: the number of dimensions, or a list of sizes; None: left to the data.
        total_count: positive, whole or not: the smaller, the wider; without end, Poisson's law.
        probs: probability of a success, of which total_count failures are waited for.
        logits: its log-odds, in place of probs: the log of the mean over total_count.
        per: reserved.

    Example:
        >>> from ppl_gen.declare.terms import By
        >>> NegativeBinomial(total_count=By("z"), probs=By("z"))
        NegativeBinomial(total_count=By(z), probs=By(z))

    """

    dim: Size = None
    _: KW_ONLY
    total_count: Parameter = Free()
    probs: OneWay = None
    logits: OneWay = None
    per: NotYet = None
    support: ClassVar[Support] = "count"
    discrete: ClassVar[bool] = True
    constraints: ClassVar[dict[str, str]] = {
        "total_count": "positive",
        "probs": "unit_interval",
        "logits": "real",
    }
    either: ClassVar[tuple[str, str] | None] = ("probs", "logits")

    if TYPE_CHECKING:

        def __init__(
            self,
            dim: SizeLike = None,
            *,
            total_count: TermLike = ...,
            probs: TermLike | None = None,
            logits: TermLike | None = None,
            per: None = None,
        ) -> None: ...


def _is_total(term: Term) -> bool:
    if isinstance(term, Value):
        return all(not isinstance(n, Free) and n >= 1 and n == int(n) for n in term.cells())
    return isinstance(term, Name)
