"""Families of positive values."""

from __future__ import annotations

from dataclasses import KW_ONLY
from typing import TYPE_CHECKING, ClassVar

from ppl_gen.declare.arguments import NotYet, Size
from ppl_gen.declare.declared import declared
from ppl_gen.declare.node import Node, Support
from ppl_gen.declare.terms import Free, Parameter, SizeLike, TermLike

__all__ = ["Exponential", "Gamma", "LogNormal"]


@declared
class Gamma(Node):
    """Gamma over positive numbers, independent dimensions given the parents; the mean is concentration/rate.

    Args:
        dim: the number of dimensions, or a list of sizes; None: left to the data.
        concentration: shape; positive.
        rate: one over the scale; positive.
        per: reserved.

    Example:
        >>> from ppl_gen.declare.terms import By
        >>> Gamma(1, concentration=By("z"), rate=By("z"))
        Gamma(1, concentration=By(z), rate=By(z))

    """

    dim: Size = None
    _: KW_ONLY
    concentration: Parameter = Free()
    rate: Parameter = Free()
    per: NotYet = None
    support: ClassVar[Support] = "positive"
    constraints: ClassVar[dict[str, str]] = {"concentration": "positive", "rate": "positive"}

    if TYPE_CHECKING:

        def __init__(
            self,
            dim: SizeLike = None,
            *,
            concentration: TermLike = ...,
            rate: TermLike = ...,
            per: None = None,
        ) -> None: ...


@declared
class Exponential(Node):
    """Exponential over positive numbers, independent dimensions given the parents; the mean is 1/rate.

    Args:
        dim: the number of dimensions, or a list of sizes; None: left to the data.
        rate: positive.
        per: reserved.

    Example:
        >>> from ppl_gen.declare.terms import By
        >>> Exponential(rate=By("z"))
        Exponential(rate=By(z))

    """

    dim: Size = None
    _: KW_ONLY
    rate: Parameter = Free()
    per: NotYet = None
    support: ClassVar[Support] = "positive"
    constraints: ClassVar[dict[str, str]] = {"rate": "positive"}

    if TYPE_CHECKING:

        def __init__(self, dim: SizeLike = None, *, rate: TermLike = ..., per: None = None) -> None: ...


@declared
class LogNormal(Node):
    """Positive numbers whose logarithm is normal, independent dimensions given the parents.

    Args:
        dim: the number of dimensions, or a list of sizes; None: left to the data.
        loc: mean of the logarithm; real.
        scale: its standard deviation; positive.
        per: reserved.

    Example:
        >>> from ppl_gen.declare.terms import By
        >>> LogNormal(loc=By("z"), scale=Free())
        LogNormal(loc=By(z), scale=Free())

    """

    dim: Size = None
    _: KW_ONLY
    loc: Parameter = Free()
    scale: Parameter = Free()
    per: NotYet = None
    support: ClassVar[Support] = "positive"
    constraints: ClassVar[dict[str, str]] = {"loc": "real", "scale": "positive"}

    if TYPE_CHECKING:

        def __init__(
            self, dim: SizeLike = None, *, loc: TermLike = ..., scale: TermLike = ..., per: None = None
        ) -> None: ...
