"""Families of real values."""

from __future__ import annotations

from dataclasses import KW_ONLY
from typing import TYPE_CHECKING, ClassVar

from ppl_gen.declare.arguments import NotYet, Size
from ppl_gen.declare.declared import declared
from ppl_gen.declare.node import Node, OneWay
from ppl_gen.declare.terms import Free, Parameter, SizeLike, TermLike, Value
from ppl_gen.errors import SpecError

__all__ = ["MultivariateNormal", "MultivariateStudentT", "Normal", "StudentT"]

DF_BOUNDS = (0.1, 1e6)  # beyond, the likelihood has no bound, or no slope


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
        _one_size(self)
        super().__post_init__()


@declared
class StudentT(Node):
    """Student's t, independent dimensions given the parents: a normal with heavier tails.

    Args:
        dim: the number of dimensions, or a list of sizes; None: left to the data.
        df: degrees of freedom; positive: 1 is Cauchy's law, beyond 100 it is next to a normal. EM keeps it from
            0.1 to 1 000 000.
        loc: centre; real.
        scale: positive; the standard deviation is √(df/(df − 2)) times it, where df > 2.
        per: reserved.

    Example:
        >>> from ppl_gen.declare.terms import By
        >>> StudentT(2, df=4, loc=By("z"), scale=By("z"))
        StudentT(2, df=4, loc=By(z), scale=By(z))

    """

    dim: Size = None
    _: KW_ONLY
    df: Parameter = Free()
    loc: Parameter = Free()
    scale: Parameter = Free()
    per: NotYet = None
    constraints: ClassVar[dict[str, str]] = {"df": "positive", "loc": "real", "scale": "positive"}
    bounds: ClassVar[dict[str, tuple[float, float]]] = {"df": DF_BOUNDS}

    if TYPE_CHECKING:

        def __init__(
            self,
            dim: SizeLike = None,
            *,
            df: TermLike = ...,
            loc: TermLike = ...,
            scale: TermLike = ...,
            per: None = None,
        ) -> None: ...


@declared
class MultivariateStudentT(Node):
    """Student's t over all dimensions at once: elliptical, one df for the whole vector.

    Args:
        dim: the number of dimensions; None: left to the data.
        df: degrees of freedom, one number; positive.
        loc: centre; real.
        cov: the scale matrix, df/(df − 2) times less than the covariance; a number c stands for c·I.
        scale_tril: its Cholesky factor, in place of cov.
        per: reserved.

    Example:
        >>> from ppl_gen.declare.terms import By
        >>> MultivariateStudentT(df=Free(), loc=By("z"), cov=By("z"))
        MultivariateStudentT(df=Free(), loc=By(z), cov=By(z))

    """

    dim: Size = None
    _: KW_ONLY
    df: Parameter = Free()
    loc: Parameter = Free()
    cov: OneWay = None
    scale_tril: OneWay = None
    per: NotYet = None
    constraints: ClassVar[dict[str, str]] = {
        "df": "positive",
        "loc": "real",
        "cov": "covariance",
        "scale_tril": "lower_cholesky",
    }
    either: ClassVar[tuple[str, str] | None] = ("cov", "scale_tril")
    single: ClassVar[frozenset[str]] = frozenset({"df"})
    bounds: ClassVar[dict[str, tuple[float, float]]] = {"df": DF_BOUNDS}

    if TYPE_CHECKING:

        def __init__(
            self,
            dim: SizeLike = None,
            *,
            df: TermLike = ...,
            loc: TermLike = ...,
            cov: TermLike | None = None,
            scale_tril: TermLike | None = None,
            per: None = None,
        ) -> None: ...

    def __post_init__(self) -> None:
        _one_size(self)
        super().__post_init__()
        if isinstance(self.df, Value) and self.df.shape not in ((), (1,)):
            raise SpecError(
                f"MultivariateStudentT's df must be one number for all dimensions, got {self.df}", word="df"
            )


def _one_size(node: Node) -> None:
    if isinstance(node.dim, tuple):
        raise SpecError(f"{node.family}'s dim must be one number, not a list", word="dim")
