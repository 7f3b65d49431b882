"""Nodes: one small class a family, with its support and the constraint of each parameter.

The first argument is the size, everything else is by keyword. A parameter left out is `Free()`. Where a
parameter can be written in two ways (probs or logits, cov or scale_tril), one of them is in use.
"""

from __future__ import annotations

from dataclasses import KW_ONLY
from typing import TYPE_CHECKING, ClassVar

from ppl_gen.declare import continuous, counts, flow, positive
from ppl_gen.declare.arguments import Levels, NotYet, Size
from ppl_gen.declare.continuous import MultivariateNormal, MultivariateStudentT, Normal, StudentT
from ppl_gen.declare.counts import Bernoulli, Binomial, Categorical, NegativeBinomial, Poisson
from ppl_gen.declare.declared import declared
from ppl_gen.declare.flow import Flow
from ppl_gen.declare.node import Node, Support
from ppl_gen.declare.positive import Exponential, Gamma, LogNormal
from ppl_gen.declare.priors import PRIORS
from ppl_gen.declare.terms import TERMS, SizeLike

__all__ = [
    "NODES",
    "RESERVED",
    "WORDS",
    "Bernoulli",
    "Binomial",
    "Categorical",
    "Exponential",
    "Flow",
    "Gamma",
    "Input",
    "LogNormal",
    "MultivariateNormal",
    "MultivariateStudentT",
    "NegativeBinomial",
    "Node",
    "Normal",
    "Poisson",
    "StudentT",
]


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
    name: vars(home)[name] for home in (continuous, positive, counts, flow) for name in home.__all__
} | {"Input": Input}

# Words of the language that a later version gives a meaning.
RESERVED: frozenset[str] = frozenset({"Beta", "Dirichlet", "Lag", "Multinomial", "Ordinal", "Uniform"})
# What no entry of a model can be called; families of the user's own are added (`program.own`).
WORDS: set[str] = {*NODES, *TERMS, *PRIORS, *RESERVED}
