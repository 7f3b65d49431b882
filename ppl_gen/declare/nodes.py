"""Nodes: one small class a family, with its support and the constraint of each parameter.

The first argument is the size, everything else is by keyword. A parameter left out is `Free()`. Where a
parameter can be written in two ways (probs or logits, cov or scale_tril), one of them is in use.
"""

from __future__ import annotations

from dataclasses import KW_ONLY
from typing import TYPE_CHECKING, ClassVar

from ppl_gen.declare.arguments import Levels, NotYet, Size
from ppl_gen.declare.declared import declared
from ppl_gen.declare.node import Node, OneWay, Support
from ppl_gen.declare.terms import TERMS, Free, Parameter, SizeLike, TermLike
from ppl_gen.errors import SpecError

__all__ = [
    "NODES",
    "RESERVED",
    "WORDS",
    "Bernoulli",
    "Categorical",
    "Input",
    "MultivariateNormal",
    "Node",
    "Normal",
    "Poisson",
]


@declared
class Normal(Node):
    """Normal, independent dimensions given the parents.

    Args:
        dim: the number of dimensions, or a list of sizes; None: left to the data.
        loc: mean; real.
        scale: standard deviation; positive.
        per: reserved.

    Example:
        >>> from ppl_gen.declare.terms import By
        >>> Normal(2, loc=By("z"))
        Normal(2, loc=By(z), scale=Free())

    """

    dim: Size = None
    _: KW_ONLY
    loc: Parameter = Free()
    scale: Parameter = Free()
    per: NotYet = None
    constraints: ClassVar[dict[str, str]] = {"loc": "real", "scale": "positive"}

    if TYPE_CHECKING:

        def __init__(
            self, dim: SizeLike = None, *, loc: TermLike = ..., scale: TermLike = ..., per: None = None
        ) -> None: ...


@declared
class MultivariateNormal(Node):
    """Normal with a full covariance, written as `cov` or as its Cholesky factor `scale_tril`.

    Args:
        dim: the number of dimensions; None: left to the data.
        loc: mean; real.
        cov: covariance; a number c stands for c·I.
        scale_tril: lower triangular with positive diagonal, in place of cov.
        per: reserved.

    Example:
        >>> from ppl_gen.declare.terms import By
        >>> MultivariateNormal(loc=By("z"), cov=Free())
        MultivariateNormal(loc=By(z), cov=Free())

    """

    dim: Size = None
    _: KW_ONLY
    loc: Parameter = Free()
    cov: OneWay = None
    scale_tril: OneWay = None
    per: NotYet = None
    constraints: ClassVar[dict[str, str]] = {
        "loc": "real",
        "cov": "covariance",
        "scale_tril": "lower_cholesky",
    }
    either: ClassVar[tuple[str, str] | None] = ("cov", "scale_tril")

    if TYPE_CHECKING:

        def __init__(
            self,
            dim: SizeLike = None,
            *,
            loc: TermLike = ...,
            cov: TermLike | None = None,
            scale_tril: TermLike | None = None,
            per: None = None,
        ) -> None: ...

    def __post_init__(self) -> None:
        if isinstance(self.dim, tuple):
            raise SpecError("MultivariateNormal's dim must be one number, not a list", word="dim")
        super().__post_init__()


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
class Input(Node):
    """Given with every row, never modelled; real unless `k` is written or it is used as a category.

    Args:
        dim: the number of dimensions; None: left to the data.
        k: the number of categories, for a categorical one.

    Example:
        >>> Input(k=10)
        Input(k=10)

    """

    dim: Size = None
    _: KW_ONLY
    k: Levels = None
    per: NotYet = None
    support: ClassVar[Support] = "given"

    if TYPE_CHECKING:

        def __init__(self, dim: SizeLike = None, *, k: int | None = None, per: None = None) -> None: ...


NODES: dict[str, type[Node]] = {
    cls.__name__: cls for cls in (Normal, MultivariateNormal, Bernoulli, Categorical, Poisson, Input)
}

# Words of the language that a later version gives a meaning.
RESERVED: frozenset[str] = frozenset(
    {"Beta", "Binomial", "Conv", "Dirichlet", "Exponential", "Gamma", "Lag", "LogNormal"}
    | {"Multinomial", "NegativeBinomial", "Net", "Ordinal", "StudentT", "Uniform"}
)
WORDS: frozenset[str] = frozenset({*NODES, *TERMS, *RESERVED})
